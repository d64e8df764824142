"""Many texts in one go: is time linear, is memory flat?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastshap
from bench.compare.memory import resident, settle
from bench.compare.workloads import NOISE_STD, Workload
from bench.console import say


@dataclass(frozen=True)
class Line:
    """A straight line through cumulative times, and how far off they are."""

    per_text: float
    start: float
    largest_deviation: float  # of a time from the line, as a share of the line's value


def straight_line(texts: Sequence[float], times: Sequence[float]) -> Line:
    """The least squares line."""
    x, y = np.asarray(texts, float), np.asarray(times, float)
    per_text, start = np.polyfit(x, y, 1)
    line = per_text * x + start
    return Line(float(per_text), float(start), float(np.abs(y / line - 1).max()))


def burst_ends(times: Sequence[float]) -> list[int]:
    """How many outputs were there before each long wait, and at the end.

    Outputs come a window of texts at a time, so in between their number says nothing of the work done.
    """
    waits = np.diff(times)
    return [*(int(k) + 1 for k in np.flatnonzero(waits > 0.1 * waits.max())), len(times)]


def long_list(workload: Workload, n: int) -> dict[str, Any]:
    """``iter_explain`` over all texts, once: is time linear, is memory flat?

    The line goes through the times at which windows of texts were done, from a twentieth of the texts on; the half-way time is
    interpolated between them. Memory is looked at after each quarter of the texts, and again once the C library has given its
    free blocks back, for which the clock is stopped.
    """
    explainer = fastshap.GradientShap(
        workload.model,
        workload.tokenizer,
        "auto",
        n_perturbations=n,
        noise_std=NOISE_STD,
        on_error="record",
    )
    explainer(workload.texts[:8])
    count = len(workload.texts)
    errors = 0
    padding, positions = explainer.padding
    settle()
    times: list[float] = []
    quarters: list[int] = []
    settled: list[int] = []
    start = time.perf_counter()
    for output in explainer.iter_explain(iter(workload.texts)):
        times.append(time.perf_counter() - start)
        errors += output.error is not None
        if len(times) % (count // 4) == 0:
            halted = time.perf_counter()
            quarters.append(resident())
            settle()
            settled.append(resident())
            say(f"e: {len(times)} of {count} texts")
            start += time.perf_counter() - halted
    at = [end for end in burst_ends(times) if end >= count // 20]
    done = [times[k - 1] for k in at]
    half = float(np.interp(count / 2, [0, *at], [0, *done]))
    return {
        "title": workload.title,
        "texts": count,
        "n": n,
        "errors": errors,
        "seconds": times[-1],
        "texts_per_second": count / times[-1],
        "points": [{"texts": a, "seconds": t} for a, t in zip(at, done, strict=True)],
        "largest_deviation_from_line": straight_line(at, done).largest_deviation,
        "second_half_over_first": (times[-1] - half) / half,
        "resident_bytes_at_quarters": quarters,
        "settled_bytes_at_quarters": settled,
        "padding_share": (explainer.padding[0] - padding) / (explainer.padding[1] - positions),
        "tokens": sum(map(len, workload.ids)),
    }
