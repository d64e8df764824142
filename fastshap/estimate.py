"""How sure an average over samples is: standard errors from one run or from several rounds, and intervals (docs/adr/0007)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastshap import ops
from fastshap.groups import Grouping
from fastshap.reference.moments import LEAST_SAMPLES

# Fewer rounds tell nothing worth reporting.
LEAST_ROUNDS = 4


class Running:
    """One text's scores over independent rounds."""

    def __init__(self, grouping: Grouping, sampling: str) -> None:
        self.grouping = grouping
        self.sampling = sampling
        self._samples = 0  # of each round
        self._means: list[Tensor] = []  # (T, L) of each round
        self._errors: list[Tensor] = []  # (t, G) of each round; (T, L) for order strategies

    def summary(self, scores: Tensor) -> list[Tensor]:
        """What :meth:`add` takes of a round's token scores (T, n, L), on their device."""
        pairs, backend = self.sampling == "antithetic", self.grouping.backend
        mean, error = ops.moments(scores, pairs=pairs, backend=backend)
        if self.grouping.linear:
            _, error = ops.moments(self.grouping.reduce_samples(scores), pairs=pairs, backend=backend)
        return [mean, error]

    def add(self, samples: int, mean: Tensor, error: Tensor) -> None:
        """A round of so many samples, on the CPU."""
        self._samples = samples
        self._means.append(mean)
        self._errors.append(error)

    @property
    def rounds(self) -> int:
        return len(self._means)

    @property
    def samples(self) -> int:
        return self.rounds * self._samples

    @property
    def tokens(self) -> Tensor:
        """(T, L) mean over all samples."""
        return torch.stack(self._means).mean(0)

    @property
    def freedom(self) -> int:
        return degrees_of_freedom(self._samples, self.rounds, self.sampling)

    def standard_error(self) -> Tensor:
        """(t, G): from the spread between rounds where there are enough of them, else from within each."""
        return self._within() if self.rounds < LEAST_ROUNDS else self._between()

    def _within(self) -> Tensor:
        """From the spread within each round."""
        return self._reported(torch.stack(self._errors).square().sum(0).sqrt() / self.rounds)

    def _between(self) -> Tensor:
        """From the spread between rounds."""
        means = [self.grouping.reduce(mean) for mean in self._means] if self.grouping.linear else self._means
        return self._reported(error_between(torch.stack(means)))

    def _reported(self, error: Tensor) -> Tensor:
        return error if self.grouping.linear else self.grouping.select(self.tokens, error)

    def meets(self, rtol: float) -> bool:
        """Whether every standard error is at most ``rtol`` of its target's largest absolute score.

        Four rounds may lie close together by chance: the spread within each has to agree.
        """
        scores = self.grouping.reduce(self.tokens)
        largest = scores.abs().nan_to_num().amax(1, keepdim=True)
        error = self.standard_error()
        if self.rounds == LEAST_ROUNDS:
            error = torch.maximum(error, self._within())
        return bool(((error <= rtol * largest) | scores.isnan()).all())


def error_between(rounds: Tensor) -> Tensor:
    """Standard error of the mean of independent rounds (R, ...), from their spread."""
    return rounds.std(0) / math.sqrt(rounds.shape[0])


def degrees_of_freedom(samples: int, rounds: int, sampling: str) -> int:
    """Those of the standard error of ``rounds`` rounds with ``samples`` samples each; 0 where there is none.

    One less for independent samples than normal ones would have, as scores are skewed.
    """
    if rounds >= LEAST_ROUNDS:
        return rounds - 1
    if samples < LEAST_SAMPLES:
        return 0
    return rounds * (samples - 2 if sampling == "iid" else samples // 2 - 1)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, for a probability above 1/2 and whole degrees of freedom.

    By bisection on the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1.0
    while _student(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, freedom) < probability else (low, middle)
    return high


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
