"""The operators behind one door: arguments are checked here, and the backend is chosen here.

Each is registered with PyTorch as ``fastshap::perturb``, ``fastshap::attribute``, ``fastshap::segment_reduce`` and
``fastshap::moments``: that is their name in profiles, and torch.compile takes them as they are. Behind the name stands Triton
on CUDA and ROCm tensors and :mod:`fastshap.reference` elsewhere. This module alone imports :mod:`fastshap.kernels`.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, infer_schema, register_fake

from fastshap import reference
from fastshap.errors import BackendUnavailableError, InvalidArgumentError
from fastshap.reference.segment import STRATEGIES

BACKENDS = ("auto", "triton", "torch")
REDUCTIONS = ("sum", "abs_mean")
# Texts of one call, at most: they stand in a dimension of the launch grid.
MOST_TEXTS = 65_535
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_TRITON_DTYPES = _DTYPES[:3]


_library = Library("fastshap", "DEF")


def _operator(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registers ``fastshap::name``. (torch.library.custom_op would do as well, but costs a second at its first call.)"""
    _library.define(name + infer_schema(run, mutates_args=()))
    _library.impl(name, run, "CompositeExplicitAutograd")
    register_fake(f"fastshap::{name}", fake, lib=_library)
    return getattr(torch.ops.fastshap, name).default


@dataclass(frozen=True)
class Rows:
    """The rows of one model call; shapes as in :mod:`fastshap.reference.rows`. All tensors lie on one device.

    ``alphas`` (R,), ``draws`` (R,), ``signs`` (R,), ``token_offsets`` (N + 1,), ``row_offsets`` (N + 1,), ``streams`` (N, 3),
    ``held`` (M,) or None; ``baseline`` a number, (D,) or (positions, D). Offsets do not decrease; they begin at 0 and end at
    M and R (on a GPU not checked, as that would wait for the device).
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
        raise _unknown(backend)
    if backend == "triton" and not _triton_runs(torch.cuda.is_available()):
        raise BackendUnavailableError(
            "backend='triton' was asked for, but its kernels cannot run here: they need the triton package and a CUDA or ROCm "
            "device. Use backend='auto' or 'torch', which run on CPU and GPU tensors alike."
        )


def _unknown(backend: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")


def _triton_runs(on_gpu: bool) -> bool:
    return (on_gpu or _interpreting()) and importlib.util.find_spec("triton") is not None


def _interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _with_triton(backend: str, tensor: Tensor) -> bool:
    """Whether Triton computes this, rather than torch."""
    if backend not in BACKENDS:
        raise _unknown(backend)
    if backend == "torch":
        return False
    fits = tensor.dtype in _TRITON_DTYPES
    if backend == "auto":
        return tensor.is_cuda and fits and _triton_runs(True)
    if not fits or not _triton_runs(tensor.is_cuda):
        raise BackendUnavailableError(
            f"backend='triton' was asked for, but its kernels take float32, float16 and bfloat16 on a GPU; got "
            f"{tensor.dtype} on {tensor.device}. Use backend='auto' or 'torch'."
        )
    return True


# ---------------------------------------------------------------- perturb


def perturb(x: Tensor, rows: Rows, *, backend: str = "auto") -> Tensor:
    """Perturbed embeddings z (R, L, D) of the rows, from packed embeddings x (M, D)."""
    _check(x, rows)
    number, tensor = _split(rows.baseline)
    return _perturb(x, **_layout(rows), baseline=number, baseline_tensor=tensor, length=rows.length, backend=backend)


def _run_perturb(
    x: Tensor,
    token_offsets: Tensor,
    row_offsets: Tensor,
    alphas: Tensor,
    streams: Tensor,
    draws: Tensor,
    signs: Tensor,
    baseline: float,
    baseline_tensor: Tensor | None,
    noise_std: float,
    held: Tensor | None,
    length: int,
    padding_side: str,
    backend: str,
) -> Tensor:
    _check_layout(x, token_offsets, row_offsets, alphas.shape[0], length, baseline_tensor)
    if _with_triton(backend, x):
        from fastshap.kernels.perturb import perturb as run
    else:
        run = reference.perturb
    return run(
        x,
        token_offsets=token_offsets,
        row_offsets=row_offsets,
        alphas=alphas,
        streams=streams,
        draws=draws,
        signs=signs,
        baseline=baseline if baseline_tensor is None else baseline_tensor,
        noise_std=noise_std,
        held=held,
        length=length,
        padding_side=padding_side,
    )


def _fake_perturb(
    x: Tensor,
    token_offsets: Tensor,
    row_offsets: Tensor,
    alphas: Tensor,
    streams: Tensor,
    draws: Tensor,
    signs: Tensor,
    baseline: float,
    baseline_tensor: Tensor | None,
    noise_std: float,
    held: Tensor | None,
    length: int,
    padding_side: str,
    backend: str,
) -> Tensor:
    return x.new_empty(alphas.shape[0], length, x.shape[1])


_perturb = _operator("perturb", _run_perturb, _fake_perturb)


# ---------------------------------------------------------------- attribute


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
    if reduction not in REDUCTIONS:
        raise InvalidArgumentError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}.")
    shape = (rows.alphas.shape[0], rows.length, x.shape[1])
    if tuple(z.shape) != shape:
        raise InvalidArgumentError(f"z must have shape {shape}, (R, L, D); got {tuple(z.shape)}.")
    if gradients.ndim != 4 or gradients.shape[1:] != z.shape:
        raise InvalidArgumentError(
            f"gradients must be (T, R, L, D) with z {tuple(z.shape)} behind T; got {tuple(gradients.shape)}."
        )
    _alike("gradients, z and x", gradients, z, x)
    number, tensor = _split(rows.baseline)
    return _attribute(
        gradients,
        z,
        x,
        **_layout(rows),
        baseline=number,
        baseline_tensor=tensor,
        reduction=reduction,
        input_x_gradient=input_x_gradient,
        backend=backend,
    )


def _run_attribute(
    gradients: Tensor,
    z: Tensor,
    x: Tensor,
    token_offsets: Tensor,
    row_offsets: Tensor,
    alphas: Tensor,
    streams: Tensor,
    draws: Tensor,
    signs: Tensor,
    baseline: float,
    baseline_tensor: Tensor | None,
    noise_std: float,
    held: Tensor | None,
    padding_side: str,
    reduction: str,
    input_x_gradient: bool,
    backend: str,
) -> Tensor:
    _check_layout(x, token_offsets, row_offsets, alphas.shape[0], z.shape[1], baseline_tensor)
    if _with_triton(backend, gradients):
        from fastshap.kernels.attribute import attribute as run
    else:
        run = reference.attribute
    return run(
        gradients,
        z,
        x,
        token_offsets=token_offsets,
        row_offsets=row_offsets,
        alphas=alphas,
        streams=streams,
        draws=draws,
        signs=signs,
        baseline=baseline if baseline_tensor is None else baseline_tensor,
        noise_std=noise_std,
        held=held,
        padding_side=padding_side,
        reduction=reduction,
        input_x_gradient=input_x_gradient,
    )


def _fake_attribute(gradients: Tensor, z: Tensor, x: Tensor, *others: Any, **more: Any) -> Tensor:
    return gradients.new_empty(gradients.shape[:3], dtype=torch.float32)


_attribute = _operator("attribute", _run_attribute, _fake_attribute)


# ---------------------------------------------------------------- segments and samples


def segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str, *, backend: str = "auto") -> Tensor:
    """Groups of the last dimension, (T, M) to (T, G); see :func:`fastshap.reference.segment.segment_reduce`."""
    if values.ndim != 2 or offsets.ndim != 1 or members.ndim != 1 or offsets.shape[0] < 1:
        raise InvalidArgumentError(
            f"segment_reduce takes values (T, M), members (K,) and offsets (G + 1,); got {tuple(values.shape)}, "
            f"{tuple(members.shape)} and {tuple(offsets.shape)}."
        )
    if strategy not in STRATEGIES:
        raise InvalidArgumentError(f"Unknown strategy {strategy!r}. Choose one of {', '.join(STRATEGIES)}.")
    _together(values, members, offsets)
    _vectors(torch.int64, members=members, offsets=offsets)
    if not values.is_floating_point():
        raise InvalidArgumentError(f"values must be of a floating-point dtype; got {values.dtype}.")
    _countable("the number of results", values.shape[0] * (offsets.shape[0] - 1))
    return _segment_reduce(values, members, offsets, strategy, backend)


def _run_segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str, backend: str) -> Tensor:
    _check_offsets("offsets", offsets, members.shape[0])
    if _with_triton(backend, values):
        from fastshap.kernels.segment import segment_reduce as run
    else:
        run = reference.segment_reduce
    return run(values, members, offsets, strategy)


def _fake_segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str, backend: str) -> Tensor:
    return values.new_empty(values.shape[0], offsets.shape[0] - 1)


_segment_reduce = _operator("segment_reduce", _run_segment_reduce, _fake_segment_reduce)


def moments(values: Tensor, *, pairs: bool, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Mean and standard error over samples, (T, n, M) to twice (T, M); see :func:`fastshap.reference.moments.moments`."""
    if values.ndim != 3 or values.shape[1] < 1 or values.dtype != torch.float32:
        raise InvalidArgumentError(
            f"moments takes float32 values (T, n, M), n at least 1; got {tuple(values.shape)} {values.dtype}."
        )
    if values.shape[0] > MOST_TEXTS:
        raise InvalidArgumentError(f"moments takes at most {MOST_TEXTS} targets; got {values.shape[0]}.")
    _countable("the number of columns", values.shape[2])
    return _moments(values, pairs, backend)


def _run_moments(values: Tensor, pairs: bool, backend: str) -> tuple[Tensor, Tensor]:
    if _with_triton(backend, values):
        from fastshap.kernels.segment import moments as run
    else:
        run = reference.moments
    return run(values, pairs)


def _fake_moments(values: Tensor, pairs: bool, backend: str) -> tuple[Tensor, Tensor]:
    targets, _, columns = values.shape
    return values.new_empty(targets, columns), values.new_empty(targets, columns)


_moments = _operator("moments", _run_moments, _fake_moments)


# ---------------------------------------------------------------- checks


def _split(baseline: float | Tensor) -> tuple[float, Tensor | None]:
    return (0.0, baseline) if isinstance(baseline, Tensor) else (float(baseline), None)


def _layout(rows: Rows) -> dict[str, Any]:
    """The arguments that perturb and attribute share."""
    return {field.name: getattr(rows, field.name) for field in fields(rows) if field.name not in ("length", "baseline")}


def _check(x: Tensor, rows: Rows) -> None:
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype not in _DTYPES:
        raise InvalidArgumentError(
            f"x must be packed embeddings (M, D) of a floating-point dtype with D > 0; got {tuple(x.shape)} {x.dtype}."
        )
    if rows.token_offsets.ndim != 1 or rows.token_offsets.shape[0] < 1 or rows.alphas.ndim != 1:
        raise InvalidArgumentError(
            f"token_offsets must be (N + 1,) and alphas (R,); got {tuple(rows.token_offsets.shape)} and "
            f"{tuple(rows.alphas.shape)}."
        )
    texts, count = rows.token_offsets.shape[0] - 1, rows.alphas.shape[0]
    expected = {
        "row_offsets": (rows.row_offsets, (texts + 1,)),
        "streams": (rows.streams, (texts, 3)),
        "draws": (rows.draws, (count,)),
        "signs": (rows.signs, (count,)),
        **({} if rows.held is None else {"held": (rows.held, (x.shape[0],))}),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InvalidArgumentError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}.")
    if texts > MOST_TEXTS:
        raise InvalidArgumentError(f"One call takes at most {MOST_TEXTS} texts; got {texts}. Pass fewer rows a call.")
    _countable("the elements of one row", rows.length * (x.shape[1] + 3))
    _countable("the rows times their length", count * rows.length)
    offsets = {"token_offsets": rows.token_offsets, "row_offsets": rows.row_offsets}
    _vectors(torch.int64, **offsets, streams=rows.streams, draws=rows.draws)
    _vectors(torch.float32, alphas=rows.alphas, signs=rows.signs)
    if rows.held is not None:
        _vectors(torch.bool, held=rows.held)
    _together(x, rows.token_offsets, rows.alphas, *(tensor for tensor, _ in expected.values()))
    if rows.padding_side not in ("left", "right"):
        raise InvalidArgumentError(f"padding_side must be 'left' or 'right'; got {rows.padding_side!r}.")
    if isinstance(rows.baseline, Tensor):
        _together(x, rows.baseline)
        if rows.baseline.ndim not in (1, 2) or rows.baseline.shape[-1] != x.shape[1]:
            raise InvalidArgumentError(
                f"The baseline has shape {tuple(rows.baseline.shape)}, but the embedding dimension is {x.shape[1]}."
            )


def _countable(what: str, number: int) -> None:
    """Positions within a row are 32-bit numbers in the kernels (rows are addressed with 64 bits)."""
    if number >= 2**31:
        raise InvalidArgumentError(
            f"{what.capitalize()} must stay below 2^31; got {number}. Use shorter or fewer texts."
        )


def _vectors(dtype: torch.dtype, **tensors: Tensor) -> None:
    wanted = str(dtype).removeprefix("torch.")
    for name, tensor in tensors.items():
        if tensor.dtype != dtype or not tensor.is_contiguous():
            raise InvalidArgumentError(
                f"{name} must be contiguous {wanted}; got {tensor.dtype}, shape {tuple(tensor.shape)}, strides "
                f"{tensor.stride()}."
            )


def _check_layout(
    x: Tensor, token_offsets: Tensor, row_offsets: Tensor, rows: int, length: int, baseline: Tensor | None
) -> None:
    room = length if baseline is None or baseline.ndim == 1 else min(length, baseline.shape[0])
    _check_offsets("token_offsets", token_offsets, x.shape[0], room)
    _check_offsets("row_offsets", row_offsets, rows)


def _check_offsets(name: str, offsets: Tensor, end: int, most: int | None = None) -> None:
    """Values are looked at where that costs no waiting; on a GPU they come from fastshap.batches, as sums of lengths."""
    if offsets.device.type != "cpu":
        return
    values = offsets.tolist()
    sizes = [after - before for before, after in itertools.pairwise(values)]
    if values[0] != 0 or values[-1] != end or min(sizes, default=0) < 0:
        raise InvalidArgumentError(f"{name} must begin at 0, not decrease, and end at {end}; got {values}.")
    if most is not None and max(sizes, default=0) > most:
        raise InvalidArgumentError(f"{name} give a text {max(sizes)} tokens, and there is room for {most}.")


def _together(*tensors: Tensor) -> None:
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise InvalidArgumentError(f"All tensors of one call must lie on one device; got {', '.join(sorted(devices))}.")


def _alike(what: str, *tensors: Tensor) -> None:
    _together(*tensors)
    dtypes = {str(tensor.dtype) for tensor in tensors}
    if len(dtypes) > 1:
        raise InvalidArgumentError(f"{what} must have one dtype; got {', '.join(sorted(dtypes))}.")
