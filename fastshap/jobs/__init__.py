"""Batch jobs explain texts in files and write a directory of Parquet files, with each id exactly once.

:func:`run` explains, :func:`verify` compares the output with its input, and :func:`read` gives the outputs.
"""

from fastshap.jobs.outputs import read
from fastshap.jobs.runners import run
from fastshap.jobs.summary import JobSummary
from fastshap.jobs.verdict import Verdict, verify

__all__ = ["JobSummary", "Verdict", "read", "run", "verify"]
