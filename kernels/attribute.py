"""Gradients to token scores, reduced over the embedding dimension, in one launch and without atomics.

    reduction  input_x_gradient   score[t, r, l]
    sum        yes                sum_d (x[l, d] - b[r, l, d]) g[t, r, l, d]
    sum        no                 sum_d g[t, r, l, d]
    abs_mean   yes                1/D sum_d |z[r, l, d] g[t, r, l, d]|
    abs_mean   no                 1/D sum_d |g[t, r, l, d]|

b is generated again, never kept (docs/adr/0008); of a set of baselines a row reads its member. A program owns one token and
rows of its text, all of them where there are programs enough: it reads x once for all its rows, and generates the noise of a
row, or of a pair of rows, once for all targets. A row's scores do not depend on who shares its program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import generation, has_special_functions, lanes, packed, strided
from .philox import block_normals, call_numbers
from .sharing import rows_of_program, splits

# How a gradient is weighted.
BY_NOTHING, BY_DIFFERENCE, BY_POINT = 0, 1, 2
# That a multiprocessor holds at once, with up to 128 registers a thread.
WARPS_OF_A_PROCESSOR = 16


@triton.jit
def _load(pointer, FIRST: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr):
    d = FIRST + tl.arange(0, SIZE)
    if FIRST + SIZE <= DIM:
        b_values = tl.load(pointer + d)
    else:
        b_values = tl.load(pointer + d, mask=d < DIM, other=0.0)
    return b_values


@triton.jit
def _way(p_x, p_baseline, baseline, FIRST: tl.constexpr, SIZE: tl.constexpr, DIM: tl.constexpr):
    """x - baseline at one token, zero beyond D."""
    b_way = _load(p_x, FIRST, SIZE, DIM).to(tl.float32)
    if p_baseline is not None:
        b_way -= _load(p_baseline, FIRST, SIZE, DIM).to(tl.float32)
    elif FIRST + SIZE <= DIM:
        b_way -= baseline
    else:
        b_way = tl.where(FIRST + tl.arange(0, SIZE) < DIM, b_way - baseline, 0.0)
    return b_way


@triton.jit
def _noise(
    position, draw, domain, k0, k1, FIRST: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr
):
    quad0, quad1 = call_numbers(FIRST // 4, SIZE // 4, WIDE)
    return block_normals(
        quad0, quad0 * 0 + position, quad1, quad1 * 0 + position, draw, domain, k0, k1, SIZE // 4, WIDE, PTX
    )


@triton.jit
def _total(b_gradient, b_weight, WEIGHT: tl.constexpr, ABSOLUTE: tl.constexpr):
    b_terms = b_gradient.to(tl.float32)
    if WEIGHT != 0:
        b_terms *= b_weight
    if ABSOLUTE:
        b_terms = tl.abs(b_terms)
    return tl.sum(b_terms)


@triton.jit(
    do_not_specialize=["stride_target", "stride_row", "stride_token", "targets", "rows", "length", "positions"],
    do_not_specialize_on_alignment=[
        *("p_scores", "p_token_offsets", "p_row_offsets", "p_streams", "p_draws", "p_signs", "p_held", "p_members"),
    ],
)
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
    p_baseline,  # (D,) or (positions, D), of a set (k, D) or (k, positions, D); None: a number
    p_held,  # (M,); None: no token is held
    baseline,
    noise_std,
    stride_target: tl.int64,  # all three in units of UNIT elements
    stride_row: tl.int64,
    stride_token: tl.int64,
    targets,
    rows,
    length,
    p_members,  # (R,); None: the baseline is no set
    positions,  # of a set's members; None where they have none
    LEFT: tl.constexpr,
    WEIGHT: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    NOISE: tl.constexpr,
    BY_POSITION: tl.constexpr,  # whether the baseline has a row for each position
    PTX: tl.constexpr,
    HALF: tl.constexpr,  # half precision
    UNIT: tl.constexpr,  # elements of 128 bits where D is a multiple of it, else 1
    DIM: tl.constexpr,
    FIRST: tl.constexpr,  # D lies in one or two tiles whose sizes are powers of two
    SECOND: tl.constexpr,
    WIDE_FIRST: tl.constexpr,  # half precision, and eight of its elements a thread or more
    WIDE_SECOND: tl.constexpr,
):
    """scores[:, some of the text's rows, one column]."""
    column = tl.program_id(0)
    text = tl.program_id(1)
    first_token = tl.load(p_token_offsets + text)
    tokens = (tl.load(p_token_offsets + text + 1) - first_token).to(tl.int32)
    position = column - (length - tokens) if LEFT else column
    first_row, end = rows_of_program(p_row_offsets, text)
    shown = (position >= 0) & (position < tokens)
    if p_held is not None and WEIGHT == 1:  # x - b is zero there
        shown &= tl.load(p_held + first_token + position, mask=shown, other=1) == 0
    if not shown:
        for row in range(first_row, end):
            p_score = p_scores + (row * length + column)
            for _ in range(targets):
                tl.store(p_score, 0.0)
                p_score += rows * length
        return

    if WEIGHT == 1:
        p_own = p_x + (first_token + position) * DIM
        p_base = p_baseline
        if BY_POSITION:
            p_base += position.to(tl.int64) * DIM
        if p_members is None:
            b_way0 = _way(p_own, p_base, baseline, 0, FIRST, DIM)
        else:
            b_way0 = _load(p_own, 0, FIRST, DIM).to(tl.float32)  # x, from which a row takes its member
        b_weight0 = b_way0
        b_noise0 = b_way0
        if SECOND:
            if p_members is None:
                b_way1 = _way(p_own, p_base, baseline, FIRST, SECOND, DIM)
            else:
                b_way1 = _load(p_own, FIRST, SECOND, DIM).to(tl.float32)
            b_weight1 = b_way1
            b_noise1 = b_way1
        k0 = tl.load(p_streams + text * 3).to(tl.uint32)
        k1 = tl.load(p_streams + text * 3 + 1).to(tl.uint32)
        p_draw, p_sign = p_draws + first_row, p_signs + first_row
        domain = tl.load(p_streams + text * 3 + 2).to(tl.uint32) * 256
    else:
        b_weight0 = tl.zeros((FIRST,), tl.float32)
        if SECOND:
            b_weight1 = tl.zeros((SECOND,), tl.float32)
    previous = tl.full((), -1, tl.int32)
    p_row = p_gradients + (first_row * stride_row + column * stride_token) * UNIT
    for row in range(first_row, end):
        p_gradient = p_row
        p_row += stride_row * UNIT
        # A row's gradient is on its way before its noise is made: in machine code the second tile of float32 is, too, and the
        # noise takes fewer registers where the load is written below it.
        b_gradient0 = _load(p_gradient, 0, FIRST, DIM)
        if SECOND and HALF:
            b_gradient1 = _load(p_gradient, FIRST, SECOND, DIM)
        if WEIGHT == 1 and NOISE:
            draw = tl.load(p_draw).to(tl.int32)
            sign = tl.load(p_sign)
            if draw != previous:
                b_noise0 = _noise(position, draw, domain, k0, k1, 0, FIRST, WIDE_FIRST, PTX)
                if SECOND:
                    b_noise1 = _noise(position, draw, domain, k0, k1, FIRST, SECOND, WIDE_SECOND, PTX)
            previous = draw
            p_draw += 1
            p_sign += 1
            factor = noise_std * sign
            if p_members is None:
                b_weight0 = b_way0 - b_noise0 * factor
                if SECOND:
                    b_weight1 = b_way1 - b_noise1 * factor
        if WEIGHT == 1 and p_members is not None:  # below the noise, which takes the most registers
            if BY_POSITION:
                p_member = p_base + tl.load(p_members + row) * positions * DIM
            else:
                p_member = p_base + tl.load(p_members + row) * DIM
            b_weight0 = b_way0 - _load(p_member, 0, FIRST, DIM).to(tl.float32)
            if SECOND:
                b_weight1 = b_way1 - _load(p_member, FIRST, SECOND, DIM).to(tl.float32)
            if NOISE:
                b_weight0 -= b_noise0 * factor
                if SECOND:
                    b_weight1 -= b_noise1 * factor
        if WEIGHT == 2:
            p_point = p_z + (row * length + column).to(tl.int64) * DIM
            b_weight0 = _load(p_point, 0, FIRST, DIM).to(tl.float32)
            if SECOND:
                b_weight1 = _load(p_point, FIRST, SECOND, DIM).to(tl.float32)
        p_score = p_scores + (row * length + column)
        if SECOND and not HALF:
            b_gradient1 = _load(p_gradient, FIRST, SECOND, DIM)
        score = _total(b_gradient0, b_weight0, WEIGHT, ABSOLUTE)
        if SECOND:
            score += _total(b_gradient1, b_weight1, WEIGHT, ABSOLUTE)
        if ABSOLUTE:
            score /= DIM
        tl.store(p_score, score)
        for _ in range(1, targets):
            p_gradient += stride_target * UNIT
            p_score += rows * length
            score = _total(_load(p_gradient, 0, FIRST, DIM), b_weight0, WEIGHT, ABSOLUTE)
            if SECOND:
                score += _total(_load(p_gradient, FIRST, SECOND, DIM), b_weight1, WEIGHT, ABSOLUTE)
            if ABSOLUTE:
                score /= DIM
            tl.store(p_score, score)


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


def at_most_registers(second_tile: int, half: bool, generation: int, of_a_set: bool) -> dict[str, int]:
    """A bound for ptxas, which takes more for the early gradient than it needs: at least 16 warps share a multiprocessor.

    Found with ptxas 12.9, so that nothing spills; for generation 10 it takes more, and for members of a set.
    """
    if generation == 0:
        return {}
    if of_a_set:
        return {"maxnreg": 144 if second_tile else 112}
    if second_tile:
        return {"maxnreg": 124 if half else 128}
    if generation < 10:
        return {"maxnreg": 80 if half else 96}
    return {"maxnreg": 96 if half else 104}


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
    """Token scores (T, R, L) float32; arguments as for fastshap.reference.attribute, all on one GPU.

    Nothing waits for the device. ``alphas`` are not needed: the noisy baseline comes from its noise.
    """
    targets, rows, length, dim = gradients.shape
    scores = torch.empty(targets, rows, length, dtype=torch.float32, device=gradients.device)
    if scores.numel() == 0:
        return scores
    weight = BY_NOTHING
    if input_x_gradient:
        weight = BY_DIFFERENCE if reduction == "sum" else BY_POINT
    by_difference, by_tensor = weight == BY_DIFFERENCE, weight == BY_DIFFERENCE and isinstance(baseline, Tensor)
    unit = 16 // gradients.element_size()
    unit = 1 if dim % unit else unit
    gradients = strided(gradients, unit)
    strides = [stride // unit for stride in gradients.stride()]
    first, second = tiles(dim)
    half, eight = gradients.element_size() == 2, 8 * lanes() * warps(first)
    texts = token_offsets.shape[0] - 1
    shares = splits(warps(first) * length * texts, texts, rows, gradients.device, WARPS_OF_A_PROCESSOR)
    grid = (length, texts, shares)
    with torch.cuda.device_of(gradients):
        attribute_kernel[grid](
            gradients,
            packed(z) if weight == BY_POINT else None,
            packed(x) if by_difference else None,
            scores,
            token_offsets,
            row_offsets,
            streams if by_difference else None,
            draws if by_difference else None,
            signs if by_difference else None,
            packed(baseline) if by_tensor else None,
            held if by_difference else None,
            0.0 if isinstance(baseline, Tensor) else baseline,
            noise_std,
            *strides[:3],
            targets,
            rows,
            length,
            members if by_difference else None,
            baseline.shape[1] if by_tensor and members is not None and baseline.ndim == 3 else None,
            LEFT=padding_side == "left",
            WEIGHT=weight,
            ABSOLUTE=reduction == "abs_mean",
            NOISE=noise_std != 0,
            BY_POSITION=by_tensor and baseline.ndim == (2 if members is None else 3),
            PTX=has_special_functions(),
            HALF=half,
            UNIT=unit,
            DIM=dim,
            FIRST=first,
            SECOND=second,
            WIDE_FIRST=half and first >= eight,
            WIDE_SECOND=half and second >= eight,
            num_warps=warps(first),
            **(
                at_most_registers(second, half, generation(gradients.device), members is not None)
                if by_difference and noise_std != 0 and warps(first) < 32
                else {}
            ),
            enable_fp_fusion=True,
        )
    return scores
