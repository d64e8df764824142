"""``fastshap::segment_reduce``: token scores to those of groups."""

from __future__ import annotations

import torch
from torch import Tensor

from fastshap import reference
from fastshap.errors import InvalidArgumentError
from fastshap.ops.backend import operator, with_triton
from fastshap.ops.rows import check_offsets, countable, together, vectors
from fastshap.reference.segment import STRATEGIES


def segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str, *, backend: str = "auto") -> Tensor:
    """Groups of the last dimension, (T, M) to (T, G); see :func:`fastshap.reference.segment.segment_reduce`."""
    if values.ndim != 2 or offsets.ndim != 1 or members.ndim != 1 or offsets.shape[0] < 1:
        raise InvalidArgumentError(
            f"segment_reduce takes values (T, M), members (K,) and offsets (G + 1,); got {tuple(values.shape)}, "
            f"{tuple(members.shape)} and {tuple(offsets.shape)}."
        )
    if strategy not in STRATEGIES:
        raise InvalidArgumentError(f"Unknown strategy {strategy!r}. Choose one of {', '.join(STRATEGIES)}.")
    together(values, members, offsets)
    vectors(torch.int64, members=members, offsets=offsets)
    if not values.is_floating_point():
        raise InvalidArgumentError(f"values must be of a floating-point dtype; got {values.dtype}.")
    countable("the number of results", values.shape[0] * (offsets.shape[0] - 1))
    return _segment_reduce(values, members, offsets, strategy, backend)


def _run_segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str, backend: str) -> Tensor:
    check_offsets("offsets", offsets, members.shape[0])
    if with_triton(backend, values):
        from fastshap.kernels.segment import segment_reduce as run
    else:
        run = reference.segment_reduce
    return run(values, members, offsets, strategy)


def _fake_segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str, backend: str) -> Tensor:
    return values.new_empty(values.shape[0], offsets.shape[0] - 1)


_segment_reduce = operator("segment_reduce", _run_segment_reduce, _fake_segment_reduce)
