"""Noisy baselines and interpolation for the rows of one model call.

b[r, p] = baseline[p] + noise_std * sign[r] * e(stream of the row's text, draw[r], p)
z[r, p] = (1 - alpha[r]) * x[p] + alpha[r] * b[r, p]          z (R, L, D), x (M, D) packed
z[r, p] = x[p] where p is held, and 0 on padding
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastshap.reference.rows import baseline_of, block_noise, blocks, promoted


def perturb(
    x: Tensor,
    *,
    token_offsets: Tensor,
    row_offsets: Tensor,
    alphas: Tensor,
    streams: Tensor,
    draws: Tensor,
    signs: Tensor,
    baseline: float | Tensor,
    noise_std: float,
    held: Tensor | None,
    length: int,
    padding_side: str,
) -> Tensor:
    """The perturbed embeddings of R rows.

    Args:
        x: (M, D) packed embeddings of N texts, floating point.
        token_offsets: (N + 1,) int64.
        row_offsets: (N + 1,) int64; the last entry is R.
        alphas: (R,) float32, path positions in [0, 1]: 0 is x, 1 the noisy baseline.
        streams: (N, 3) int64: two key words and the round of each text.
        draws: (R,) int64: which noise vector of its text a row takes.
        signs: (R,) float32, 1 or -1.
        baseline: a number, (D,) or (positions, D).
        noise_std: standard deviation of the noise.
        held: (M,) bool or None: tokens that stay at their own embedding.
        length: L, at least the longest text's number of tokens.
        padding_side: "right" or "left".

    Returns:
        (R, L, D) in the dtype of x; computed in float32 (in float64 for float64).
    """
    dim = x.shape[1]
    z = x.new_zeros(alphas.shape[0], length, dim)
    for block in blocks(token_offsets, row_offsets, length, dim, padding_side):
        noise = block_noise(block, streams, draws, signs, dim) if noise_std else [None] * len(block)
        for span, e in zip(block, noise, strict=True):
            alpha = alphas[span.rows, None, None]
            own = promoted(x[span.tokens])
            point = own * (1 - alpha)
            base = baseline_of(span, baseline)
            point.addcmul_(alpha, base) if isinstance(base, Tensor) else point.add_(alpha * base)
            if e is not None:
                point.add_(e.mul_(alpha * noise_std))
            if held is not None:
                point = torch.where(held[span.tokens, None], own, point)
            z[span.rows, span.columns] = point.to(z.dtype)
    return z
