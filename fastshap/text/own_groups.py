"""Groups of one's own: which tokens are in which."""

from __future__ import annotations

import bisect

from fastshap.errors import FastshapError, InvalidArgumentError
from fastshap.text.encode import Encoded, first_visible
from fastshap.types import Granularity
from fastshap.types.grouping import OwnGroups


def problem_with(granularity: Granularity | OwnGroups, encoded: Encoded) -> FastshapError | None:
    """What is wrong with groups of one's own for a text; None where nothing is, and for a granularity."""
    if isinstance(granularity, OwnGroups):
        try:
            keys_of(encoded, granularity)
        except FastshapError as error:
            return error
    return None


def keys_of(encoded: Encoded, groups: OwnGroups) -> list[int | None]:
    """The group that a token begins in."""
    spans = groups.spans_of(encoded.text)
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    keys: list[int | None] = []
    for special, span in zip(encoded.special, encoded.offsets, strict=True):
        first = first_visible(encoded.text, span)
        number = bisect.bisect_right(starts, first) - 1
        keys.append(number if not special and number >= 0 and first < ends[number] else None)
    for number, its in enumerate(spans):
        if len({bisect.bisect_right(encoded.parts, i) for i, key in enumerate(keys) if key == number}) > 1:
            raise InvalidArgumentError(f"The group {its} reaches into two parts of the text; make it two groups.")
    if len(lost := {*range(len(spans))} - {*keys}):
        raise InvalidArgumentError(
            f"No token begins in the group {spans[min(lost)]}, {encoded.text[slice(*spans[min(lost)])]!r}: make it larger."
        )
    return keys
