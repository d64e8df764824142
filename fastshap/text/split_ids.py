"""Whether token ids come from words that were already split: ``tokenizer(words, is_split_into_words=True)``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_Word = tuple[int, int]  # which of two texts it is of, and its number there


def words_in(encodings: Sequence[Any] | None, ids: list[list[int]]) -> list[list[int | None]] | None:
    """The word of each token, a list for each row of ids; None where it is not sure that all rows came as words.

    In a text characters are counted on from word to word, and in words that came split from 0 in each.

    Args:
        encodings: what a fast tokenizer keeps of its result.
    """
    if not encodings or len(encodings) != len(ids):
        return None
    sure = False
    for encoding, row in zip(encodings, ids, strict=True):
        spans = _spans(encoding)
        if any(start for start, _ in spans.values()) or encoding.ids != row:
            return None
        # Not of a text of one character, which may become several words.
        sure = sure or any(one[0] == two[0] and max(spans[one][1], spans[two][1]) > 1 for one, two in pairwise(spans))
    return [_numbered(encoding) for encoding in encodings] if sure else None


def _spans(encoding: Any) -> dict[_Word, tuple[int, int]]:
    """The characters of each word."""
    found: dict[_Word, tuple[int, int]] = {}
    for word, (start, end) in zip(_each(encoding), encoding.offsets, strict=True):
        if word is not None:
            found[word] = found.get(word, (start, end))[0], end
    return found


def _numbered(encoding: Any) -> list[int | None]:
    """The words of both texts, counted on."""
    numbers: dict[_Word, int] = {}
    return [None if word is None else numbers.setdefault(word, len(numbers)) for word in _each(encoding)]


def _each(encoding: Any) -> list[_Word | None]:
    """The word of each token."""
    return [
        None if word is None else (text, word)
        for text, word in zip(encoding.sequence_ids, encoding.word_ids, strict=True)
    ]
