"""Batch jobs: many texts in files, explained into a directory of Parquet files, each id once, whatever breaks off."""
