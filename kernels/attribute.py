"""Gradients to token scores, reduced over the embedding dimension, in one launch and without atomics.

    reduction  input_x_gradient   score[t, r, l]
    sum        yes                sum_d (x[l, d] - b[r, l, d]) g[t, r, l, d]
    sum        no                 sum_d g[t, r, l, d]
    abs_mean   yes                1/D sum_d |z[r, l, d] g[t, r, l, d]|
    abs_mean   no                 1/D sum_d |g[t, r, l, d]|

b is generated again, never kept (docs/adr/0008). A program owns one token: it reads x once for all rows, and generates the
noise of a row, or of a pair of rows, once for all targets.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .philox import block_normals, call_numbers, has_special_functions, lanes

# How a gradient is weighted.
BY_NOTHING, BY_DIFFERENCE, BY_POINT = 0, 1, 2


@triton.jit
def _load(pointer, first, dim, shown, SIZE: tl.constexpr):
    d = first + tl.arange(0, SIZE)
    return tl.load(pointer + d, mask=(d < dim) & shown, other=0.0).to(tl.float32)


@triton.jit
def _way(p_x, p_baseline, baseline, first, dim, shown, BASELINE: tl.constexpr, SIZE: tl.constexpr):
    """x - baseline at one token, zero beyond D."""
    b_way = _load(p_x, first, dim, shown, SIZE)
    if BASELINE == 0:
        b_way = tl.where(first + tl.arange(0, SIZE) < dim, b_way - baseline, 0.0)
    else:
        b_way -= _load(p_baseline, first, dim, shown, SIZE)
    return b_way


@triton.jit
def _noise(position, draw, domain, k0, k1, first, SIZE: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr):
    quad0, quad1 = call_numbers(first // 4, SIZE // 4, WIDE)
    return block_normals(
        quad0, quad0 * 0 + position, quad1, quad1 * 0 + position, draw, domain, k0, k1, SIZE // 4, WIDE, PTX
    )


@triton.jit
def _total(p_gradient, b_weight, first, dim, WEIGHT: tl.constexpr, ABSOLUTE: tl.constexpr, SIZE: tl.constexpr):
    b_terms = _load(p_gradient, first, dim, True, SIZE)
    if WEIGHT != 0:
        b_terms *= b_weight
    if ABSOLUTE:
        b_terms = tl.abs(b_terms)
    return tl.sum(b_terms)


@triton.jit(do_not_specialize=["targets", "rows", "length"])
def attribute_kernel(
    p_gradients,  # (T, R, L, D), with strides
    p_z,  # (R, L, D)
    p_x,  # (M, D)
    p_scores,  # (T, R, L)
    p_token_offsets,  # (N + 1,)
    p_row_offsets,  # (N + 1,)
    p_streams,  # (N, 3)
    p_draws,  # (R,)
    p_signs,  # (R,)
    p_baseline,  # (D,) or (positions, D)
    p_held,  # (M,)
    baseline,
    noise_std,
    stride_target,
    stride_row,
    stride_token,
    targets,
    rows,
    length,
    dim,
    LEFT: tl.constexpr,
    WEIGHT: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    NOISE: tl.constexpr,
    BASELINE: tl.constexpr,  # dimensions of the baseline: 0, 1 or 2
    HELD: tl.constexpr,
    PTX: tl.constexpr,
    FIRST: tl.constexpr,  # D lies in one or two tiles whose sizes are powers of two
    SECOND: tl.constexpr,
    WIDE_FIRST: tl.constexpr,  # half precision, and eight elements a thread or more
    WIDE_SECOND: tl.constexpr,
):
    """scores[:, the text's rows, one column]."""
    column = tl.program_id(0)
    text = tl.program_id(1)
    first_token = tl.load(p_token_offsets + text)
    tokens = (tl.load(p_token_offsets + text + 1) - first_token).to(tl.int32)
    position = column - (length - tokens) if LEFT else column
    first_row = tl.load(p_row_offsets + text)
    last_row = tl.load(p_row_offsets + text + 1)
    shown = (position >= 0) & (position < tokens)
    if HELD and WEIGHT == 1:  # x - b is zero there
        shown &= tl.load(p_held + first_token + position, mask=shown, other=1) == 0
    if not shown:
        for row in range(first_row, last_row):
            p_score = p_scores + row * length + column
            for _ in range(targets):
                tl.store(p_score, 0.0)
                p_score += rows * length
        return

    if WEIGHT == 1:
        p_own = p_x + (first_token + position) * dim
        p_base = p_baseline
        if BASELINE == 2:
            p_base = p_baseline + position.to(tl.int64) * dim
        b_way0 = _way(p_own, p_base, baseline, 0, dim, True, BASELINE, FIRST)
        b_weight0 = b_way0
        b_noise0 = b_way0
        if SECOND:
            b_way1 = _way(p_own, p_base, baseline, FIRST, dim, True, BASELINE, SECOND)
            b_weight1 = b_way1
            b_noise1 = b_way1
        else:
            b_weight1 = 0.0
    else:
        b_weight0 = tl.zeros((FIRST,), tl.float32)
        if SECOND:
            b_weight1 = tl.zeros((SECOND,), tl.float32)
        else:
            b_weight1 = 0.0
    k0 = tl.load(p_streams + text * 3).to(tl.uint32)
    k1 = tl.load(p_streams + text * 3 + 1).to(tl.uint32)
    domain = tl.load(p_streams + text * 3 + 2).to(tl.uint32) * 256
    previous = tl.full((), -1, tl.int32)
    for row in range(first_row, last_row):
        if WEIGHT == 1 and NOISE:
            draw = tl.load(p_draws + row).to(tl.int32)
            if draw != previous:
                b_noise0 = _noise(position, draw, domain, k0, k1, 0, FIRST, WIDE_FIRST, PTX)
                if SECOND:
                    b_noise1 = _noise(position, draw, domain, k0, k1, FIRST, SECOND, WIDE_SECOND, PTX)
            previous = draw
            factor = noise_std * tl.load(p_signs + row)
            b_weight0 = b_way0 - b_noise0 * factor
            if SECOND:
                b_weight1 = b_way1 - b_noise1 * factor
        if WEIGHT == 2:
            p_point = p_z + (row * length + column) * dim
            b_weight0 = _load(p_point, 0, dim, True, FIRST)
            if SECOND:
                b_weight1 = _load(p_point, FIRST, dim, True, SECOND)
        p_gradient = p_gradients + row * stride_row + column.to(tl.int64) * stride_token
        p_score = p_scores + row * length + column
        for _ in range(targets):
            score = _total(p_gradient, b_weight0, 0, dim, WEIGHT, ABSOLUTE, FIRST)
            if SECOND:
                score += _total(p_gradient, b_weight1, FIRST, dim, WEIGHT, ABSOLUTE, SECOND)
            if ABSOLUTE:
                score /= dim
            tl.store(p_score, score)
            p_gradient += stride_target
            p_score += rows * length


def tiles(dim: int) -> tuple[int, int]:
    """One or two powers of two that hold D, with little left over; the second may be 0."""
    whole = max(32, triton.next_power_of_2(dim))
    half = whole // 2
    if dim > 32 and 4 * dim <= 3 * whole:
        return half, max(32, triton.next_power_of_2(dim - half))
    return whole, 0


def warps(first_tile: int) -> int:
    """16 elements of the first tile a thread, so that a token's x and noise stay in registers and the second tile has eight."""
    return min(32, max(1, first_tile // 512))


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
) -> Tensor:
    """Token scores (T, R, L) float32; arguments as for fastshap.reference.attribute, all on one GPU.

    Nothing waits for the device. ``alphas`` are not needed: the noisy baseline comes from its noise.
    """
    targets, rows, length, dim = gradients.shape
    scores = torch.empty(targets, rows, length, dtype=torch.float32, device=gradients.device)
    if scores.numel() == 0:
        return scores
    if gradients.stride(-1) != 1:
        gradients = gradients.contiguous()
    is_tensor = isinstance(baseline, Tensor)
    weight = BY_NOTHING
    if input_x_gradient:
        weight = BY_DIFFERENCE if reduction == "sum" else BY_POINT
    first, second = tiles(dim)
    wide, eight = gradients.element_size() == 2, 8 * lanes() * warps(first)
    with torch.cuda.device_of(gradients):
        attribute_kernel[(length, token_offsets.shape[0] - 1)](
            gradients,
            z.contiguous(),
            x.contiguous(),
            scores,
            token_offsets,
            row_offsets,
            streams,
            draws,
            signs,
            baseline.contiguous() if is_tensor else x,
            x if held is None else held,
            0.0 if is_tensor else baseline,
            noise_std,
            gradients.stride(0),
            gradients.stride(1),
            gradients.stride(2),
            targets,
            rows,
            length,
            dim,
            LEFT=padding_side == "left",
            WEIGHT=weight,
            ABSOLUTE=reduction == "abs_mean",
            NOISE=noise_std != 0,
            BASELINE=baseline.ndim if is_tensor else 0,
            HELD=held is not None,
            PTX=has_special_functions(),
            FIRST=first,
            SECOND=second,
            WIDE_FIRST=wide and first >= eight,
            WIDE_SECOND=wide and second >= eight,
            num_warps=warps(first),
            enable_fp_fusion=True,
        )
    return scores
