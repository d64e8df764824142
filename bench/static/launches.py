"""The launches that are reported: one text, as the front door does it; and perturb written the obvious way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.static.compiled import SM90, Launch, recorded
from fastshap.kernels.attribute import attribute
from fastshap.kernels.moments import COLUMNS, moments
from fastshap.kernels.perturb import perturb
from fastshap.kernels.segment import segment_reduce

ROWS, TOKENS, MEMBERS, TEXTS_OF_A_SET = 10, 16, 2, 50


def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor that is nowhere."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def layout(texts: int, rows: int) -> dict[str, Tensor]:
    """The arguments that perturb and attribute share, for ``rows`` rows."""
    return {
        "token_offsets": empty(texts + 1),
        "row_offsets": empty(texts + 1),
        "alphas": empty(rows, dtype=torch.float32),
        "streams": empty(texts, 3),
        "draws": empty(rows),
        "signs": empty(rows, dtype=torch.float32),
    }


def _one_launch(run: Callable[[], object]) -> Launch:
    with recorded(SM90) as launches:
        run()
    (launch,) = launches
    return launch


def _baseline(dtype: torch.dtype, dim: int, of_a_set: bool) -> dict[str, Any]:
    """A number, or background texts."""
    if not of_a_set:
        return {"baseline": 0.0}
    return {"baseline": empty(TEXTS_OF_A_SET, TOKENS, dim, dtype=dtype), "members": empty(ROWS)}


def perturb_launch(dtype: torch.dtype, dim: int, of_a_set: bool = False) -> Launch:
    """As the front door does it for one text."""
    x, baseline = empty(TOKENS, dim, dtype=dtype), _baseline(dtype, dim, of_a_set)
    return _one_launch(
        lambda: perturb(x, **layout(1, ROWS), **baseline, noise_std=0.1, held=None, length=TOKENS, padding_side="right")
    )


def attribute_launch(
    dtype: torch.dtype, dim: int, reduction: str, input_x_gradient: bool, of_a_set: bool = False
) -> Launch:
    """As the front door does it for one text and one target."""
    baseline = _baseline(dtype, dim, of_a_set)
    x, z = empty(TOKENS, dim, dtype=dtype), empty(ROWS, TOKENS, dim, dtype=dtype)
    return _one_launch(
        lambda: attribute(
            z[None],
            z,
            x,
            **layout(1, ROWS),
            **baseline,
            noise_std=0.1,
            held=None,
            padding_side="right",
            reduction=reduction,
            input_x_gradient=input_x_gradient,
        )
    )


@triton.jit
def plain_kernel(p_x, p_z, p_alphas, p_seeds, baseline, noise_std, length, dim, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """z[row, token, SIZE dimensions], each normal with a Philox call of its own."""
    d = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    token, row = tl.program_id(1), tl.program_id(2)
    element = token * dim + d
    b_x = tl.load(p_x + element, mask=d < dim).to(tl.float32)
    b_base = baseline + noise_std * tl.randn(tl.load(p_seeds + row), element)
    b_z = b_x + tl.load(p_alphas + row) * (b_base - b_x)
    tl.store(p_z + row.to(tl.int64) * length * dim + element, b_z.to(p_z.dtype.element_ty), mask=d < dim)


PLAIN_SIZE = 256


def plain_launch(dtype: torch.dtype, dim: int) -> Launch:
    """The plain kernel for one text."""
    x, z = empty(TOKENS, dim, dtype=dtype), empty(ROWS, TOKENS, dim, dtype=dtype)
    alphas, seeds = empty(ROWS, dtype=torch.float32), empty(ROWS, dtype=torch.int32)
    grid = (triton.cdiv(dim, PLAIN_SIZE), TOKENS, ROWS)
    return _one_launch(
        lambda: plain_kernel[grid](x, z, alphas, seeds, 0.0, 0.1, TOKENS, dim, SIZE=PLAIN_SIZE, num_warps=1)
    )


def segment_launch(strategy: str) -> Launch:
    """Eight groups of all samples of one target."""
    values, members, offsets = empty(ROWS, TOKENS, dtype=torch.float32), empty(TOKENS), empty(TOKENS // MEMBERS + 1)
    return _one_launch(lambda: segment_reduce(values, members, offsets, strategy))


def moments_launch(pairs: bool) -> Launch:
    """All columns of one target."""
    values = empty(1, ROWS, COLUMNS, dtype=torch.float32)
    return _one_launch(lambda: moments(values, pairs))
