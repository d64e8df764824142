"""Texts as tables hold them, and what is wrong with those that cannot be explained."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.extras import needed
from fastshap.output.checked import short
from fastshap.text.inputs import Choices, Pair

if TYPE_CHECKING:
    import pyarrow as pa

# A longer text is refused before it is tokenised, which would take memory and minutes for what a model cuts away anyway.
MOST_CHARACTERS = 1_000_000

Text = str | Pair | Choices


def text_of(parts: Mapping[str, Any]) -> Any:
    """A row's text, unchecked: a string, a pair, or a text with choices.

    Args:
        parts: values named text, and perhaps pair or choices.
    """
    if "pair" in parts:
        return Pair(parts["text"], parts["pair"])
    return _with_choices(parts["text"], parts["choices"]) if "choices" in parts else parts["text"]


def _with_choices(text: Any, given: Any) -> Choices | FastshapError:
    """Choices come as a list; where a table has no lists, as CSV, in JSON."""
    if isinstance(given, FastshapError):
        return given
    if isinstance(given, str):
        with contextlib.suppress(ValueError, RecursionError):
            given = json.loads(given)
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, list | tuple) and given and all(isinstance(one, str) for one in given):
        return Choices(text, tuple(given))
    return InvalidTypeError(f"The choices of a text must be a list of strings; got {short(given)}.")


def checked_text(text: Any) -> Text | FastshapError:
    """A text, a pair or a text with choices, or what is wrong with it."""
    if isinstance(text, FastshapError):
        return text
    if isinstance(text, Choices):
        wrong = (one for one in map(checked_text, (text.text, *text.choices)) if isinstance(one, FastshapError))
        return next((type(one)(f"A text with choices cannot be used. {one}") for one in wrong), text)
    if isinstance(text, Pair):
        wrong = (one for one in map(checked_text, text) if isinstance(one, FastshapError))
        return next((type(one)(f"Of a pair, one text cannot be used. {one}") for one in wrong), text)
    if not isinstance(text, str):
        return InvalidTypeError(f"A text must be a string; got {'null' if text is None else type(text).__name__}.")
    if len(text) > MOST_CHARACTERS:
        return InvalidArgumentError(
            f"The text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read. Split it."
        )
    return text


def text_hash(text: Any) -> str | None:
    """The first 32 hex digits of the SHA-256 of the UTF-8, of several texts that of their JSON; None where there is no text."""
    if isinstance(text, Pair | Choices):
        text = json.dumps(text)
    if not isinstance(text, str):
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def texts_in(table: pa.Table) -> list[Any]:
    """The texts of a table of rows as jobs read it, or pairs or texts with choices; None where there is none."""
    names = [name for name in ("text", "pair", "choices") if name in table.column_names]
    rows = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    return [None if row[0] is None else text_of(dict(zip(names, row, strict=True))) for row in rows]


def strings(column: Any) -> list[Any]:
    """An Arrow column as Python values. Files may hold as strings what is no UTF-8: an error stands in its place."""
    arrow = needed("pyarrow", "tables")
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        if arrow.types.is_nested(column.type):
            return [_listed(value) for value in column]
        return [decoded(value) for value in column.cast(arrow.large_binary()).to_pylist()]


def _listed(value: Any) -> Any:
    """A list, or what is wrong with one of its strings."""
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return InvalidArgumentError(f"A choice is not UTF-8 ({error.reason} at byte {error.start}).")


def decoded(value: bytes | None) -> str | FastshapError | None:
    """The text of some UTF-8, or what is wrong with it."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError as error:
        return InvalidArgumentError(f"The text is not UTF-8 ({error.reason} at byte {error.start}).")
