"""Which rows share a call: all rows of all texts, cut into calls."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from fastshap.engine.budget import Budget
from fastshap.ops import MOST_TEXTS

_MASK = 0.06  # the share of a call that a mask costs. Measured (docs/adr/0009)


class Piece(NamedTuple):
    """The samples ``lo:hi`` of one item."""

    item: int
    lo: int
    hi: int


def plan(
    lengths: Sequence[int],
    kinds: Sequence[Any],
    rows: Sequence[int],
    budget: Budget,
    equal_lengths: bool,
    backward: bool = True,
    apart: Collection[int] = (),
) -> Iterator[list[Piece]]:
    """Cuts the rows of all items into calls: items of one kind a call, longest first, so that padding stays small.

    ``kinds``: what is equal for the items of a call. ``backward``: whether the calls keep what a backward pass takes.
    ``apart``: items that share no call.
    """
    order = sorted(range(len(lengths)), key=lambda i: (i not in apart, kinds[i], lengths[i]), reverse=True)
    call: list[Piece] = []
    room = taken = 0
    first = -1
    for item in order:
        lo = 0
        while lo < rows[item]:
            mixed = first >= 0 and (kinds[item] != kinds[first] or (equal_lengths and lengths[item] != lengths[first]))
            mixed |= first not in (-1, item) and (item in apart or first in apart)
            # Where it is large enough, better a smaller call than one with a part of a text, or with much padding.
            differs = lengths[item] != lengths[first] or rows[item] - lo > room - taken
            if differs and budget.is_enough(taken, lengths[first]):
                more = rows[item] - lo
                padding = (lengths[first] - lengths[item]) * more + _MASK * (taken + more) * lengths[first]
                mixed |= more > room - taken or padding > budget.worth
            if room == taken or mixed or len(call) == MOST_TEXTS:
                if call:
                    yield call
                call, first, taken = [], item, 0
                room = budget.rows(lengths[item], backward)
            hi = min(lo + room - taken, rows[item])
            call.append(Piece(item, lo, hi))
            taken += hi - lo
            lo = hi
    if call:
        yield call


def halves(pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """The first and the second half of a call's rows."""
    room = sum(piece.hi - piece.lo for piece in pieces) // 2
    first: list[Piece] = []
    second: list[Piece] = []
    for piece in pieces:
        middle = min(piece.hi, piece.lo + room)
        room -= middle - piece.lo
        if middle > piece.lo:
            first.append(Piece(piece.item, piece.lo, middle))
        if middle < piece.hi:
            second.append(Piece(piece.item, middle, piece.hi))
    return first, second
