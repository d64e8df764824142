"""How sure an average over samples is: standard errors from one run or from several rounds, and intervals (docs/adr/0007)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastshap import ops
from fastshap.engine.learned import Learned
from fastshap.reference.moments import LEAST_SAMPLES
from fastshap.text.groups import Grouping, reduce_samples

# Fewer rounds tell nothing worth reporting.
LEAST_ROUNDS = 4
_MOST_SUMMED = 300  # degrees of freedom
# Whether another token may be the right one is asked at this confidence.
_CONFIDENCE = 0.95
# Errors within rounds end the sampling only with so many degrees of freedom: with fewer, those too small by chance would.
_LEAST_FREEDOM = 8


class RoundMoments(NamedTuple):
    """What one round of a text's samples comes to."""

    tokens: Tensor  # (T, L) mean
    error: Tensor  # (t, G) standard error, or (T, L) for order strategies
    groups: Tensor | None  # (t, G) mean, where the strategy is linear


class Summary(NamedTuple):
    """What one round of some texts' samples comes to, their tokens and groups side by side."""

    places: list[int]  # of the texts, among those that were summarised
    moments: RoundMoments
    lengths: list[int]  # L of each
    counts: list[int]  # G of each

    def of_each(self) -> Iterator[tuple[int, RoundMoments]]:
        """The texts' places, with their shares."""
        tokens, error, groups = self.moments
        own = repeat(None, len(self.places)) if groups is None else groups.split(self.counts, 1)
        errors = error.split(self.lengths if groups is None else self.counts, 1)
        for place, *moments in zip(self.places, tokens.split(self.lengths, 1), errors, own, strict=True):
            yield place, RoundMoments(*moments)


class Running:
    """One text's scores over independent rounds."""

    __slots__ = ("_rounds", "_samples", "grouping", "learned", "sampling")

    def __init__(self, grouping: Grouping, sampling: str) -> None:
        self.grouping = grouping
        self.sampling = sampling
        self._samples = 0  # of each round
        self._rounds: list[RoundMoments] = []
        self.learned: Learned | None = None  # where on the path its scores vary, if somebody asks

    def add(self, samples: int, summary: RoundMoments) -> None:
        """A round of so many samples, on the CPU."""
        self._samples = samples
        self._rounds.append(summary)

    @property
    def rounds(self) -> int:
        return len(self._rounds)

    @property
    def samples(self) -> int:
        return self.rounds * self._samples

    @property
    def tokens(self) -> Tensor:
        """(T, L) mean over all samples."""
        return _mean([summary.tokens for summary in self._rounds])

    @property
    def attributions(self) -> Tensor:
        """(t, G)."""
        groups = self._groups()
        return _mean(groups).clone() if groups else self.grouping.reduce(self.tokens)

    def _groups(self) -> list[Tensor]:
        """(t, G) of each round, where the strategy is linear."""
        return [summary.groups for summary in self._rounds if summary.groups is not None]

    @property
    def freedom(self) -> int:
        return degrees_of_freedom(self._samples, self.rounds, self.sampling)

    def standard_error(self) -> Tensor:
        """(t, G): from the spread between rounds where there are enough of them, else from within each."""
        return self._within() if self.rounds < LEAST_ROUNDS else self._between()

    def _within(self) -> Tensor:
        """From the spread within each round."""
        errors = [summary.error for summary in self._rounds]
        freedom = len(errors) * degrees_of_freedom(self._samples, 1, self.sampling)
        if len(errors) == 1:
            return self._reported(errors[0].clone(), freedom)
        return self._reported(torch.stack(errors).square().sum(0).sqrt() / len(errors), freedom)

    def _between(self) -> Tensor:
        """From the spread between rounds."""
        means = self._groups() or [summary.tokens for summary in self._rounds]
        return self._reported(error_between(torch.stack(means)), self.rounds - 1)

    def _reported(self, error: Tensor, freedom: int) -> Tensor:
        return error if self.grouping.linear else selected_error(self.grouping, self.tokens, error, freedom)

    def meets(self, rtol: float) -> bool:
        """Whether every standard error is at most ``rtol`` of its target's largest absolute score.

        Four rounds may lie close together by chance: the spread within each has to agree. With fewer rounds, so may the
        samples within them: no error of few degrees of freedom is taken for small.
        """
        if self.rounds < LEAST_ROUNDS and self.freedom < _LEAST_FREEDOM:
            return False
        scores = self.attributions
        largest = scores.abs().nan_to_num().amax(1, keepdim=True)
        error = self.standard_error()
        if self.rounds == LEAST_ROUNDS:
            error = torch.maximum(error, self._within())
        return bool(((error <= rtol * largest) | scores.isnan()).all())


def summaries(running: Sequence[Running], scores: Sequence[Tensor]) -> list[Summary]:
    """What becomes of texts' token scores (T, n, L), on their device.

    Texts of one number of targets and samples are summarised by the same operators.
    """
    alike: dict[Any, list[int]] = {}
    for i, (one, score) in enumerate(zip(running, scores, strict=True)):
        grouping = one.grouping
        alone = i if grouping.linear and not grouping.keeps_targets else -1
        kind = *score.shape[:2], one.sampling, grouping.linear, grouping.strategy, grouping.backend, alone
        alike.setdefault(kind, []).append(i)
    found = []
    for members in alike.values():
        pairs, backend = running[members[0]].sampling == "antithetic", running[members[0]].grouping.backend
        groupings = [running[i].grouping for i in members]
        together = torch.cat([scores[i] for i in members], 2)
        mean, error = ops.moments(together, pairs=pairs, backend=backend)
        grouped = None
        if groupings[0].linear:
            grouped, error = ops.moments(reduce_samples(groupings, together), pairs=pairs, backend=backend)
        lengths, counts = [scores[i].shape[2] for i in members], [len(grouping.members) for grouping in groupings]
        found.append(Summary(members, RoundMoments(mean, error, grouped), lengths, counts))
    return found


def _mean(rounds: list[Tensor]) -> Tensor:
    return rounds[0] if len(rounds) == 1 else torch.stack(rounds).mean(0)


def error_between(rounds: Tensor) -> Tensor:
    """Standard error of the mean of independent rounds (R, ...), from their spread."""
    return rounds.std(0) / math.sqrt(rounds.shape[0])


def selected_error(grouping: Grouping, tokens: Tensor, error: Tensor, freedom: int) -> Tensor:
    """(t, G): the error of what an order strategy selects by mean scores (T, L) that have errors of their own (docs/adr/0014).

    FIRST and LAST: that of their token. MAX, MIN and SIGNED_MAX: so large that the 95 % interval about the selected score holds
    the intervals of all tokens that may be the right ones, as far as they reach beyond it; with SIGNED_MAX that may be on
    the other side of zero. These intervals hold jointly: the more tokens, the wider they are (Bonferroni).
    """
    if grouping.strategy in ("first", "last"):
        return grouping.ends(error)
    selected = grouping.reduce(tokens)  # (t, G)
    if freedom == 0:
        return torch.full_like(selected, torch.nan)
    sizes = {"max": tokens, "min": -tokens, "signed_max": tokens.abs()}[grouping.strategy]
    cells = grouping.cells(len(tokens))
    kept = cells >= 0
    cells, size, error, negative = cells[kept], sizes[kept], error[kept], tokens[kept] < 0
    largest = _over(cells, size, selected.numel())
    its_error = _over(cells, error.where(size == largest[cells], 0), selected.numel())
    once = _once(freedom)
    behind = largest[cells] - size
    may = behind <= once * torch.hypot(error, its_error[cells])
    counts = torch.zeros_like(largest).index_add_(0, cells, may.to(largest.dtype))
    jointly = once * torch.tensor([_widening(int(count)) for count in counts], device="cpu")
    across = (grouping.strategy == "signed_max") & (negative != (selected.flatten() < 0)[cells])
    reach = (largest[cells] + size).where(across, -behind) + jointly[cells] * error
    half = _over(cells, reach.where(may, 0), selected.numel())
    return grouping.hide((half / once).view_as(selected))


def reliability(scores: Tensor, error: Tensor) -> Tensor:
    """(t,) the share of scores' squared size that a repeated run would find again, from 0 to 1 (docs/adr/0021).

    NaN where there is no standard error. Scores that are all zero, and sure to be, are found again: 1.

    Args:
        scores: (t, G); NaN where a target cannot see.
        error: (t, G) their standard errors; NaN or nothing at all where there are none.
    """
    if error.shape != scores.shape:
        return torch.full((len(scores),), torch.nan, device="cpu")
    values, errors = scores.numpy().astype(np.float64), error.numpy().astype(np.float64)
    visible = ~np.isnan(values)
    size = np.square(values).sum(1, where=visible)
    noise = np.square(errors).sum(1, where=visible)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(noise == 0, 1.0, 1 - noise / size)
    return torch.from_numpy(np.clip(share, 0, 1).astype(np.float32))


def _over(cells: Tensor, values: Tensor, count: int) -> Tensor:
    """The largest value of each of so many cells."""
    return torch.full((count,), -torch.inf, device="cpu").scatter_reduce_(0, cells, values, "amax")


@lru_cache(maxsize=256)
def _once(freedom: int) -> float:
    return student_quantile((1 + _CONFIDENCE) / 2, min(freedom, 1000))  # as good as normal beyond


@lru_cache(maxsize=4096)
def _widening(count: int) -> float:
    """By how much ``count`` intervals that hold jointly are wider; of normal errors, as Student's would be far too wide."""
    normal, tail = NormalDist(), (1 - _CONFIDENCE) / 2
    return normal.inv_cdf(1 - tail / max(count, 1)) / normal.inv_cdf(1 - tail)


def degrees_of_freedom(samples: int, rounds: int, sampling: str) -> int:
    """Those of the standard error of ``rounds`` rounds with ``samples`` samples each; 0 where there is none.

    Two less for independent samples than normal ones would have, as scores are skewed.
    """
    if rounds >= LEAST_ROUNDS:
        return rounds - 1
    if samples < LEAST_SAMPLES:
        return 0
    return rounds * (samples - 3 if sampling == "iid" else samples // 2 - 1)


@lru_cache(4096)
def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, for a probability above 1/2 and whole degrees of freedom.

    By bisection on the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4; beyond 300 degrees of freedom by their expansion
    26.7.5, which is as close as 1e-10 up to a probability of 0.9999, so that the work does not grow.
    """
    if freedom > _MOST_SUMMED:
        return _expanded(probability, freedom)
    low, high = 0.0, 1.0
    while _student(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, freedom) < probability else (low, middle)
    return high


def _expanded(probability: float, freedom: int) -> float:
    """From the normal quantile, in powers of 1 / freedom."""
    x = NormalDist().inv_cdf(min(probability, math.nextafter(1.0, 0.0)))
    square = x * x
    series = (
        x,
        x * (square + 1) / 4,
        x * ((5 * square + 16) * square + 3) / 96,
        x * (((3 * square + 19) * square + 17) * square - 15) / 384,
        x * ((((79 * square + 776) * square + 1482) * square - 1920) * square - 945) / 92160,
    )
    return sum(term / freedom**k for k, term in enumerate(series))


def _student(t: float, freedom: int) -> float:
    """The distribution function at t >= 0."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2
