"""``fastshap::moments``: samples to means and standard errors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastshap import reference
from fastshap.errors import InvalidArgumentError
from fastshap.ops.backend import operator, with_triton
from fastshap.ops.rows import MOST_TEXTS, countable


def moments(values: Tensor, *, pairs: bool, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Mean and standard error over samples, (T, n, M) to twice (T, M); see :func:`fastshap.reference.moments.moments`."""
    if values.ndim != 3 or values.shape[1] < 1 or values.dtype != torch.float32:
        raise InvalidArgumentError(
            f"moments takes float32 values (T, n, M), n at least 1; got {tuple(values.shape)} {values.dtype}."
        )
    if values.shape[0] > MOST_TEXTS:
        raise InvalidArgumentError(f"moments takes at most {MOST_TEXTS} targets; got {values.shape[0]}.")
    countable("the number of columns", values.shape[2])
    return _moments(values, pairs, backend)


def _run_moments(values: Tensor, pairs: bool, backend: str) -> tuple[Tensor, Tensor]:
    if with_triton(backend, values):
        from fastshap.kernels.moments import moments as run
    else:
        run = reference.moments
    return run(values, pairs)


def _fake_moments(values: Tensor, pairs: bool, backend: str) -> tuple[Tensor, Tensor]:
    targets, _, columns = values.shape
    return values.new_empty(targets, columns), values.new_empty(targets, columns)


_moments = operator("moments", _run_moments, _fake_moments)
