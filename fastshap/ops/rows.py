"""The rows of one model call, and the checks that operators share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastshap.errors import InvalidArgumentError
from fastshap.ops.backend import DTYPES

# Texts of one call, at most: they stand in a dimension of the launch grid.
MOST_TEXTS = 65_535


@dataclass(frozen=True)
class Rows:
    """The rows of one model call; shapes as in :mod:`fastshap.reference.rows`. All tensors lie on one device.

    ``alphas`` (R,), ``draws`` (R,), ``signs`` (R,), ``token_offsets`` (N + 1,), ``row_offsets`` (N + 1,), ``streams`` (N, 3),
    ``held`` (M,) or None; ``baseline`` a number, (D,) or (positions, D). With ``members`` (R,) it is a set, (k, D) or
    (k, positions, D), of which each row takes one. Offsets do not decrease; they begin at 0 and end at
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
    members: Tensor | None = None


def split(baseline: float | Tensor) -> tuple[float, Tensor | None]:
    """A number and a tensor, of which one is meant."""
    return (0.0, baseline) if isinstance(baseline, Tensor) else (float(baseline), None)


def layout(rows: Rows) -> dict[str, Any]:
    """The arguments that perturb and attribute share."""
    return {field.name: getattr(rows, field.name) for field in fields(rows) if field.name not in ("length", "baseline")}


def check_embeddings(x: Tensor, rows: Rows) -> None:
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype not in DTYPES:
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
        **({} if rows.members is None else {"members": (rows.members, (count,))}),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InvalidArgumentError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}.")
    if texts > MOST_TEXTS:
        raise InvalidArgumentError(f"One call takes at most {MOST_TEXTS} texts; got {texts}. Pass fewer rows a call.")
    countable("the elements of one row", rows.length * (x.shape[1] + 3))
    countable("the rows times their length", count * rows.length)
    offsets = {"token_offsets": rows.token_offsets, "row_offsets": rows.row_offsets}
    vectors(torch.int64, **offsets, streams=rows.streams, draws=rows.draws)
    vectors(torch.float32, alphas=rows.alphas, signs=rows.signs)
    if rows.held is not None:
        vectors(torch.bool, held=rows.held)
    if rows.members is not None:
        vectors(torch.int64, members=rows.members)
    together(x, rows.token_offsets, rows.alphas, *(tensor for tensor, _ in expected.values()))
    if rows.padding_side not in ("left", "right"):
        raise InvalidArgumentError(f"padding_side must be 'left' or 'right'; got {rows.padding_side!r}.")
    if isinstance(rows.baseline, Tensor):
        together(x, rows.baseline)
        shape, of_a_set = tuple(rows.baseline.shape), rows.members is not None
        if len(shape) - of_a_set not in (1, 2) or shape[-1] != x.shape[1] or 0 in shape[:of_a_set]:
            kind = "set of baselines" if of_a_set else "baseline"
            raise InvalidArgumentError(f"The {kind} has shape {shape}, but the embedding dimension is {x.shape[1]}.")
    elif rows.members is not None:
        raise InvalidArgumentError("members are for a set of baselines, (k, D) or (k, positions, D); got a number.")


def countable(what: str, number: int) -> None:
    """Positions within a row are 32-bit numbers in the kernels (rows are addressed with 64 bits)."""
    if number >= 2**31:
        raise InvalidArgumentError(
            f"{what.capitalize()} must stay below 2^31; got {number}. Use shorter or fewer texts."
        )


def vectors(dtype: torch.dtype, **tensors: Tensor) -> None:
    wanted = str(dtype).removeprefix("torch.")
    for name, tensor in tensors.items():
        if tensor.dtype != dtype or not tensor.is_contiguous():
            raise InvalidArgumentError(
                f"{name} must be contiguous {wanted}; got {tensor.dtype}, shape {tuple(tensor.shape)}, strides "
                f"{tensor.stride()}."
            )


def check_layout(
    x: Tensor,
    token_offsets: Tensor,
    row_offsets: Tensor,
    rows: int,
    length: int,
    baseline: Tensor | None,
    members: Tensor | None,
) -> None:
    by_position = baseline is not None and baseline.ndim == (2 if members is None else 3)
    room = min(length, baseline.shape[-2]) if baseline is not None and by_position else length
    check_offsets("token_offsets", token_offsets, x.shape[0], room)
    check_offsets("row_offsets", row_offsets, rows)
    if members is not None and baseline is not None and members.is_cpu and len(members):
        least, most = int(members.min()), int(members.max())
        if least < 0 or most >= len(baseline):
            raise InvalidArgumentError(f"members must lie between 0 and {len(baseline) - 1}; got {least} and {most}.")


def check_offsets(name: str, offsets: Tensor, end: int, most: int | None = None) -> None:
    """Values are looked at where that costs no waiting; on a GPU they come from fastshap.engine.packing, as sums of lengths."""
    if offsets.device.type != "cpu":
        return
    values = offsets.tolist()
    sizes = [after - before for before, after in itertools.pairwise(values)]
    if values[0] != 0 or values[-1] != end or min(sizes, default=0) < 0:
        raise InvalidArgumentError(f"{name} must begin at 0, not decrease, and end at {end}; got {values}.")
    if most is not None and max(sizes, default=0) > most:
        raise InvalidArgumentError(f"{name} give a text {max(sizes)} tokens, and there is room for {most}.")


def together(*tensors: Tensor) -> None:
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise InvalidArgumentError(f"All tensors of one call must lie on one device; got {', '.join(sorted(devices))}.")


def alike(what: str, *tensors: Tensor) -> None:
    together(*tensors)
    dtypes = {str(tensor.dtype) for tensor in tensors}
    if len(dtypes) > 1:
        raise InvalidArgumentError(f"{what} must have one dtype; got {', '.join(sorted(dtypes))}.")
