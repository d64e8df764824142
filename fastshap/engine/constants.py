"""Tensors that say which scores a backward pass begins with: made once, as each operator takes the host's time."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_here = threading.local()


@contextlib.contextmanager
def made_anew() -> Iterator[None]:
    """In this thread they are made each time: a graph that is recorded needs its own."""
    _here.anew = True
    try:
        yield
    finally:
        _here.anew = False


def ones(like: Tensor) -> Tensor:
    """Ones in the shape of ``like``, without an operator after the first time."""
    return _constant(torch.ones, (), like).expand(like.shape)


def unit_vectors(like: Tensor, lo: int, hi: int) -> Tensor:
    """(hi - lo, t), rows of the unit matrix for ``like`` (R, t), without an operator after the first time."""
    return _constant(_rows_of_eye, (lo, hi, like.shape[1]), like)


def _rows_of_eye(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    lo, hi, size = shape
    rows = torch.zeros(hi - lo, size, dtype=dtype, device=device)
    rows.diagonal(lo).fill_(1)
    return rows


def _constant(make: Any, shape: Any, like: Tensor) -> Tensor:
    if getattr(_here, "anew", False):
        tensor: Tensor = make(shape, dtype=like.dtype, device=like.device)
        return tensor
    return _kept(make, shape, like.dtype, like.device, _stream(like))


@functools.lru_cache(maxsize=256)
def _kept(make: Any, shape: Any, dtype: torch.dtype, device: torch.device, stream: int) -> Tensor:
    tensor: Tensor = make(shape, dtype=dtype, device=device)
    return tensor


def _stream(like: Tensor) -> int:
    return torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
