"""``fastshap::perturb``: the noisy points of a model call."""

from __future__ import annotations

from torch import Tensor

from fastshap import reference
from fastshap.ops.backend import operator, with_triton
from fastshap.ops.rows import Rows, check_embeddings, check_layout, layout, split


def perturb(x: Tensor, rows: Rows, *, backend: str = "auto") -> Tensor:
    """Perturbed embeddings z (R, L, D) of the rows, from packed embeddings x (M, D)."""
    check_embeddings(x, rows)
    number, tensor = split(rows.baseline)
    return _perturb(x, **layout(rows), baseline=number, baseline_tensor=tensor, length=rows.length, backend=backend)


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
    members: Tensor | None = None,
) -> Tensor:
    check_layout(x, token_offsets, row_offsets, alphas.shape[0], length, baseline_tensor, members)
    if with_triton(backend, x):
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
        members=members,
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
    members: Tensor | None = None,
) -> Tensor:
    return x.new_empty(alphas.shape[0], length, x.shape[1])


_perturb = operator("perturb", _run_perturb, _fake_perturb)
