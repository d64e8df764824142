"""How alike two explanations of the same texts are. No model is needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.metrics.explained import NOT_EXPLAINED, NOT_FINITE, TOO_FEW, listed, scored
from fastshap.metrics.faithfulness import DIFFERENT, of_seeds
from fastshap.metrics.measures import Skip, checked_k, labelled, tops
from fastshap.metrics.result import MetricResult, gathered
from fastshap.output.record import Record

FLAT = "all scores are equal"

_Compare = Callable[[np.ndarray, np.ndarray], float]


class _Side(NamedTuple):
    text: Any
    elements: list[str]
    scores: np.ndarray  # (t, G)
    targets: list[str] | None
    hides: bool = False  # NaN at the end of a row is what a causal target cannot see


def rank_correlation(outputs: Any, others: Any) -> MetricResult:
    """Spearman's rank correlation of the elements' scores of two explanations: 1 for the same order, -1 for the opposite.

    A text of several targets counts by their mean. Elements that a causal target cannot see are left out. Texts with equal
    scores alone have no order, and are skipped.

    Args:
        outputs, others: entries for the same texts, as for :meth:`Faithfulness.evaluate`.

    Raises:
        InvalidArgumentError, InvalidTypeError: the texts differ, or entries are no outputs.
    """
    return _between(_sides(outputs), _sides(others), spearman, name="rank correlation", higher_is_better=True)


def top_k_overlap(outputs: Any, others: Any, k: float = 0.2) -> MetricResult:
    """The share of the top k elements that two explanations have in common: 0 to 1.

    Source: "feature agreement" of Krishna et al. 2022, "The disagreement problem".

    Args:
        outputs, others: as for :func:`rank_correlation`.
        k: a share of the elements (0.2: the top 20 %, rounded down, at least one) or a number of them.
    """
    if isinstance(checked_k(k), tuple):
        raise InvalidTypeError("k is one share or one number of elements.")

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        ours, theirs = tops(a, k)[0], tops(b, k)[0]
        return float((ours & theirs).sum() / ours.sum())

    name = labelled("overlap of the top elements", k)
    return _between(_sides(outputs), _sides(others), overlap, name=name, higher_is_better=True)


def rank_stability(seeds: Sequence[Any]) -> MetricResult:
    """The mean rank correlation of each two of several explanations that differ in their seed alone.

    Its ``seed_standard_error`` is the jackknife's, from three seeds on.

    Args:
        seeds: a list of outputs for each seed, of the same texts.
    """
    lists = of_seeds(seeds)
    if len(lists) < 2:
        raise InvalidArgumentError("Stability is between seeds; pass a list of outputs for each of two seeds or more.")
    sides = [_sides(one) for one in lists]
    pairs = list(itertools.combinations(range(len(sides)), 2))
    each = np.array([_between(sides[a], sides[b], spearman, name="").per_text for a, b in pairs])  # (pairs, texts)
    result = _between(sides[0], sides[1], spearman, name="")
    lost = np.isnan(each).any(0)
    more = int(lost.sum()) - sum(result.skipped.values())
    skipped = {**result.skipped, **({"skipped for another seed": more} if more else {})}
    means = np.where(lost, np.nan, each.mean(0))
    jackknife = math.nan
    if len(sides) > 2 and not lost.all():
        kept = each[:, ~lost].mean(1)
        without = np.array([kept[[i not in pair for pair in pairs]].mean() for i in range(len(sides))])
        jackknife = math.sqrt((len(sides) - 1) * float(without.var()))
    return MetricResult("rank stability", tuple(means.tolist()), skipped, True, seed_standard_error=jackknife)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of ranks; equal scores share their mean rank."""
    ours, theirs = _mean_ranks(a), _mean_ranks(b)
    if not ours.any() or not theirs.any():
        raise Skip(FLAT)
    return float(ours @ theirs / math.sqrt(float(ours @ ours) * float(theirs @ theirs)))


def _mean_ranks(scores: np.ndarray) -> np.ndarray:
    """(G,), centred."""
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which] - (len(scores) - 1) / 2


def _sides(outputs: Any) -> list[_Side | Skip]:
    return [_side(one) for one in listed(outputs)]


def _side(entry: Any) -> _Side | Skip:
    if not isinstance(entry, Record):
        its = scored(entry)
        return _Side(its.text, [*its.words], its.scores, None)
    if entry.error is not None:
        return Skip(NOT_EXPLAINED)
    scores = entry.attributions.double().numpy()
    return _Side(entry.text, entry.elements, scores, entry.target_names, hides=entry.classes is None)


def _between(ours: Sequence[_Side | Skip], theirs: Sequence[_Side | Skip], how: _Compare, **named: Any) -> MetricResult:
    if len(ours) != len(theirs):
        raise InvalidArgumentError(f"Both lists hold the same texts; they hold {len(ours)} and {len(theirs)}.")
    found: list[float | str] = []
    for a, b in zip(ours, theirs, strict=True):
        try:
            found.append(_of_two(a, b, how))
        except Skip as skip:
            found.append(skip.reason)
    return gathered(found, **named)


def _of_two(a: _Side | Skip, b: _Side | Skip, how: _Compare) -> float:
    for one in (a, b):
        if isinstance(one, Skip):
            raise one
    assert isinstance(a, _Side)
    assert isinstance(b, _Side)
    if a.text != b.text:
        raise InvalidArgumentError(f"The texts differ: {str(a.text)[:40]!r} and {str(b.text)[:40]!r}.")
    named = a.targets is not None and b.targets is not None and a.targets != b.targets
    if named or a.scores.shape != b.scores.shape or [*map(str.strip, a.elements)] != [*map(str.strip, b.elements)]:
        raise Skip(DIFFERENT)
    return float(
        np.mean([_of_target(*rows, how, a.hides and b.hides) for rows in zip(a.scores, b.scores, strict=True)])
    )


def _of_target(x: np.ndarray, y: np.ndarray, how: _Compare, hides: bool) -> float:
    if hides:
        seen = 1 + max(np.flatnonzero(~(np.isnan(x) & np.isnan(y))), default=-1)
        x, y = x[:seen], y[:seen]
    if len(x) < 2:
        raise Skip(TOO_FEW)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise Skip(NOT_FINITE)
    return how(x, y)
