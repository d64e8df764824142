"""Batch jobs: texts in files, explained into a directory of Parquet files, each id exactly once."""
