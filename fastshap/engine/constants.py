"""Tensors that say which scores a backward pass begins with: made once, as each operator takes the host's time."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def ones(like: Tensor) -> Tensor:
    """Ones in the shape of ``like``, without an operator after the first time. A graph that is recorded makes its own."""
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.ones_like(like)
    return _constant(torch.ones, (), like.dtype, like.device, _stream(like)).expand(like.shape)


def unit_vectors(like: Tensor, lo: int, hi: int) -> Tensor:
    """(hi - lo, t), rows of the unit matrix for ``like`` (R, t), without an operator after the first time, as ones."""
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        return _rows_of_eye((lo, hi, like.shape[1]), like.dtype, like.device)
    return _constant(_rows_of_eye, (lo, hi, like.shape[1]), like.dtype, like.device, _stream(like))


def _rows_of_eye(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    lo, hi, size = shape
    rows = torch.zeros(hi - lo, size, dtype=dtype, device=device)
    rows.diagonal(lo).fill_(1)
    return rows


@functools.lru_cache(maxsize=256)
def _constant(make: Any, shape: Any, dtype: torch.dtype, device: torch.device, stream: int) -> Tensor:
    tensor: Tensor = make(shape, dtype=dtype, device=device)
    return tensor


def _stream(like: Tensor) -> int:
    return torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
