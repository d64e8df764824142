"""Texts as tables hold them, and what is wrong with those that cannot be explained."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.extras import needed
from fastshap.text.inputs import Pair

if TYPE_CHECKING:
    import pyarrow as pa

# A longer text is refused before it is tokenised, which would take memory and minutes for what a model cuts away anyway.
MOST_CHARACTERS = 1_000_000


def checked_text(text: Any) -> str | Pair | FastshapError:
    """A text or a pair, or what is wrong with it."""
    if isinstance(text, FastshapError):
        return text
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
    """The first 32 hex digits of the SHA-256 of the UTF-8, of a pair that of its JSON list; None where there is no text."""
    if isinstance(text, Pair):
        text = json.dumps(text)
    if not isinstance(text, str):
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def texts_in(table: pa.Table) -> list[Any]:
    """The texts of a table of rows as jobs read it, or pairs; None where there is none."""
    texts: list[Any] = table.column("text").to_pylist()
    if "pair" not in table.column_names:
        return texts
    return [
        None if one is None else Pair(one, two)
        for one, two in zip(texts, table.column("pair").to_pylist(), strict=True)
    ]


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
