"""Where something that a user names stands in a text."""

from __future__ import annotations

import operator
import re
from typing import Any

from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.text.encode import Encoded

_LISTED = 5  # places in a message


def span_in(text: str, given: Any) -> tuple[int, int]:
    """The characters (start, end) of ``text`` that ``given`` names.

    Args:
        given: a string that occurs in the text once, or (start, end). A string that occurs as whole words is not looked for
            within other words.

    Raises:
        InvalidArgumentError: the text has no such place, or several.
        InvalidTypeError: ``given`` is something else.
    """
    if isinstance(given, str):
        return _found(text, given)
    try:
        start, end = map(operator.index, given)
    except (TypeError, ValueError):
        raise InvalidTypeError(
            f"A place in a text is a string or the characters (start, end); got {given!r}."
        ) from None
    if not 0 <= start < end <= len(text):
        raise InvalidArgumentError(
            f"The characters ({start}, {end}) are no part of the text, which has {len(text)}; give a start, counted from 0, "
            "and an end behind it."
        )
    return start, end


def _found(text: str, given: str) -> tuple[int, int]:
    pattern = re.escape(given)
    places = [*re.finditer(rf"(?<!\w){pattern}(?!\w)", text)] or [*re.finditer(pattern, text)]
    if not given.strip() or not places:
        raise InvalidArgumentError(f"{given!r} does not occur in the text.")
    if len(places) > 1:
        listed = ", ".join(str(place.span()) for place in places[:_LISTED]) + ", …" * (len(places) > _LISTED)
        raise InvalidArgumentError(
            f"{given!r} occurs {len(places)} times in the text; give the characters that you mean, one of {listed}."
        )
    return places[0].span()


def tokens_at(encoded: Encoded, span: tuple[int, int]) -> list[int]:
    """The tokens that share characters with ``span`` of the text."""
    start, end = span
    return [i for i, (a, b) in enumerate(encoded.offsets) if a < end and b > start and not encoded.special[i]]
