"""Samples to their mean and its standard error. Deterministic, no atomics.

mean[t, m], error[t, m] over the samples values[t, 0 .. n, m]
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 128


@triton.jit(
    do_not_specialize=["stride_target", "stride_sample", "samples", "columns"],
    do_not_specialize_on_alignment=["p_values", "p_mean", "p_error"],
)
def moments_kernel(
    p_values,  # (T, n, M), the first two dimensions with strides
    p_mean,  # (T, M)
    p_error,  # (T, M)
    stride_target: tl.int64,
    stride_sample: tl.int64,
    samples,
    columns,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """128 columns of one target, sample by sample: mean, variance (Welford) and differences between neighbouring pairs."""
    target = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    p_column = p_values + target * stride_target + column
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


def moments(values: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard error (T, M) float32 over samples (T, n, M); as fastshap.reference.moments, on one GPU."""
    targets, samples, columns = values.shape
    mean, error = values.new_empty(targets, columns), values.new_empty(targets, columns)
    if mean.numel():
        values = values if values.stride(2) == 1 else values.contiguous()
        with torch.cuda.device_of(values):
            moments_kernel[(triton.cdiv(columns, COLUMNS), targets)](
                values,
                mean,
                error,
                values.stride(0),
                values.stride(1),
                samples,
                columns,
                PAIRS=pairs,
                COLUMNS=COLUMNS,
                num_warps=1,
                enable_fp_fusion=True,
            )
    return mean, error
