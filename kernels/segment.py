"""Ragged reductions of scores, tokens to groups. Deterministic, no atomics.

out[t, g] = strategy over j in offsets[g] .. offsets[g + 1] of values[t, members[j]], NaN left out; NaN where nothing is left
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import lanes

STRATEGIES = ("sum", "mean", "max", "min", "signed_max", "first", "last")
# Whose values are on their way at once. Words have few tokens; longer groups take several turns.
MEMBERS = 4


@triton.jit(
    do_not_specialize=["stride_target", "stride_column", "targets", "groups"],
    do_not_specialize_on_alignment=["p_values", "p_members", "p_offsets", "p_out"],
)
def segment_kernel(
    p_values,  # (T, M), with strides
    p_members,  # (K,)
    p_offsets,  # (G + 1,)
    p_out,  # (T, G)
    stride_target: tl.int64,
    stride_column: tl.int64,
    targets,
    groups,
    STRATEGY: tl.constexpr,  # its place in STRATEGIES
    ROWS: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    """One group of as many targets or samples as a warp has lanes; members one after the other, in their order."""
    group = tl.program_id(0) % groups
    target = tl.program_id(0) // groups * ROWS + tl.arange(0, ROWS)
    inside = target < targets
    p_target = p_values + target * stride_target
    first = tl.load(p_offsets + group).to(tl.int32)
    end = tl.load(p_offsets + group + 1).to(tl.int32)
    count = tl.zeros((ROWS,), tl.int32)
    out = tl.zeros((ROWS,), tl.float32)
    for j in range(first, end, MEMBERS):
        for k in tl.static_range(MEMBERS):
            column = tl.load(p_members + j + k, mask=j + k < end, other=0)
            there = target < tl.where(j + k < end, targets, 0)
            b_value = tl.load(p_target + column * stride_column, mask=there, other=float("nan")).to(tl.float32)
            there = b_value == b_value  # not NaN
            if STRATEGY <= 1:
                out += tl.where(there, b_value, 0.0)
            else:
                better = there
                if STRATEGY == 2:
                    better = there & ((count == 0) | (b_value > out))
                elif STRATEGY == 3:
                    better = there & ((count == 0) | (b_value < out))
                elif STRATEGY == 4:
                    better = there & ((count == 0) | (tl.abs(b_value) > tl.abs(out)))
                elif STRATEGY == 5:
                    better = there & (count == 0)
                out = tl.where(better, b_value, out)
            count += there.to(tl.int32)
    if STRATEGY == 1:
        out /= count.to(tl.float32)
    out = tl.where(count > 0, out, float("nan"))
    tl.store(p_out + target.to(tl.int64) * groups + group, out.to(p_out.dtype.element_ty), mask=inside)


def segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str) -> Tensor:
    """(T, G) in the dtype of ``values``; arguments as for fastshap.reference.segment_reduce, all on one GPU."""
    targets, groups = values.shape[0], offsets.shape[0] - 1
    out = values.new_empty(targets, groups)
    if out.numel():
        with torch.cuda.device_of(values):
            segment_kernel[(triton.cdiv(targets, lanes()) * groups,)](
                values,
                members,
                offsets,
                out,
                values.stride(0),
                values.stride(1),
                targets,
                groups,
                STRATEGY=STRATEGIES.index(strategy),
                ROWS=lanes(),
                MEMBERS=MEMBERS,
                num_warps=1,
                enable_fp_fusion=True,
            )
    return out
