"""Ragged reductions of scores, tokens to groups. Deterministic, no atomics.

out[t, g] = strategy over j in offsets[g] .. offsets[g + 1] of values[t, members[j]], NaN left out; NaN where nothing is left
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

STRATEGIES = ("sum", "mean", "max", "min", "signed_max", "first", "last")
# Words have few tokens; longer groups take several turns.
MEMBERS = 32


@triton.jit(do_not_specialize=["groups"])
def segment_kernel(
    p_values,  # (T, M), with strides
    p_members,  # (K,)
    p_offsets,  # (G + 1,)
    p_out,  # (T, G)
    stride_target,
    stride_column,
    groups,
    STRATEGY: tl.constexpr,  # its place in STRATEGIES
    MEMBERS: tl.constexpr,
):
    """One group of one target."""
    target = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups
    end = tl.load(p_offsets + group + 1)
    count = tl.full((), 0, tl.int32)
    out = tl.full((), 0.0, tl.float32)
    largest = tl.full((), -1.0, tl.float32)
    for first in range(tl.load(p_offsets + group), end, MEMBERS):
        j = first + tl.arange(0, MEMBERS)
        column = tl.load(p_members + j, mask=j < end, other=0)
        b_values = tl.load(
            p_values + target * stride_target + column * stride_column, mask=j < end, other=float("nan")
        ).to(tl.float32)
        there = b_values == b_values
        some = tl.sum(there.to(tl.int32))
        if STRATEGY <= 1:
            out += tl.sum(tl.where(there, b_values, 0.0))
        elif STRATEGY == 2:
            best = tl.max(tl.where(there, b_values, -float("inf")))
            out = tl.where((count == 0) | (best > out), best, out)
        elif STRATEGY == 3:
            best = tl.min(tl.where(there, b_values, float("inf")))
            out = tl.where((count == 0) | (best < out), best, out)
        else:
            if STRATEGY == 4:
                b_size = tl.where(there, tl.abs(b_values), -1.0)
                size = tl.max(b_size)
                chosen = tl.min(tl.where(there & (b_size == size), j, end))
                better = size > largest
                largest = tl.where(better, size, largest)
            elif STRATEGY == 5:
                chosen = tl.min(tl.where(there, j, end))
                better = (count == 0) & (some > 0)
            else:
                chosen = tl.max(tl.where(there, j, -1))
                better = some > 0
            out = tl.where(better, tl.sum(tl.where(there & (j == chosen), b_values, 0.0)), out)
        count += some
    if STRATEGY == 1:
        out /= count.to(tl.float32)
    out = tl.where(count > 0, out, float("nan"))
    tl.store(p_out + target * groups + group, out.to(p_out.dtype.element_ty))


def segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str) -> Tensor:
    """(T, G) in the dtype of ``values``; arguments as for fastshap.reference.segment_reduce, all on one GPU."""
    targets, groups = values.shape[0], offsets.shape[0] - 1
    out = values.new_empty(targets, groups)
    if out.numel():
        with torch.cuda.device_of(values):
            segment_kernel[(targets * groups,)](
                values,
                members,
                offsets,
                out,
                values.stride(0),
                values.stride(1),
                groups,
                STRATEGY=STRATEGIES.index(strategy),
                MEMBERS=MEMBERS,
                num_warps=1,
                enable_fp_fusion=True,
            )
    return out
