"""How rows of several texts may share a model call: found by running the model at points of several lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshap.engine.packing import columns
from fastshap.tasks.trial import Judge, Ran, ToLogits, far, leaks, ran

_LENGTHS = (5, 23, 24)  # little padding and much, and no multiple of what a model may cut texts into
_LONGEST = 600  # tokens, at most, to reach beyond a model's local attention
_LOCAL = ("window", "kernel", "chunk", "block", "local", "stride")  # in the names of such sizes


class Layout(NamedTuple):
    """How rows of several texts may share a model call."""

    padding_side: str | None  # None: only rows of one length may
    maskless: bool  # rows of one length need no attention mask
    in_place: bool = False  # the model writes into its inputs_embeds, so it gets a copy


PLAIN = Layout(None, False)


def lengths(config: Any, most: int | None) -> list[int]:
    """How long the points are on which padding is tried: some short, and one beyond what the model mixes locally."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = [
        value
        for name, values in vars(config).items()
        if any(word in name for word in _LOCAL)
        for value in (values if isinstance(values, list | tuple) else [values])
        if isinstance(value, int) and _LENGTHS[-1] <= value + 7 <= min(_LONGEST, most or _LONGEST)
    ]
    wanted = [*_LENGTHS, *(size + 7 for size in sorted(sizes)[-1:])]
    return sorted({min(length, most or length) for length in wanted})


def masked(z: Tensor, extra: Sequence[str]) -> dict[str, Tensor]:
    """What the model gets beside z (R, L, D) where all of it is text."""
    ones = torch.ones(z.shape[:2], dtype=torch.int64, device=z.device)
    return {"attention_mask": ones, **{name: torch.zeros_like(ones) for name in extra}}


def padded(points: Sequence[Tensor], side: str, filled: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """(R, L, D) points in one call, padded with zeros or with what is far from them, and the mask (R, L) of what is real."""
    longest = max(point.shape[1] for point in points)
    rows, mask = [], torch.zeros(len(points), longest, dtype=torch.int64, device=points[0].device)
    for i, (point, away) in enumerate(zip(points, filled, strict=True)):
        mask[i, columns(point.shape[1], longest, side)] = 1
        room = longest - point.shape[1]
        padding = far(point, room) if away else point.new_zeros(1, room, point.shape[2])
        rows.append(torch.cat([padding, point] if side == "left" else [point, padding], 1))
    return torch.cat(rows), mask


def harmless(
    forward: ToLogits, points: Sequence[Tensor], alone: Sequence[Ran], judge: Judge, extra: Sequence[str], side: str
) -> bool:
    """Whether points of several lengths, padded in one call, come out as they do alone."""
    if len(points) < 2:
        return False
    rows, right = [*points, *points[:-1]], [*alone, *alone[:-1]]  # the longest, the last, has no padding
    filled = [True] * len(points) + [False] * (len(points) - 1)
    z, mask = padded(rows, side, filled)
    inputs = {"attention_mask": mask, **{name: torch.zeros_like(mask) for name in extra}}
    if side == "left":
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    together = ran(forward, z, inputs, mask.bool())
    for i, (point, theirs) in enumerate(zip(rows, right, strict=True)):
        ours = together.row(i, columns(point.shape[1], z.shape[1], side))
        padding = together.gradients[i][mask[i] == 0]
        if not judge.agree(ours, theirs) or leaks(padding, theirs.gradients):
            return False
    return True


def without_mask(
    forward: ToLogits, z: Tensor, alone: Sequence[Ran], judge: Judge, inputs: Mapping[str, Tensor]
) -> bool:
    """Whether rows of one length come out the same where no mask is passed."""
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
    together = ran(forward, z, bare)
    return all(judge.agree(together.row(i, slice(None)), theirs) for i, theirs in enumerate(alone))
