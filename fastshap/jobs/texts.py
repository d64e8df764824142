"""Texts as tables hold them, and what is wrong with those that cannot be explained."""

from __future__ import annotations

import hashlib
from typing import Any

from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.extras import needed

# A longer text is refused before it is tokenised, which would take memory and minutes for what a model cuts away anyway.
MOST_CHARACTERS = 1_000_000


def checked_text(text: Any) -> str | FastshapError:
    """A text, or what is wrong with it."""
    if isinstance(text, FastshapError):
        return text
    if not isinstance(text, str):
        return InvalidTypeError(f"A text must be a string; got {'null' if text is None else type(text).__name__}.")
    if len(text) > MOST_CHARACTERS:
        return InvalidArgumentError(
            f"The text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read. Split it."
        )
    return text


def text_hash(text: Any) -> str | None:
    """The first 32 hex digits of the SHA-256 of the UTF-8; None where there is no text."""
    if not isinstance(text, str):
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def strings(column: Any) -> list[Any]:
    """An Arrow column as Python values. Files may hold as strings what is no UTF-8: an error stands in its place."""
    arrow = needed("pyarrow", "tables")
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [decoded(value) for value in column.cast(arrow.large_binary()).to_pylist()]


def decoded(value: bytes | None) -> str | FastshapError | None:
    """The text of some UTF-8, or what is wrong with it."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError as error:
        return InvalidArgumentError(f"The text is not UTF-8 ({error.reason} at byte {error.start}).")
