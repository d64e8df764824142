"""Groups of one's own, in the place of a :class:`fastshap.Granularity`."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.types import Granularity, member_of

_CUSTOM = "callable:"
SPAN = {"type": "array", "items": {"$ref": "#/$defs/count"}, "minItems": 2, "maxItems": 2}
GRANULARITY_SCHEMA: Mapping[str, Any] = {
    "description": "A granularity's name; groups of one's own as (start, end) in characters, or by their function's name.",
    "anyOf": [
        {"type": "string", "pattern": f"^({'|'.join(one.value for one in Granularity)}|callable:.*)$"},
        {"type": "array", "minItems": 1, "items": SPAN},
    ],
}


class OwnGroups:
    """Spans of a text, the same for every text or by a function of it."""

    name = "GROUP"  # as members of an enumeration have one
    value = "group"

    def __init__(self, given: Callable[[str], Any] | tuple[tuple[int, int], ...] | str) -> None:
        self.given = given

    def spans_of(self, text: str) -> tuple[tuple[int, int], ...]:
        """Where each group begins and ends in a text, in reading order.

        Raises:
            InvalidArgumentError, InvalidTypeError: they are no spans of this text, or overlap.
        """
        if isinstance(self.given, str):
            raise InvalidArgumentError(
                f"The granularity {self.given!r} was a function, and a file holds its name alone; pass the function."
            )
        found = tuple(sorted(self.given if isinstance(self.given, tuple) else _spans(self._called(text))))
        if not found:
            raise InvalidArgumentError("The granularity gives no group for this text, so there is nothing to explain.")
        if found[-1][1] > len(text):
            raise InvalidArgumentError(f"A group ends at character {found[-1][1]}, and the text has {len(text)}.")
        for one, following in itertools.pairwise(found):
            if following[0] < one[1]:
                raise InvalidArgumentError(
                    f"The groups {one} and {following} overlap; a token is in one group at most."
                )
        return found

    def _called(self, text: str) -> Any:
        function: Any = self.given
        try:
            return function(text)
        except Exception as error:
            name = getattr(function, "__name__", type(function).__name__)
            raise InvalidArgumentError(
                f"The granularity {name!r} failed on this text: {type(error).__name__}: {error}"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnGroups) and bool(self.given == other.given)

    def __hash__(self) -> int:
        return hash(self.given)

    def __repr__(self) -> str:
        return f"OwnGroups({self.given!r})"


def granularity_of(value: object, name: str) -> Granularity | OwnGroups:
    """A member, its name, or groups of one's own: spans, or a function from a text to its spans."""
    if isinstance(value, OwnGroups):
        return value
    if callable(value) and not isinstance(value, type):
        return OwnGroups(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return OwnGroups(_spans(value))
    return member_of(Granularity, value, name)


def _spans(value: Any) -> tuple[tuple[int, int], ...]:
    try:
        found = tuple((operator.index(start), operator.index(end)) for start, end in _entries(value))
    except (TypeError, ValueError):
        found = ((1, 0),)
    if any(not 0 <= start < end for start, end in found):
        raise InvalidTypeError(
            f"Groups of your own are (start, end) in characters of the text, such as [(0, 5), (6, 11)]; got {value!r:.100}."
        )
    return found


def _entries(value: Any) -> Iterable[Any]:
    return value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]


def plain_granularity(value: Granularity | OwnGroups) -> Any:
    """As files hold it."""
    if isinstance(value, Granularity):
        return value.value
    if isinstance(value.given, tuple):
        return [list(span) for span in value.given]
    if isinstance(value.given, str):
        return _CUSTOM + value.given
    return _CUSTOM + str(getattr(value.given, "__name__", type(value.given).__name__))


def granularity_of_plain(plain: Any) -> Granularity | OwnGroups:
    """What :func:`plain_granularity` wrote; of a function its name."""
    if isinstance(plain, list):
        return OwnGroups(tuple((start, end) for start, end in plain))
    return OwnGroups(plain.removeprefix(_CUSTOM)) if plain.startswith(_CUSTOM) else Granularity(plain)
