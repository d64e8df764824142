"""The operators behind one door: arguments are checked here, and the backend is chosen here.

A backend is a namespace with ``perturb``, ``attribute`` and ``segment_reduce`` of the signatures in
:mod:`fastshap.reference`. This is the only module that may import :mod:`fastshap.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastshap import reference
from fastshap.errors import BackendUnavailableError, InvalidArgumentError

BACKENDS = ("auto", "triton", "torch")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Rows:
    """The rows of one model call; shapes as in :mod:`fastshap.reference.rows`. All tensors lie on one device.

    ``alphas`` (R,), ``draws`` (R,), ``signs`` (R,), ``token_offsets`` (N + 1,), ``row_offsets`` (N + 1,), ``streams`` (N, 3),
    ``held`` (M,) or None; ``baseline`` a number, (D,) or (positions, D).
    """

    token_offsets: Tensor
    row_offsets: Tensor
    alphas: Tensor
    streams: Tensor
    draws: Tensor
    signs: Tensor
    baseline: float | Tensor
    noise_std: float
    held: Tensor | None
    length: int
    padding_side: str


def check_backend(backend: str) -> None:
    """Raises unless ``backend`` is known and can run here."""
    if backend not in BACKENDS:
        raise InvalidArgumentError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")
    if backend == "triton":
        raise BackendUnavailableError(
            "backend='triton' was asked for, but this version of fastshap has no Triton operators yet. "
            "Use backend='auto' or 'torch', which run on CPU and GPU tensors alike."
        )


def _implementation(backend: str) -> ModuleType:
    check_backend(backend)
    return reference


def perturb(x: Tensor, rows: Rows, *, backend: str = "auto") -> Tensor:
    """Perturbed embeddings z (R, L, D) of the rows, from packed embeddings x (M, D)."""
    _check(x, rows)
    return _implementation(backend).perturb(
        x,
        **_layout(rows),
        length=rows.length,
    )


def attribute(
    gradients: Tensor,
    z: Tensor,
    x: Tensor,
    rows: Rows,
    *,
    reduction: str,
    input_x_gradient: bool,
    backend: str = "auto",
) -> Tensor:
    """Token scores (T, R, L) in float32 from gradients (T, R, L, D)."""
    _check(x, rows)
    if gradients.ndim != 4 or gradients.shape[1:] != z.shape:
        raise InvalidArgumentError(
            f"gradients must be (T, R, L, D) with z {tuple(z.shape)} behind T; got {tuple(gradients.shape)}."
        )
    return _implementation(backend).attribute(
        gradients,
        z,
        x,
        **_layout(rows),
        reduction=reduction,
        input_x_gradient=input_x_gradient,
    )


def segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str, *, backend: str = "auto") -> Tensor:
    """Groups of the last dimension, (T, M) to (T, G); see :func:`fastshap.reference.segment.segment_reduce`."""
    if values.ndim != 2 or offsets.ndim != 1 or members.ndim != 1 or offsets.shape[0] < 1:
        raise InvalidArgumentError(
            f"segment_reduce takes values (T, M), members (K,) and offsets (G + 1,); got {tuple(values.shape)}, "
            f"{tuple(members.shape)} and {tuple(offsets.shape)}."
        )
    return _implementation(backend).segment_reduce(values, members, offsets, strategy)


def _layout(rows: Rows) -> dict[str, Any]:
    """The arguments that perturb and attribute share."""
    return {field.name: getattr(rows, field.name) for field in fields(rows) if field.name != "length"}


def _check(x: Tensor, rows: Rows) -> None:
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype not in _DTYPES:
        raise InvalidArgumentError(
            f"x must be packed embeddings (M, D) of a floating-point dtype with D > 0; got {tuple(x.shape)} {x.dtype}."
        )
    texts, count = rows.token_offsets.shape[0] - 1, rows.alphas.shape[0]
    expected = {
        "row_offsets": (rows.row_offsets, (texts + 1,)),
        "streams": (rows.streams, (texts, 3)),
        "draws": (rows.draws, (count,)),
        "signs": (rows.signs, (count,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InvalidArgumentError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}.")
    tensors = [rows.token_offsets, rows.alphas, *(tensor for tensor, _ in expected.values())]
    tensors += [t for t in (rows.held, rows.baseline) if isinstance(t, Tensor)]
    devices = {str(tensor.device) for tensor in [x, *tensors]}
    if len(devices) > 1:
        raise InvalidArgumentError(f"All tensors of one call must lie on one device; got {', '.join(sorted(devices))}.")
    if isinstance(rows.baseline, Tensor) and rows.baseline.shape[-1] != x.shape[1]:
        raise InvalidArgumentError(
            f"The baseline has shape {tuple(rows.baseline.shape)}, but the embedding dimension is {x.shape[1]}."
        )
