"""The mean over samples and its standard error.

Independent samples: their standard deviation over sqrt(n). Stratified pairs: from the differences of neighbouring pairs' means,
which hold the noise and little of the change along the path; an odd last sample counts with the variance of all
(docs/adr/0007).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Fewer samples tell nothing worth reporting.
LEAST_SAMPLES = 4


def moments(values: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard error over samples.

    Args:
        values: (T, n, M) float32, in the order in which the samples were drawn.
        pairs: whether samples 2k and 2k + 1 are a pair.

    Returns:
        Two (T, M) float32; the standard error is NaN for fewer than four samples.
    """
    n = values.shape[1]
    mean = values.mean(1)
    if n < LEAST_SAMPLES:
        return mean, torch.full_like(mean, torch.nan)
    if not pairs:
        return mean, values.std(1) / math.sqrt(n)
    count = n // 2
    means = (values[:, 0 : 2 * count : 2] + values[:, 1 : 2 * count : 2]) / 2
    variance = means.diff(dim=1).square().mean(1) / 2 * (4 * count)  # of the sum of the paired samples
    if n % 2:
        variance = variance + values.var(1)
    return mean, variance.sqrt() / n
