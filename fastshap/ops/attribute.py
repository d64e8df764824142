"""``fastshap::attribute``: gradients to token scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastshap import reference
from fastshap.errors import InvalidArgumentError
from fastshap.ops.backend import operator, with_triton
from fastshap.ops.rows import Rows, alike, check_embeddings, check_layout, layout, split

REDUCTIONS = ("sum", "abs_mean")


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
    check_embeddings(x, rows)
    if reduction not in REDUCTIONS:
        raise InvalidArgumentError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}.")
    shape = (rows.alphas.shape[0], rows.length, x.shape[1])
    if tuple(z.shape) != shape:
        raise InvalidArgumentError(f"z must have shape {shape}, (R, L, D); got {tuple(z.shape)}.")
    if gradients.ndim != 4 or gradients.shape[1:] != z.shape:
        raise InvalidArgumentError(
            f"gradients must be (T, R, L, D) with z {tuple(z.shape)} behind T; got {tuple(gradients.shape)}."
        )
    alike("gradients, z and x", gradients, z, x)
    number, tensor = split(rows.baseline)
    return _attribute(
        gradients,
        z,
        x,
        **layout(rows),
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
    members: Tensor | None = None,
) -> Tensor:
    check_layout(x, token_offsets, row_offsets, alphas.shape[0], z.shape[1], baseline_tensor, members)
    if with_triton(backend, gradients):
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
        members=members,
    )


def _fake_attribute(gradients: Tensor, z: Tensor, x: Tensor, *others: Any, **more: Any) -> Tensor:
    return gradients.new_empty(gradients.shape[:3], dtype=torch.float32)


_attribute = operator("attribute", _run_attribute, _fake_attribute)
