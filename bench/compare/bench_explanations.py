"""Whole explanations of small workloads by each tool: ``pytest bench/compare/bench_explanations.py --benchmark-only``.

``python -m bench`` has the comparison itself, at each tool's best batch size.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from bench.compare.peers import TOOLS
from bench.compare.workloads import Workload, small

pytestmark = pytest.mark.filterwarnings("ignore")

BATCH_SIZES = {"fastshap": "auto", "interpreto": None, "captum by hand": 2, "floor": 1024}  # None: n rows


@functools.cache
def workload(name: str) -> Workload:
    return small(name, texts=12)


@pytest.mark.parametrize("tool", list(BATCH_SIZES))
@pytest.mark.parametrize("name", ["a", "c", "d"])
def test_explanations(benchmark: Any, name: str, tool: str) -> None:
    """One run of all texts, the model loaded and the targets given."""
    given = workload(name)
    runner = TOOLS[tool].prepare(given)
    scores = benchmark(runner.run, BATCH_SIZES[tool] or given.n, given.n, 0)
    assert len(scores) == (0 if tool == "floor" else len(given.ids))
