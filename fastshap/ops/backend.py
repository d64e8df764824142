"""Which backend computes, and the registration of operators with PyTorch."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, infer_schema, register_fake

from fastshap.errors import BackendUnavailableError, InvalidArgumentError, SlowBackendWarning, warn

BACKENDS = ("auto", "triton", "torch")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_TRITON_DTYPES = DTYPES[:3]

_library = Library("fastshap", "DEF")


def operator(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registers ``fastshap::name``. (torch.library.custom_op would do as well, but costs a second at its first call.)"""
    _library.define(name + infer_schema(run, mutates_args=()))
    _library.impl(name, run, "CompositeExplicitAutograd")
    register_fake(f"fastshap::{name}", fake, lib=_library)
    return getattr(torch.ops.fastshap, name).default


def check_backend(backend: str) -> None:
    """Raises unless ``backend`` is known and can run here."""
    if backend not in BACKENDS:
        raise _unknown(backend)
    if backend == "triton" and not _triton_runs(torch.cuda.is_available()):
        raise BackendUnavailableError(
            "backend='triton' was asked for, but its kernels cannot run here: they need the triton package, a CUDA or ROCm "
            "device and a C compiler. Use backend='auto' or 'torch', which run on CPU and GPU tensors alike."
        )


def _unknown(backend: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")


def _triton_runs(on_gpu: bool) -> bool:
    return _interpreting() or (on_gpu and _compiles())


@functools.cache
def _compiles() -> bool:
    """Whether Triton can compile kernels here. It needs a C compiler for their launchers; this looks for one as Triton does."""
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(os.environ.get("CC")) or any(map(shutil.which, ("gcc", "clang")))


@functools.cache
def _told_of_torch() -> bool:
    """Warns once that PyTorch's operators replace the kernels. Returns False."""
    missing = (
        "the triton package" if importlib.util.find_spec("triton") is None else "a C compiler (gcc or clang, or CC)"
    )
    warn(
        f"fastshap's kernels need {missing}, which is not there. PyTorch's operators take their place: the numbers are the "
        "same but for rounding, and it is slower.",
        SlowBackendWarning,
    )
    return False


def _interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def with_triton(backend: str, tensor: Tensor) -> bool:
    """Whether Triton computes this, rather than torch."""
    if backend not in BACKENDS:
        raise _unknown(backend)
    if backend == "torch":
        return False
    fits = tensor.dtype in _TRITON_DTYPES
    if backend == "auto":
        return tensor.is_cuda and fits and (_triton_runs(True) or _told_of_torch())
    if not fits or not _triton_runs(tensor.is_cuda):
        raise BackendUnavailableError(
            f"backend='triton' was asked for, but its kernels take float32, float16 and bfloat16 on a GPU; got "
            f"{tensor.dtype} on {tensor.device}. Use backend='auto' or 'torch'."
        )
    return True
