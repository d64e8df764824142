"""Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and normals from it by Box-Muller.

    words(stream, draw, position, q) = philox(counter=(q, position, draw, 256 * round + domain), key=(k0, k1))
    normals at dimensions 4q .. 4q+3 = r(w0) cos(w1), r(w0) sin(w1), r(w2) cos(w3), r(w2) sin(w3)
    r(w) = sqrt(-2 ln((w + 1/2) / 2^32)),   the angle of w is 2 pi w / 2^32

The layout is fixed for good (docs/adr/0001-random-numbers.md); tests/operators/test_philox.py holds golden vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NOISE_DOMAIN, PATH_DOMAIN, BASELINE_DOMAIN = 0, 1, 2

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_HALF, _LOWER = np.array(32, np.uint64), np.array(_MASK, np.uint64)
# Philox calls per pass: the working set (six int64 tensors) then stays in the cache.
_CALLS_PER_PASS = 1 << 15
_FEW = 1 << 11  # calls up to which NumPy is faster


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four 32-bit words of Philox4x32-10 as int64 tensors in [0, 2^32).

    Args:
        counter: four int64 tensors in [0, 2^32), shapes that broadcast together.
        key: two int64 tensors in [0, 2^32), likewise.
    """
    words = (*counter, *key)
    if counter[0].is_cpu and not torch.compiler.is_compiling():  # inductor has no code for NumPy's uint64
        numbers = [part.numpy() for part in words]
        if (together := np.broadcast(*numbers)).size <= _FEW:
            return tuple(torch.from_numpy(word.view(np.int64)) for word in _few(numbers, together.shape))
    shape = torch.broadcast_shapes(*(part.shape for part in words))
    keys = [_keys(word, weyl) for word, weyl in zip(key, _WEYL, strict=True)]
    # In place, so that all stays in the cache.
    c0, c1, c2, c3 = (part.expand(shape).clone() for part in counter)
    p0, p1 = torch.empty_like(c0), torch.empty_like(c0)
    for k0, k1 in zip(*keys, strict=True):
        # A product of two 32-bit numbers wraps in int64, but its 64 bits are right.
        torch.mul(c0, _MULTIPLIERS[0], out=p0)
        torch.mul(c2, _MULTIPLIERS[1], out=p1)
        _mix(p1, c1, k0, c0)
        _mix(p0, c3, k1, c2)
        torch.bitwise_and(p1, _MASK, out=c1)
        torch.bitwise_and(p0, _MASK, out=c3)
    return c0, c1, c2, c3


def _few(words: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """(4, ...) uint64: the same for few counters on a CPU, where calling NumPy takes a third of the time that PyTorch takes.

    Of the words that are multiplied, of the others, and of the keys there are two each, so that one operator serves both.
    """
    factors, others, keys, multipliers = (np.empty((2, *shape), np.uint64) for _ in range(4))
    factors[0], others[0], factors[1], others[1], keys[0], keys[1] = words
    multipliers[0], multipliers[1] = _MULTIPLIERS
    weyl = np.multiply.outer(np.arange(10, dtype=np.uint64), np.array(_WEYL, np.uint64))
    for key in (keys + weyl.reshape(10, 2, *[1] * len(shape))) & _LOWER:
        products = (factors * multipliers)[::-1]
        factors = (products >> _HALF) ^ others ^ key
        others = products & _LOWER
    return np.stack((factors[0], others[0], factors[1], others[1]))


def one_philox4x32(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]:
    """The same for one counter and key, of which a few take less time so."""
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _keys(word: Tensor, weyl: int) -> tuple[Tensor, ...]:
    """A key's word in each of the ten rounds."""
    rounds = torch.arange(10, device=word.device).view(10, *[1] * word.ndim)
    return word.add(rounds, alpha=weyl).bitwise_and_(_MASK).unbind(0)


def _mix(product: Tensor, word: Tensor, key: Tensor, out: Tensor) -> None:
    """The product's upper half, xor word and key."""
    torch.bitwise_right_shift(product, 32, out=out)
    out.bitwise_and_(_MASK).bitwise_xor_(word).bitwise_xor_(key)


def _box_muller(radius_word: Tensor, angle_word: Tensor, cosine_out: Tensor, sine_out: Tensor) -> None:
    radius = radius_word.float().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    # As a signed number the angle lies in [-pi, pi), where float32 is finest.
    angle = angle_word.bitwise_xor_(0x80000000).sub_(0x80000000).float().mul_(math.pi * 2.0**-31)
    torch.mul(radius, angle.cos(), out=cosine_out)
    torch.mul(radius, angle.sin_(), out=sine_out)


def normals(streams: Tensor, draws: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Standard normals, one vector of ``dim`` for each of K tokens.

    Args:
        streams: (K, 3) int64: the two key words of the token's text and the round.
        draws: (K,) int64: which noise vector of the text.
        positions: (K,) int64: the token's position among the text's unpadded tokens.
        dim: D, the embedding dimension.

    Returns:
        (K, D) float32 on the device of ``draws``.
    """
    tokens, calls = draws.shape[0], -(-dim // 4)
    out = torch.empty(tokens, calls, 4, dtype=torch.float32, device=draws.device)
    q = torch.arange(calls, device=draws.device)[None, :]
    step = max(1, _CALLS_PER_PASS // max(calls, 1))
    for lo in range(0, tokens, step):
        part = slice(lo, lo + step)
        k0, k1, rounds = (column[:, None] for column in streams[part].unbind(1))
        counter = (q, positions[part, None], draws[part, None], (rounds << 8) | NOISE_DOMAIN)
        w0, w1, w2, w3 = philox4x32(counter, (k0, k1))
        chunk = out[part]
        _box_muller(w0, w1, chunk[..., 0], chunk[..., 1])
        _box_muller(w2, w3, chunk[..., 2], chunk[..., 3])
    return out.view(tokens, calls * 4)[:, :dim]
