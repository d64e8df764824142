"""How many samples each method needs for token scores that are 10 % off their expectation, and how long that takes.

Every method is unbiased for an expectation of its own, so the mean square error of one run is the variance between runs with
other random draws. For each method, K independent runs of n samples a text give that variance (divided by K - 1) and,
together, the expectation, from whose mean square the part that is the mean's own error is taken off. The relative error is
sqrt(mean over texts of [mean variance / mean square expectation]), means over all tokens and targets of a text. A text whose
expectation is not known to half its size is left out; where most are, no samples are stated, only how variances compare.

Methods that draw independent samples are measured at one n; their error falls as 1/sqrt(n). For stratified positions and pairs
of noise, errors between two n lie on a straight line in log scales. Beyond the largest n everybody gets 1/sqrt(n).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.compare.peers import Runner, Scores, prepare_captum, prepare_fastshap, prepare_interpreto, prepare_shap
from bench.compare.workloads import Workload
from bench.console import say
from bench.interpolation import calls_for

LEVEL = 0.1
FEWEST = 4  # runs at each n, however long they take


@dataclass(frozen=True)
class Method:
    """What is compared; ``timed_as`` names the tool whose measured time a sample costs."""

    name: str
    prepare: Callable[..., Runner]
    quantity: str
    timed_as: str
    independent: bool


METHODS = (
    Method("fastshap", prepare_fastshap, "signed", "fastshap", False),
    Method(
        "fastshap path_density=1",
        functools.partial(prepare_fastshap, path_density=1.0),
        "signed",
        "fastshap",
        False,
    ),
    Method("captum", prepare_captum, "signed", "captum by hand", True),
    Method(
        "captum noisy baselines",
        functools.partial(prepare_captum, noisy_baselines=True),
        "signed",
        "captum by hand",
        True,
    ),
    Method("shap", prepare_shap, "signed", "shap", True),
    Method(
        "fastshap abs_mean",
        functools.partial(prepare_fastshap, reduction="abs_mean"),
        "unsigned",
        "fastshap abs_mean",
        False,
    ),
    Method("interpreto", prepare_interpreto, "unsigned", "interpreto", True),
)
# Methods of the same expectation; captum's own is another, since it adds the noise to the input.
SAME_EXPECTATION = (
    ("fastshap", "fastshap path_density=1", "captum noisy baselines", "shap"),
    ("fastshap abs_mean", "interpreto"),
)


@dataclass(frozen=True)
class Runs:
    """K runs of n samples: (K, T, L) for each text."""

    n: int
    scores: list[np.ndarray]


def square_errors(runs: Runs, means: Sequence[np.ndarray], own: Sequence[float]) -> list[float]:
    """Each text's mean variance over the mean square of its expectation.

    Args:
        runs: of one n.
        means: the best estimates (T, L) of the expectation.
        own: their mean variances, which their mean squares have too much.
    """
    found = []
    for scores, mean, variance in zip(runs.scores, means, own, strict=True):
        scale = float((mean**2).mean()) - variance
        found.append(_variance(scores) / scale if scale > 4 * variance else math.nan)
    return found


def expectation(groups: Sequence[Runs]) -> tuple[list[np.ndarray], list[float]]:
    """The mean over all runs, those of small variance weighted more, and its mean variance, for each text.

    A method and n has one weight for all texts, so that it hardly depends on the runs' own luck.
    """
    means, own = [], []
    spread = [math.exp(np.mean([math.log(max(1e-30, _variance(scores))) for scores in runs.scores])) for runs in groups]
    for text in range(len(groups[0].scores)):
        parts = [
            (len(runs.scores[text]) / variance, runs.scores[text])
            for runs, variance in zip(groups, spread, strict=True)
        ]
        whole = sum(weight for weight, _ in parts)
        means.append(sum(weight / whole * scores.mean(0) for weight, scores in parts))
        own.append(sum((weight / whole) ** 2 * _variance(scores) / len(scores) for weight, scores in parts))
    return means, own


def draw(
    method: Method, workload: Workload, sizes: Sequence[int], batch_size: Any, cap: float, most: int
) -> list[Runs]:
    """At each n as many runs as fit into its share of ``cap`` seconds, ``most`` at most."""
    runner = method.prepare(workload, tokens=True)
    found = []
    for number, n in enumerate(sizes):
        runs: list[Scores] = []
        start = time.perf_counter()
        while len(runs) < FEWEST or (len(runs) < most and time.perf_counter() - start < cap / len(sizes)):
            # What a causal target cannot see contributes nothing, neither error nor scale.
            runs.append([np.nan_to_num(s) for s in runner.run(batch_size, n, 1000 * (number + 1) + len(runs))])
        found.append(Runs(n, [np.stack([run[text] for run in runs]) for text in range(len(workload.ids))]))
    return found


def measure(
    workload: Workload,
    sizes: Sequence[int],
    independent: int,
    best: dict[str, Any],
    timed: dict[str, Any],
    cap: float,
    most: int,
) -> dict[str, Any]:
    """Every method on ``workload``, given the whole workload's timing.

    Args:
        workload: the texts that errors are measured on.
        sizes: the n of methods whose samples are not independent.
        independent: the n of the others.
        best: each tool's batch size.
        timed: what ``interleaved`` found.
        cap: seconds for all methods together.
        most: runs of a method at each n.
    """
    drawn = {}
    for method in METHODS:
        say(f"{workload.name}: error of {method.name}")
        share = cap / len(METHODS)
        chosen = (independent,) if method.independent else sizes
        drawn[method.name] = draw(method, workload, chosen, best[method.timed_as], share, most)
    found: dict[str, Any] = {}
    for method in METHODS:
        alike = next((group for group in SAME_EXPECTATION if method.name in group), (method.name,))
        means, own = expectation([some for name in alike for some in drawn[name]])
        errors = {some.n: square_errors(some, means, own) for some in drawn[method.name]}
        usable = [not math.isnan(value) for value in next(iter(errors.values()))]
        runs = max(drawn[method.name], key=lambda runs: runs.n)
        # Linear in n: the measured seconds of n samples, over n.
        each = timed["tools"][method.timed_as]["median"] / timed["n"]
        record: dict[str, Any] = {
            "quantity": method.quantity,
            "runs": {str(some.n): len(some.scores[0]) for some in drawn[method.name]},
            "texts": len(usable),
            "texts_left_out": usable.count(False),
            # Mean variance of one sample, for each text, at the largest n; no expectation is needed to compare these.
            "variances": [runs.n * _variance(scores) for scores in runs.scores],
            "seconds_per_sample": each,
            "reference_error": _root([v / max(1e-30, float((m**2).mean())) for m, v in zip(means, own, strict=True)]),
        }
        if 2 * sum(usable) >= len(usable):
            kept = {n: [v for v, ok in zip(values, usable, strict=True) if ok] for n, values in errors.items()}
            samples = max(1.0, calls_for(kept, LEVEL))
            record |= {
                "error": {str(n): _root(values) for n, values in kept.items()},
                "samples": samples,
                "extrapolated": samples > max(kept) or samples < min(kept),
                "rows": samples * timed["texts"],
                "seconds": samples * each,
            }
        found[method.name] = record
    return {
        "level": LEVEL,
        "texts": len(workload.ids),
        "targets": len(workload.targets[0]),
        "methods": found,
        "agreement": agreement(drawn),
    }


def agreement(drawn: dict[str, list[Runs]]) -> dict[str, float]:
    """How far the means of two methods of the same expectation lie apart, in their combined standard errors; the worst text."""
    found = {}
    for first, *others in SAME_EXPECTATION:
        for other in others:
            (ours, our_own), (theirs, their_own) = expectation(drawn[first]), expectation(drawn[other])
            found[f"{first} and {other}"] = max(
                math.sqrt(float(((a - b) ** 2).mean()) / max(1e-30, u + v))
                for a, b, u, v in zip(ours, theirs, our_own, their_own, strict=True)
            )
    return found


def _variance(scores: np.ndarray) -> float:
    """The mean variance of runs (K, T, L)."""
    return float(scores.var(0, ddof=1).mean())


def _root(squares: Sequence[float]) -> float:
    return math.sqrt(float(np.mean(squares)))
