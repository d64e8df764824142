"""Noisy baselines and interpolation for the rows of one model call.

b[r, p] = baseline[p] + noise_std * sign[r] * e(stream of the row's text, draw[r], p)      of a set: baseline[member[r], p]
z[r, p] = (1 - alpha[r]) * x[p] + alpha[r] * b[r, p]          z (R, L, D), x (M, D) packed
z[r, p] = x[p] where p is held, and 0 on padding
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastshap.reference.rows import Even, baseline_of, block_noise, blocks, even, members_of, promoted


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
    members: Tensor | None = None,
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
        baseline: a number, (D,) or (positions, D); of a set (k, D) or (k, positions, D).
        noise_std: standard deviation of the noise.
        held: (M,) bool or None: tokens that stay at their own embedding.
        length: L, at least the longest text's number of tokens.
        padding_side: "right" or "left".
        members: (R,) int64: which member of the set a row takes. None: the baseline is no set.

    Returns:
        (R, L, D) in the dtype of x; computed in float32 (in float64 for float64).
    """
    dim = x.shape[1]
    z = x.new_zeros(alphas.shape[0], length, dim)
    layout = even(token_offsets, row_offsets, length, draws)
    if layout is not None:
        _fill(z, x, layout, alphas, streams, signs, baseline, noise_std, held, members)
        return z
    for block in blocks(token_offsets, row_offsets, length, dim, padding_side):
        noise = block_noise(block, streams, draws, signs, dim) if noise_std else [None] * len(block)
        for span, e in zip(block, noise, strict=True):
            alpha = alphas[span.rows, None, None]
            own, point = promoted(x[span.tokens]), z[span.rows, span.columns]
            base = baseline_of(span, baseline, members)
            # Straight into z where it has the precision to compute in.
            there = point if point.dtype == own.dtype else torch.empty_like(point, dtype=own.dtype)
            torch.mul(own, 1 - alpha, out=there)
            if isinstance(base, Tensor):
                there.addcmul_(alpha, base)
            elif base:
                there.add_(alpha * base)
            if e is not None:
                there.add_(e.mul_(alpha * noise_std))
            if held is not None:
                torch.where(held[span.tokens, None], own, there, out=there)
            if there is not point:
                point.copy_(there)
    return z


def _fill(
    z: Tensor,
    x: Tensor,
    layout: Even,
    alphas: Tensor,
    streams: Tensor,
    signs: Tensor,
    baseline: float | Tensor,
    noise_std: float,
    held: Tensor | None,
    members: Tensor | None,
) -> None:
    """The same for texts of one length, many at once."""
    dim, rows, tokens, distinct = x.shape[1], layout.rows, layout.tokens, len(layout.draws)
    base = baseline
    if members is None and isinstance(baseline, Tensor) and baseline.ndim == 2:
        base = promoted(baseline)[:tokens]
    for part in layout.parts(dim):
        texts = part.stop - part.start
        here = slice(part.start * rows, part.stop * rows)
        own = promoted(x[part.start * tokens : part.stop * tokens]).view(texts, 1, tokens, dim)
        point, alpha = z[here].view(texts, rows, tokens, dim), alphas[here].view(texts, rows, 1, 1)
        there = point if point.dtype == own.dtype else torch.empty_like(point, dtype=own.dtype)
        torch.mul(own, 1 - alpha, out=there)
        if members is not None:
            chosen = members_of(baseline, members[here], tokens)  # type: ignore[arg-type]  # a set is a tensor
            there.addcmul_(alpha, chosen.view(texts, rows, -1, dim))
        elif isinstance(base, Tensor):
            there.addcmul_(alpha, promoted(base))
        elif base:
            there.add_(alpha * base)
        if noise_std:
            e = layout.noise(streams, part, dim)
            scale = alpha * noise_std * signs[here].view(texts, rows, 1, 1)
            if layout.in_pairs:
                paired = there.view(texts, distinct, 2, tokens, dim)
                paired.addcmul_(e.unsqueeze(2), scale.view(texts, distinct, 2, 1, 1))
            else:
                there.addcmul_(e if distinct == rows else e[:, layout.member], scale)
        if held is not None:
            kept = held[part.start * tokens : part.stop * tokens].view(texts, 1, tokens, 1)
            torch.where(kept, own, there, out=there)
        if there is not point:
            point.copy_(there)
