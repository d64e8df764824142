"""Rows to model calls, calls to token scores, and how sure they are. Knows no task."""
