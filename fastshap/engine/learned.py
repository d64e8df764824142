"""Where on the path samples are worth most: a density that is learned from samples that came before (docs/adr/0022).

With strata of equal probability and pairs of opposite noise, the variance of a mean is about 2 / n times the integral of V / q,
where q is the density of the positions and V(a) the variance of a pair's mean at a. The best density is in proportion to
sqrt(V). For independent samples V is the mean square.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastshap.ops.transfer import to_device
from fastshap.sampling import Samples

BINS = 32
_WIDTH = 0.06  # what one pair says holds about so far along the path
_PRIOR = 0.5  # pairs that say that V is the same everywhere
_OWN = 1.0  # of a pair's neighbours: with fewer than this, their mean says little of its own
_FLOOR = 0.1  # of the density, so that no weight is above 10
_CAUTION = 8
_MANY = 50  # pairs that should tell scores from noise
_BLOCK = 256  # pairs that are compared with one another
_CENTRES = (np.arange(BINS) + 0.5) / BINS


def spreads(scores: Tensor, samples: Samples, pairs: bool) -> Tensor:
    """How large the deviation of each pair's mean is, from token scores (T, n, L): (T, n // 2) float64 norms over tokens.

    Deviations are from what pairs nearby on the path have on average, as far as there are any, because strata remove what the
    mean does along the path. Independent samples (T, n) deviate from zero. ``scores`` are weighted; the weights are taken out.
    """
    scores = scores.double()
    if (samples.weights != 1).any():
        scores = scores / to_device(samples.weights, scores.device)[:, None]
    if not pairs:
        return torch.linalg.vector_norm(scores, dim=2)
    count = scores.shape[1] // 2 * 2
    means = (scores[:, 0:count:2] + scores[:, 1:count:2]) / 2
    places = _of_pairs(samples.alphas.astype(np.float64))
    found = []
    for lo in range(0, len(places), _BLOCK):
        share = _near(places[lo : lo + _BLOCK], places[lo : lo + _BLOCK])
        np.fill_diagonal(share, 0)
        share /= share.sum(1, keepdims=True) + _OWN
        block = means[:, lo : lo + _BLOCK]
        off = torch.linalg.vector_norm(block - to_device(share, block.device) @ block, dim=2)
        found.append(off / to_device(np.sqrt(1 + np.square(share).sum(1)), block.device))
    return torch.cat(found, 1) if found else scores.new_zeros(scores.shape[0], 0)


class Learned:
    """What the rounds of one text have shown so far."""

    __slots__ = ("_found", "_pairs", "_said", "_size", "_weight")

    def __init__(self, pairs: bool) -> None:
        self._pairs = pairs
        self._said = np.zeros(BINS)  # how many pairs spoke of each bin
        self._found: np.ndarray | float = 0.0  # (T, BINS) their deviations together
        self._weight = 0.0
        self._size: np.ndarray | float = 0.0  # (T,) and on all of the path

    def add(self, samples: Samples, spread: np.ndarray) -> None:
        """A round's samples and their :func:`spreads`."""
        near, weights = _near(_CENTRES, samples.alphas.astype(np.float64)), samples.weights.astype(np.float64)
        if self._pairs:
            near, weights = _of_pairs(near), _of_pairs(weights)
        self._said = self._said + near.sum(1)
        self._found = self._found + spread @ near.T
        self._weight += weights.sum()
        self._size = self._size + spread @ weights

    def variance(self, scores: np.ndarray) -> np.ndarray:
        """(BINS,) V, where each target counts by the squared size of its ``scores`` (T, L).

        That is what relative errors go by. A target whose scores are noise, even after many samples, counts by that noise:
        otherwise it would decide alone.
        """
        if self._weight == 0:
            return np.ones(BINS)
        usual = np.asarray(self._size / self._weight)[:, None]
        local = (self._found + _PRIOR * usual) / (self._said + _PRIOR)  # squares of means: single large ones say less
        variance = np.square(local)
        size = np.square(scores, dtype=np.float64).sum(1) + variance.mean(1) / _MANY
        return (variance / np.where(size > 0, size, 1)[:, None]).mean(0)


def density(variances: Sequence[np.ndarray]) -> np.ndarray:
    """(BINS,) of mean 1, for texts whose samples vary so."""
    mean = np.mean(variances, axis=0)
    if not (np.isfinite(mean).all() and mean.mean() > 0):
        return np.ones(BINS)
    best = np.sqrt(mean)
    best /= best.mean()
    share = 1 / np.square(best).mean()  # the variance with the best density, of that with uniform positions
    uniform = max(_FLOOR, share**_CAUTION)  # where little can be gained, little is risked
    return (1 - uniform) * best + uniform


def _near(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(places, others) how much what is found at one place says of another: 1 if they are the same."""
    return np.exp(-0.5 * np.square((places[:, None] - others) / _WIDTH))


def _of_pairs(values: np.ndarray) -> np.ndarray:
    """The means of pairs, along the last axis."""
    count = values.shape[-1] // 2 * 2
    return (values[..., 0:count:2] + values[..., 1:count:2]) / 2
