"""Tokens to the elements that scores are reported for: words, sentences and parts of sentences as the text shows them."""

from __future__ import annotations

import bisect
import re
from typing import Any

from fastshap.text import Encoded, first_visible
from fastshap.types import Granularity

_CLOSING = "\"'”’»)\\]"
_WIDE_CLOSING = "”’」』）】》〉"
# A mark ends a sentence where white space follows; those of scripts without spaces end it anywhere.
_SENTENCE_END = re.compile(rf"[.?!…؟।۔]+[{_CLOSING}]*(?=\s)|[。！？｡]+[{_WIDE_CLOSING}]*")
_PART_END = re.compile(rf"[,;:.?!…،؛؟।۔]+[{_CLOSING}]*(?=\s)|[。！？｡，、；：]+[{_WIDE_CLOSING}]*")
_ABBREVIATIONS = frozenset(
    """mr. mrs. ms. dr. prof. sr. jr. st. mt. etc. cf. vs. nb. env. approx. min. max. resp. ex. ref. inc. ltd. co. fig.
    eq. gen. col. lt. sgt. capt. rev. hon. gov. sen. rep. ph.d. m.sc. b.sc. m.d. al. ca. vol. pp. ed. est. dept.
    a.m. p.m.""".split()
)
_DOTTED = re.compile(r"(?:[^\W\d_]\.){2,}")  # U.S., e.g., i.e.
_OPENING = "\"'“‘«(["


def groups(encoded: Encoded, granularity: Granularity) -> tuple[list[list[int]], list[str]]:
    """The token indices of every element, in reading order, and the elements as the text shows them.

    No element holds tokens of both the input and the target of a generation.
    """
    if granularity is Granularity.ALL_TOKENS:
        members = [[i] for i in range(len(encoded))]
    elif granularity is Granularity.TOKEN:
        members = [[i] for i in range(len(encoded)) if not encoded.special[i]]
    else:
        keys = _word_keys(encoded) if granularity is Granularity.WORD else _sentence_keys(encoded, granularity)
        gathered: dict[tuple[bool, Any], list[int]] = {}
        for i, key in enumerate(keys):
            if key is not None:
                gathered.setdefault((i >= encoded.prompt_length, key), []).append(i)
        members = [gathered[key] for key in sorted(gathered)]
    return members, [_shown(encoded, member) for member in members]


def _shown(encoded: Encoded, member: list[int]) -> str:
    if encoded.special[member[0]]:
        return encoded.tokens[member[0]]
    start = min(encoded.offsets[i][0] for i in member)
    end = max(encoded.offsets[i][1] for i in member)
    return encoded.text[start:end] or encoded.tokens[member[0]]


def _word_keys(encoded: Encoded) -> list[tuple[int, int] | None]:
    """The tokenizer's word and the run of text between white space: some tokenizers take a whole text for one word."""
    starts = [match.start() for match in re.finditer(r"\S+", encoded.text)]
    keys: list[tuple[int, int] | None] = []
    for word, span in zip(encoded.words, encoded.offsets, strict=True):
        first = first_visible(encoded.text, span)
        # A token of white space alone belongs to what follows.
        run = bisect.bisect_right(starts, first) + encoded.text[first : first + 1].isspace()
        keys.append(None if word is None else (word, run))
    return keys


def _sentence_keys(encoded: Encoded, granularity: Granularity) -> list[int | None]:
    pattern = _SENTENCE_END if granularity is Granularity.SENTENCE else _PART_END
    ends = [match.end() for match in pattern.finditer(encoded.text) if not _abbreviates(encoded.text, match)]
    return [
        None if special else bisect.bisect_right(ends, first_visible(encoded.text, span))
        for special, span in zip(encoded.special, encoded.offsets, strict=True)
    ]


def _abbreviates(text: str, match: re.Match[str]) -> bool:
    """Whether the full stop matched ends an abbreviation, so that the sentence goes on."""
    mark = match.group()
    if mark.rstrip("\"'”’»)]") != ".":
        return False
    begin = match.start()
    while begin > 0 and not text[begin - 1].isspace():
        begin -= 1
    word = text[begin : match.start() + 1].lstrip(_OPENING)
    return word.lower() in _ABBREVIATIONS or _DOTTED.fullmatch(word) is not None
