"""Gradients to token scores, reduced over the embedding dimension.

    reduction  input_x_gradient   score[t, r, l]
    sum        yes                sum_d (x[l, d] - b[r, l, d]) g[t, r, l, d]
    sum        no                 sum_d g[t, r, l, d]
    abs_mean   yes                1/D sum_d |z[r, l, d] g[t, r, l, d]|
    abs_mean   no                 1/D sum_d |g[t, r, l, d]|

x - b is (x - z) / alpha, which needs no noise but divides the rounding of z by alpha. In float32 that is done down to alpha =
2^-7 (an error of 2^-17 of the embedding); below, and always for float16 and bfloat16, the noise is generated again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastshap.reference.rows import Even, Span, baseline_of, block_noise, blocks, even, members_of, promoted

_SMALLEST_ALPHA = 2.0**-7


def attribute(
    gradients: Tensor,
    z: Tensor,
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
    padding_side: str,
    reduction: str,
    input_x_gradient: bool,
    members: Tensor | None = None,
) -> Tensor:
    """Token scores of every row and target.

    Args:
        gradients: (T, R, L, D), of T targets' scores with respect to z.
        z: (R, L, D), what :func:`perturb` returned for the same arguments.
        reduction: "sum" or "abs_mean".
        input_x_gradient: whether the gradient is multiplied, as in the table above.
        x, token_offsets, row_offsets, alphas, streams, draws, signs, baseline, noise_std, held, padding_side, members: as
            for :func:`fastshap.reference.perturb.perturb`.

    Returns:
        (T, R, L) float32, zero on padding.
    """
    targets, rows, length, dim = gradients.shape
    scores = torch.zeros(targets, rows, length, dtype=torch.float32, device=gradients.device)
    layout = even(token_offsets, row_offsets, length, draws)
    if layout is not None:
        differs = input_x_gradient and reduction == "sum"
        noise = (streams, signs, baseline, noise_std, held, members) if differs else None
        _fill(scores, gradients, z, x, layout, alphas, noise, reduction, input_x_gradient)
        return scores
    for block in blocks(token_offsets, row_offsets, length, dim, padding_side):
        factors: list[Tensor | None] = [None] * len(block)
        if input_x_gradient and reduction == "sum":
            factors = [
                *_differences(
                    block,
                    z,
                    x,
                    alphas,
                    streams,
                    draws,
                    signs,
                    baseline=baseline,
                    noise_std=noise_std,
                    held=held,
                    members=members,
                )
            ]
        elif input_x_gradient:
            factors = [promoted(z[span.rows, span.columns]) for span in block]
        for span, factor in zip(block, factors, strict=True):
            for target in range(targets):
                product = promoted(gradients[target, span.rows, span.columns])
                if factor is not None:
                    product = product * factor
                score = product.sum(-1) if reduction == "sum" else product.abs().mean(-1)
                scores[target, span.rows, span.columns] = score
    return scores


def _differences(
    block: list[Span],
    z: Tensor,
    x: Tensor,
    alphas: Tensor,
    streams: Tensor,
    draws: Tensor,
    signs: Tensor,
    *,
    baseline: float | Tensor,
    noise_std: float,
    held: Tensor | None,
    members: Tensor | None,
) -> list[Tensor]:
    """x - b of every span, (rows, tokens, D) float32."""
    dim = x.shape[1]
    coarse = z.dtype in (torch.float16, torch.bfloat16)
    if not coarse:
        again = [_row_span(span, row) for span in block for row in _rows_below(alphas, span)]
    else:
        again = block
    noise: list[Tensor | None] = [None] * len(again)
    if noise_std and again:
        noise = list(block_noise(again, streams, draws, signs, dim))
    exact: list[Tensor] = []
    for span, e in zip(again, noise, strict=True):
        base = baseline_of(span, baseline, members)
        noisy = base if e is None else e.mul_(noise_std).add_(base)
        difference = (promoted(x[span.tokens]) - noisy).expand(span.rows.stop - span.rows.start, -1, -1)
        if held is not None:
            difference = difference * ~held[span.tokens, None]
        exact.append(difference)
    if coarse:
        return exact
    differences: list[Tensor] = []
    remaining = iter(exact)
    for span in block:
        difference = x[span.tokens] - z[span.rows, span.columns]
        difference /= alphas[span.rows, None, None].clamp_min(_SMALLEST_ALPHA)
        for row in _rows_below(alphas, span):
            difference[row - span.rows.start] = next(remaining)[0]
        differences.append(difference)
    return differences


def _rows_below(alphas: Tensor, span: Span) -> list[int]:
    rows = (alphas[span.rows] < _SMALLEST_ALPHA).nonzero().flatten().tolist()
    return [span.rows.start + row for row in rows]


def _row_span(span: Span, row: int) -> Span:
    return Span(span.text, span.tokens, slice(row, row + 1), span.columns)


def _fill(
    scores: Tensor,
    gradients: Tensor,
    z: Tensor,
    x: Tensor,
    layout: Even,
    alphas: Tensor,
    noise: tuple[Tensor, Tensor, float | Tensor, float, Tensor | None, Tensor | None] | None,
    reduction: str,
    input_x_gradient: bool,
) -> None:
    """The same for texts of one length, many at once. ``noise``: what x - b takes, where it is the factor."""
    dim = x.shape[1]
    for part in layout.parts(dim):
        here = slice(part.start * layout.rows, part.stop * layout.rows)
        factor, divisor = promoted(z[here]), None
        if noise is not None:
            own = promoted(x[part.start * layout.tokens : part.stop * layout.tokens]).view(-1, layout.tokens, dim)
            alpha = alphas[here]
            coarse = z.dtype in (torch.float16, torch.bfloat16)
            again = torch.ones_like(alpha, dtype=torch.bool) if coarse else alpha < _SMALLEST_ALPHA
            chosen = again.nonzero().flatten()
            exact = _exact(own[chosen // layout.rows], chosen + here.start, layout, *noise)
            if coarse:
                factor = exact
            else:
                factor = (own[:, None] - factor.view(-1, layout.rows, layout.tokens, dim)).flatten(0, 1)
                factor.index_copy_(0, chosen, exact)
                divisor = alpha.masked_fill(again, 1)[:, None]
        for target in range(len(gradients)):
            product = promoted(gradients[target, here])
            if input_x_gradient:
                # The last product takes the place of its factor, unless that is z itself.
                last = target + 1 == len(gradients) and (noise is not None or factor.dtype != z.dtype)
                product = factor.mul_(product) if last else product * factor
            score = product.sum(-1) if reduction == "sum" else product.abs().mean(-1)
            scores[target, here] = score if divisor is None else score / divisor


def _exact(
    own: Tensor,
    rows: Tensor,
    layout: Even,
    streams: Tensor,
    signs: Tensor,
    baseline: float | Tensor,
    noise_std: float,
    held: Tensor | None,
    members: Tensor | None,
) -> Tensor:
    """x - b of some rows of the call (m,), whose embeddings are ``own`` (m, L, D)."""
    _, tokens, dim = own.shape
    base = promoted(baseline) if isinstance(baseline, Tensor) and members is None else baseline
    if members is not None:
        base = members_of(baseline, members[rows], tokens)  # type: ignore[arg-type]  # a set is a tensor
    elif isinstance(base, Tensor) and base.ndim == 2:
        base = base[:tokens]
    difference = own - base
    if noise_std and len(rows):
        difference -= layout.noise_of(rows, streams, dim).mul_(noise_std * signs[rows, None, None])
    if held is not None:
        difference *= ~held.view(-1, tokens)[rows // layout.rows, :, None]
    return difference
