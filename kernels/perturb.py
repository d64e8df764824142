"""Noisy baselines and interpolation for the rows of one model call, in one launch.

    b[r, p] = baseline[p] + noise_std * sign[r] * e(stream of the row's text, draw[r], p)      of a set: baseline[member[r], p]
    z[r, c] = x[p] + alpha[r] (b[r, p] - x[p])         z (R, L, D), x (M, D) packed; column c holds position p of the row's text
    z[r, c] = x[p] where p is held, and 0 on padding

A program owns 256 neighbouring elements of a text's (L, D) and writes them in rows of the text, in all of them where there are
programs enough: x is read once for all its rows, and rows that follow each other with one noise vector, as pairs of opposite
signs do, share its generation. A row does not depend on who shares its program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import has_special_functions, lanes, packed
from .philox import block_normals, call_numbers
from .sharing import rows_of_program, splits

# That a multiprocessor holds at once, with up to 64 registers a thread.
WARPS_OF_A_PROCESSOR = 32


def calls(wide: bool) -> int:
    """Philox calls of a program, so that a lane moves 128 bits at once: of half precision eight elements, of float32 four."""
    return 128 if wide and lanes() == 64 else 64


@triton.jit(
    do_not_specialize=["length", "positions"],
    do_not_specialize_on_alignment=[
        *("p_token_offsets", "p_row_offsets", "p_alphas", "p_streams", "p_draws", "p_signs", "p_held", "p_members"),
    ],
)
def perturb_kernel(
    p_x,  # (M, D)
    p_z,  # (R, L, D)
    p_token_offsets,  # (N + 1,)
    p_row_offsets,  # (N + 1,)
    p_alphas,  # (R,)
    p_streams,  # (N, 3)
    p_draws,  # (R,)
    p_signs,  # (R,)
    p_baseline,  # (D,) or (positions, D), of a set (k, D) or (k, positions, D); None: a number
    p_held,  # (M,); None: no token is held
    baseline,
    noise_std,
    length,
    p_members,  # (R,); None: the baseline is no set
    positions,  # of a set's members; None where they have none
    LEFT: tl.constexpr,
    NOISE: tl.constexpr,
    BY_POSITION: tl.constexpr,  # whether the baseline has a row for each position
    DIM: tl.constexpr,
    WIDE: tl.constexpr,  # half precision
    PTX: tl.constexpr,
    CALLS: tl.constexpr,
):
    """z[:, 64 calls] of one text."""
    text = tl.program_id(1)
    first_call = tl.program_id(0) * CALLS
    first_token = tl.load(p_token_offsets + text)
    tokens = (tl.load(p_token_offsets + text + 1) - first_token).to(tl.int32)
    start = length - tokens if LEFT else 0
    calls_a_token: tl.constexpr = (DIM + 3) // 4

    lane = tl.arange(0, CALLS * 4)
    column = (first_call + lane // 4) // calls_a_token
    d = (first_call + lane // 4) % calls_a_token * 4 + lane % 4
    if DIM % 4 == 0:  # the calls of neighbouring tokens lie end to end
        element = first_call.to(tl.int64) * 4 + lane
        inside = element < length.to(tl.int64) * DIM
    else:
        element = column.to(tl.int64) * DIM + d
        inside = (column < length) & (d < DIM)
    source = element - start.to(tl.int64) * DIM  # among the text's own elements
    shown = inside & (source >= 0) & (source < tokens.to(tl.int64) * DIM)
    b_x = tl.load(p_x + first_token * DIM + source, mask=shown, other=0.0).to(tl.float32)
    b_base = baseline
    if p_baseline is not None and p_members is None and not BY_POSITION:
        b_base = tl.load(p_baseline + d, mask=shown, other=0.0).to(tl.float32)
    if p_baseline is not None and p_members is None and BY_POSITION:
        b_base = tl.load(p_baseline + source, mask=shown, other=0.0).to(tl.float32)
    moving = shown
    if p_held is not None:
        moving = shown & (tl.load(p_held + first_token + column - start, mask=shown, other=1) == 0)
    b_way = tl.where(moving, b_base - b_x, 0.0)

    call0, call1 = call_numbers(first_call, CALLS, WIDE)
    quad0, position0 = call0 % calls_a_token, call0 // calls_a_token - start
    quad1, position1 = call1 % calls_a_token, call1 // calls_a_token - start
    k0 = tl.load(p_streams + text * 3).to(tl.uint32)
    k1 = tl.load(p_streams + text * 3 + 1).to(tl.uint32)
    domain = tl.load(p_streams + text * 3 + 2).to(tl.uint32) * 256
    previous = tl.full((), -1, tl.int32)
    b_noise = tl.zeros((CALLS * 4,), tl.float32)
    a_row = length.to(tl.int64) * DIM
    first_row, end = rows_of_program(p_row_offsets, text)
    for row in range(first_row, end):
        alpha = tl.load(p_alphas + row)
        if p_members is not None:
            member = tl.load(p_members + row)
            if BY_POSITION:
                p_base = p_baseline + member * positions * DIM + source
            else:
                p_base = p_baseline + member * DIM + d
            b_way = tl.where(moving, tl.load(p_base, mask=moving, other=0.0).to(tl.float32) - b_x, 0.0)
        b_z = b_x + b_way * alpha
        if NOISE:
            draw = tl.load(p_draws + row).to(tl.int32)
            sign = tl.load(p_signs + row)
            if draw != previous:
                b_noise = block_normals(quad0, position0, quad1, position1, draw, domain, k0, k1, CALLS, WIDE, PTX)
                b_noise = tl.where(moving, b_noise, 0.0)
            previous = draw
            b_z += b_noise * (alpha * noise_std * sign)
        tl.store(p_z + row * a_row + element, b_z.to(p_z.dtype.element_ty), mask=inside)


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
    """Perturbed embeddings (R, L, D) in the dtype of x; arguments as for fastshap.reference.perturb, all on one GPU.

    Nothing waits for the device. x is float32, float16 or bfloat16; offsets, streams, draws and members int64; alphas and signs
    float32.
    """
    texts, dim = token_offsets.shape[0] - 1, x.shape[1]
    z = x.new_empty(alphas.shape[0], length, dim)
    if z.numel() == 0:
        return z
    is_tensor, wide = isinstance(baseline, Tensor), x.element_size() == 2
    programs = triton.cdiv(length * triton.cdiv(dim, 4), calls(wide))
    shares = splits(programs * texts, texts, alphas.shape[0], x.device, WARPS_OF_A_PROCESSOR)
    grid = (programs, texts, shares)
    with torch.cuda.device_of(x):
        perturb_kernel[grid](
            packed(x),
            z,
            token_offsets,
            row_offsets,
            alphas,
            streams,
            draws,
            signs,
            packed(baseline) if is_tensor else None,
            held,
            0.0 if is_tensor else baseline,
            noise_std,
            length,
            members,
            baseline.shape[1] if members is not None and baseline.ndim == 3 else None,
            LEFT=padding_side == "left",
            NOISE=noise_std != 0,
            BY_POSITION=is_tensor and baseline.ndim == (2 if members is None else 3),
            DIM=dim,
            WIDE=wide,
            PTX=has_special_functions(),
            CALLS=calls(wide),
            num_warps=1,
            enable_fp_fusion=True,
        )
    return z
