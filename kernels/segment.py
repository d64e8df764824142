"""Ragged reductions of scores: tokens to groups, samples to their mean and its standard error. Deterministic, no atomics.

out[t, g] = strategy over j in offsets[g] .. offsets[g + 1] of values[t, members[j]], NaN left out; NaN where nothing is left
mean[t, m], error[t, m] over the samples values[t, 0 .. n, m]
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

STRATEGIES = ("sum", "mean", "max", "min", "signed_max", "first", "last")
# Words have few tokens; longer groups take several turns.
MEMBERS = 32
COLUMNS = 128


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


@triton.jit(do_not_specialize=["samples", "columns"])
def moments_kernel(
    p_values,  # (T, n, M), with strides
    p_mean,  # (T, M)
    p_error,  # (T, M)
    stride_target,
    stride_sample,
    stride_column,
    samples,
    columns,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """128 columns of one target, sample by sample: mean, variance (Welford) and differences between neighbouring pairs."""
    target = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    p_column = p_values + target * stride_target + column.to(tl.int64) * stride_column
    b_mean = tl.zeros((COLUMNS,), tl.float32)
    b_square = tl.zeros((COLUMNS,), tl.float32)  # sum of squared distances from the mean
    b_before = tl.zeros((COLUMNS,), tl.float32)  # the sample before
    b_pair = tl.zeros((COLUMNS,), tl.float32)  # the mean of the pair before
    b_differences = tl.zeros((COLUMNS,), tl.float32)  # sum of squares
    for sample in range(samples):
        b_value = tl.load(p_column, mask=inside, other=0.0).to(tl.float32)
        p_column += stride_sample
        b_step = b_value - b_mean
        b_mean += b_step / (sample + 1)
        b_square += b_step * (b_value - b_mean)
        if PAIRS:
            b_new = (b_before + b_value) * 0.5
            if sample % 2 == 1:
                if sample > 1:
                    b_differences += (b_new - b_pair) * (b_new - b_pair)
                b_pair = b_new
            b_before = b_value
    count = samples.to(tl.float32)
    b_variance = b_square / (count - 1.0)
    if PAIRS:
        pairs = (samples // 2).to(tl.float32)
        b_sum = b_differences / (pairs - 1.0) * 2.0 * pairs
        if samples % 2 == 1:
            b_sum += b_variance
    else:
        b_sum = b_variance * count
    b_error = tl.sqrt(b_sum) / count
    place = target * columns + column
    tl.store(p_mean + place, b_mean, mask=inside)
    tl.store(p_error + place, tl.where(samples >= 4, b_error, float("nan")), mask=inside)


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


def moments(values: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard error (T, M) float32 over samples (T, n, M); as fastshap.reference.moments, on one GPU."""
    targets, samples, columns = values.shape
    mean, error = values.new_empty(targets, columns), values.new_empty(targets, columns)
    if mean.numel():
        with torch.cuda.device_of(values):
            moments_kernel[(triton.cdiv(columns, COLUMNS), targets)](
                values,
                mean,
                error,
                values.stride(0),
                values.stride(1),
                values.stride(2),
                samples,
                columns,
                PAIRS=pairs,
                COLUMNS=COLUMNS,
                num_warps=1,
                enable_fp_fusion=True,
            )
    return mean, error
