"""Tokens to groups: ragged reduction over the last dimension.

    out[t, g] = strategy over j in offsets[g] .. offsets[g + 1] of values[t, members[j]]

NaN members are left out. A group with no member left is NaN under every strategy. Nothing is accumulated atomically: the
result does not depend on how the work was split.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRATEGIES = ("mean", "max", "min", "sum", "signed_max", "first", "last")


def segment_reduce(values: Tensor, members: Tensor, offsets: Tensor, strategy: str) -> Tensor:
    """Reduces groups of columns.

    Args:
        values: (T, M) floating point; NaN means "not there".
        members: (K,) int64 columns of ``values``, group after group.
        offsets: (G + 1,) int64, where each group begins in ``members``.
        strategy: one of mean, max, min, sum, signed_max (the member of largest absolute value, with its sign; the first of
            equals), first, last.

    Returns:
        (T, G), in the dtype of ``values``.
    """
    sizes = offsets.diff()
    groups = sizes.shape[0]
    width = int(sizes.max()) if groups else 0
    if width == 0:
        return values.new_full((values.shape[0], groups), torch.nan)
    slot = torch.arange(width, device=values.device)
    there = slot < sizes[:, None]  # (G, W)
    column = members[(offsets[:-1, None] + slot).clamp_max(members.shape[0] - 1)]
    gathered = values[:, column]  # (T, G, W)
    there = there & ~gathered.isnan()
    empty = ~there.any(-1)
    if strategy in ("sum", "mean"):
        out = gathered.where(there, 0).sum(-1)
        if strategy == "mean":
            out = out / there.sum(-1).clamp_min(1)
    elif strategy == "max":
        out = gathered.where(there, -torch.inf).amax(-1)
    elif strategy == "min":
        out = gathered.where(there, torch.inf).amin(-1)
    else:
        if strategy == "signed_max":
            rank = gathered.abs().where(there, -1)
        elif strategy == "first":
            rank = torch.where(there, width - slot, -1)
        elif strategy == "last":
            rank = torch.where(there, slot, -1)
        else:
            raise ValueError(f"Unknown strategy {strategy!r}. Choose one of {', '.join(STRATEGIES)}.")
        # The first of equals, spelt out: argmax does not promise which.
        best = slot.where(rank == rank.amax(-1, keepdim=True), width).amin(-1, keepdim=True)
        out = gathered.gather(-1, best).squeeze(-1)
    return out.masked_fill(empty, torch.nan)
