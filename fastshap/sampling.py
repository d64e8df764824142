"""Which random draws a text gets: a pure function of the seed, its token ids, the round and n (docs/adr/0001)."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastshap.reference.philox import BASELINE_DOMAIN, PATH_DOMAIN, one_philox4x32, philox4x32

SAMPLINGS = ("antithetic", "iid")
_FEW = 16  # calls of the generator up to which Python's numbers are faster
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))

# Of path positions: uniform, of a family's width, or in proportion to numbers on equal bins.
PathDensity = float | Sequence[float] | np.ndarray | None


class Samples(NamedTuple):
    """The n samples of one text in one round."""

    stream: tuple[int, int, int]  # two key words, round
    alphas: np.ndarray  # (n,) float32, path positions in (0, 1)
    draws: np.ndarray  # (n,) int64, which noise vector
    signs: np.ndarray  # (n,) float32, 1 or -1
    weights: np.ndarray  # (n,) float32, uniform density over that of the path positions
    members: np.ndarray | None = None  # (n,) int64, which member of a set of baselines; None: the baseline is no set


def text_key(seed: int, input_ids: Sequence[int]) -> tuple[int, int]:
    """The Philox key of a text: the first 8 bytes of SHA-256 over the seed and the ids as little-endian int64."""
    digest = hashlib.sha256(struct.pack(f"<{1 + len(input_ids)}q", seed, *input_ids)).digest()
    k0, k1 = struct.unpack("<II", digest[:8])
    return k0, k1


def draw_samples(
    seed: int,
    input_ids: Sequence[int],
    n: int,
    sampling: str,
    round_: int = 0,
    path_density: PathDensity = None,
    baselines: int | None = None,
) -> Samples:
    """The path positions and noise vectors of one text.

    Args:
        sampling: "iid": uniform path positions, independent noise. "antithetic": one uniform position in each of n equal
            strata; samples 2k and 2k + 1 carry the same noise with opposite signs, an odd last one its own.
        path_density: None: positions uniform. w: of the density proportional to ((1 - a)^2 + (w a)^2)^(-3/2), that is strata of
            equal probability, and weights that keep the expectation (docs/adr/0007). Numbers: of a density in proportion to
            them on equal bins of (0, 1) (docs/adr/0022).
        baselines: k, how many members a set of baselines has: every sample draws one of them, uniformly.
    """
    return draw_all(seed, [input_ids], n, sampling, round_, path_density, baselines)[0]


def draw_all(
    seed: int,
    texts: Sequence[Sequence[int]],
    n: int,
    sampling: str,
    round_: int = 0,
    path_density: PathDensity = None,
    baselines: int | None = None,
) -> list[Samples]:
    """:func:`draw_samples` of many texts at once, given by their token ids. Each may have a density of its own on equal bins:
    ``path_density`` is then an array (texts, bins)."""
    streams = [(*text_key(seed, input_ids), round_) for input_ids in texts]
    alphas = _path_uniforms(streams, n)
    index = np.arange(n)
    if sampling == "antithetic":
        alphas = (index + alphas) / n
        draws, signs = index // 2, 1.0 - 2.0 * (index % 2)
    else:
        draws, signs = index, np.ones(n)
    weights = np.ones_like(alphas)
    if isinstance(path_density, float | int):
        alphas, weights = _towards_baseline(alphas, path_density)
    elif path_density is not None:
        alphas, weights = piecewise(alphas, np.atleast_2d(np.asarray(path_density, np.float64)))
    alphas = np.minimum(alphas, _BELOW_ONE).astype(np.float32)
    draws, signs, weights = draws.astype(np.int64), signs.astype(np.float32), weights.astype(np.float32)
    members = itertools.repeat(None) if baselines is None else iter(_members(streams, n, baselines))
    return [Samples(one, alphas[i], draws, signs, weights[i], next(members)) for i, one in enumerate(streams)]


def _towards_baseline(uniform: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions of density q(a) = c ((1 - a)^2 + (w a)^2)^(-3/2) from uniform ones, by its inverse, and 1 / q(a)."""
    size = 1 + width**2
    slope = ((1 + width) * uniform - 1) / math.sqrt(size)
    alphas = (1 + width * slope / np.sqrt(1 - slope**2)) / size
    alphas = alphas.clip(np.finfo(np.float32).tiny, 1)
    return alphas, (1 + width) / width**2 * ((1 - alphas) ** 2 + (width * alphas) ** 2) ** 1.5


def piecewise(uniform: np.ndarray, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (rows, n) of a density that is constant on equal bins, from uniform ones (rows, n), and 1 / density.

    Args:
        density: (rows, bins) or (1, bins), positive float64; only the proportions within a row matter.
    """
    share = density / density.sum(1, keepdims=True)
    ends = share.cumsum(1)
    bins = share.shape[1]
    if len(share) == 1:
        places = np.searchsorted(ends[0, :-1], uniform, "right")
        share, ends = (np.broadcast_to(one, (len(uniform), bins)) for one in (share, ends))
    else:
        places = np.stack([np.searchsorted(end[:-1], u, "right") for end, u in zip(ends, uniform, strict=True)])
    own, end = (np.take_along_axis(one, places, 1) for one in (share, ends))
    alphas = (places + ((uniform - end) / own + 1).clip(0, 1)) / bins
    return alphas.clip(np.finfo(np.float32).tiny, 1), 1 / (own * bins)


def _path_uniforms(streams: Sequence[tuple[int, int, int]], n: int) -> np.ndarray:
    """(texts, n) float64 in (0, 1): the words' upper 23 bits and a half, exact in float32."""
    return ((_words(streams, n, n, PATH_DOMAIN) >> 9).astype(np.float64) + 0.5) * 2.0**-23


def _members(streams: Sequence[tuple[int, int, int]], n: int, count: int) -> np.ndarray:
    """(texts, n) int64 in [0, count): a word times ``count``, its upper 32 bits of 64."""
    words = _words(streams, n, count, BASELINE_DOMAIN)
    return (words * count) >> 32  # below 2^63, as both are below 2^32 and 2^31


def _words(streams: Sequence[tuple[int, int, int]], n: int, second: int, domain: int) -> np.ndarray:
    """(texts, n) int64: word i % 4 of the call with counter (i // 4, second, 0, 256 * round + domain) for sample i."""
    calls = -(-n // 4)
    if len(streams) * calls <= _FEW:
        each = [
            one_philox4x32(call, second, 0, (round_ << 8) | domain, k0, k1)
            for k0, k1, round_ in streams
            for call in range(calls)
        ]
        words = np.array(each, np.int64).reshape(len(streams), -1)
    else:
        k0, k1, round_ = torch.tensor(streams, device="cpu")[:, None].unbind(2)  # (texts, 1)
        counter = (
            torch.arange(calls, device="cpu")[None],
            torch.tensor([[second]], device="cpu"),
            torch.zeros(1, 1, dtype=torch.int64, device="cpu"),
            (round_ << 8) | domain,
        )
        words = torch.stack(torch.broadcast_tensors(*philox4x32(counter, (k0, k1))), dim=-1).flatten(1).numpy()
    return words[:, :n]
