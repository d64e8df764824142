"""What was expected before the run, in a form that the figures decide.

A claim of two methods is decided by their paired difference d over the texts, with standard error e: "better" holds where d is
more than 2 e on the better side, "alike" where it is within 2 e.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

MEASURE = "comprehensiveness at 20 %"
CLEARLY = 2.0  # standard errors


class Pair(NamedTuple):
    """A claim of two methods."""

    name: str
    text: str
    method: str
    other: str
    claim: str  # "better" or "alike"
    measure: str = MEASURE
    only: str | None = None  # a subject; by default all that have both methods


WRITTEN = "2026-11-27, before the first run"
HYPOTHESES = (
    Pair(
        "gap closed",
        "With the same baseline and n = 50, captum's GradientShap closes the gap to integrated gradients.",
        *("captum GradientShap, MASK", "integrated gradients, MASK", "alike"),
    ),
    Pair(
        "table's settings",
        "As the public table ran it (n = 5, half of the baselines are the text itself), GradientShap does worse than it can.",
        *("captum GradientShap, MASK", "captum GradientShap as in the table, MASK", "better"),
    ),
    Pair(
        "signed",
        "The signed sum does better than abs_mean.",
        *("fastshap", "fastshap abs_mean", "better"),
    ),
    Pair(
        "baseline",
        "The MASK embedding is a better baseline than zero.",
        *("fastshap, MASK", "fastshap", "better"),
    ),
    Pair(
        "aggregation",
        "SUM over a word's tokens is as good as MEAN.",
        *("fastshap SUM", "fastshap", "alike"),
    ),
    Pair(
        "noise",
        "Without noise, scores are better than with noise_std = 0.1.",
        *("fastshap without noise", "fastshap", "better"),
    ),
    Pair(
        "few samples",
        "50 samples are better than the default of 10.",
        *("fastshap", "fastshap, n = 10", "better"),
    ),
    Pair(
        "gradients see something",
        "fastshap's default is better than the longest words first.",
        *("fastshap", "word length", "better"),
    ),
    Pair(
        "occlusion in distribution",
        "On a model that was trained with masks, interpreto's Occlusion beats fastshap's default.",
        *("interpreto Occlusion", "fastshap", "better"),
        only="masked",
    ),
    Pair(
        "occlusion out of distribution",
        "On the packaged model, which was not, it does so too.",
        *("interpreto Occlusion", "fastshap", "better"),
        only="packaged",
    ),
)


def decided(pair: Pair, difference: float, error: float, higher_is_better: bool) -> str:
    """ "held", "did not hold" or "unknown"."""
    if math.isnan(difference) or math.isnan(error):
        return "unknown"
    good = difference if higher_is_better else -difference
    held = good > CLEARLY * error if pair.claim == "better" else abs(difference) <= CLEARLY * error
    return "held" if held else "did not hold"


def stated() -> list[dict[str, Any]]:
    """For the record."""
    return [one._asdict() for one in HYPOTHESES]
