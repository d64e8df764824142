"""Texts to tokens, and tokens to the groups that scores are reported for."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.locks import lock_of
from fastshap.types import Granularity

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

_CLOSING = "\"'”’»)\\]"
_SENTENCE_END = re.compile(rf"[.?!…]+[{_CLOSING}]*(?=\s)")
_PART_END = re.compile(rf"[,;:.?!…]+[{_CLOSING}]*(?=\s)")
_ABBREVIATIONS = frozenset(
    """mr. mrs. ms. dr. prof. sr. jr. st. mt. etc. cf. vs. nb. env. approx. min. max. resp. ex. ref. inc. ltd. co. fig.
    eq. gen. col. lt. sgt. capt. rev. hon. gov. sen. rep. ph.d. m.sc. b.sc. m.d. al. ca. vol. pp. ed. est. dept.
    a.m. p.m.""".split()
)
_DOTTED = re.compile(r"(?:[^\W\d_]\.){2,}")  # U.S., e.g., i.e.
_OPENING = "\"'“‘«(["
_WORD_MARKERS = ("Ġ", "▁", " ")


@dataclass(frozen=True)
class Encoded:
    """One tokenised text, unpadded; the lists have one entry a token."""

    text: str
    input_ids: list[int]
    special: list[bool]  # added by the tokenizer's template, not part of the text
    offsets: list[tuple[int, int]]  # characters of ``text``; (0, 0) for special tokens
    tokens: list[str]
    words: (
        list[int | None] | None
    )  # word index, None for special tokens; None as a whole where the tokenizer has no words
    truncated: bool
    prompt_length: int  # tokens that are input; any further ones are the target text of a generation
    extra: dict[str, list[int]] = field(default_factory=dict)  # further inputs of the model, token_type_ids say

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[object],
    *,
    max_length: int | None,
    add_special_tokens: bool = True,
) -> list[Encoded | FastshapError]:
    """Tokenises texts, each cut to ``max_length`` tokens where given. What is wrong with a text stands in its place."""
    problems = [_problem_with(text) for text in texts]
    good = [text for text, problem in zip(texts, problems, strict=True) if problem is None]
    options: dict[str, Any] = {"add_special_tokens": add_special_tokens, "return_special_tokens_mask": True}
    if max_length is not None:
        options |= {"truncation": True, "max_length": max_length}
    with _settings_kept(tokenizer):
        encode_good = _encode_fast if tokenizer.is_fast else _encode_slow
        encoded = iter(encode_good(tokenizer, good, options) if good else [])
    return [_with_content(next(encoded)) if problem is None else problem for problem in problems]


def _problem_with(text: object) -> FastshapError | None:
    if not isinstance(text, str):
        return InvalidTypeError(f"A text must be a string; got {type(text).__name__}.")
    if not text.strip():
        return InvalidArgumentError("The text is empty or only white space; there is nothing to explain.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return InvalidArgumentError(
            f"The text holds half of a surrogate pair at character {error.start}, which no tokenizer takes; decode it "
            "with errors='replace', or remove it."
        )
    return None


def _with_content(encoded: Encoded) -> Encoded | FastshapError:
    if all(encoded.special):
        return InvalidArgumentError(
            f"The tokenizer leaves nothing of {encoded.text[:40]!r} but special tokens; there is nothing to explain."
        )
    return encoded


def _encode_fast(tokenizer: PreTrainedTokenizerBase, texts: list[Any], options: dict[str, Any]) -> list[Encoded]:
    batch = tokenizer(texts, return_offsets_mapping=True, **options)
    return [
        Encoded(
            text=text,
            input_ids=list(encoding.ids),
            special=[bool(flag) for flag in encoding.special_tokens_mask],
            offsets=list(encoding.offsets),
            tokens=list(encoding.tokens),
            words=list(encoding.word_ids),
            truncated=bool(encoding.overflowing),
            prompt_length=len(encoding.ids),
            extra=_extra(batch, i),
        )
        for i, (text, encoding) in enumerate(zip(texts, batch.encodings, strict=True))
    ]


def _encode_slow(tokenizer: PreTrainedTokenizerBase, texts: list[Any], options: dict[str, Any]) -> list[Encoded]:
    batch = tokenizer(texts, **options)
    encoded = []
    for i, text in enumerate(texts):
        ids = list(batch["input_ids"][i])
        special = [bool(flag) for flag in batch["special_tokens_mask"][i]]
        tokens = list(tokenizer.convert_ids_to_tokens(ids))
        truncated = False
        if len(ids) == options.get("max_length"):
            whole = tokenizer(text, add_special_tokens=options["add_special_tokens"], verbose=False)
            truncated = len(whole["input_ids"]) > len(ids)
        rebuilt, offsets = _rebuild(tokens, special)
        encoded.append(Encoded(rebuilt, ids, special, offsets, tokens, None, truncated, len(ids), _extra(batch, i)))
    return encoded


def _extra(batch: BatchEncoding, i: int) -> dict[str, list[int]]:
    return {name: list(batch[name][i]) for name in ("token_type_ids",) if name in batch}


def _rebuild(tokens: Sequence[str], special: Sequence[bool]) -> tuple[str, list[tuple[int, int]]]:
    """A text and offsets for a tokenizer that gives none, from the tokens' markers for a word's beginning or continuation."""
    continued = any(token.startswith("##") for token in tokens)
    marked = any(token.startswith(_WORD_MARKERS) for token in tokens)
    text, offsets = "", []
    for token, is_special in zip(tokens, special, strict=True):
        if is_special:
            offsets.append((0, 0))
            continue
        begins = token.startswith(_WORD_MARKERS) if marked else not (continued and token.startswith("##"))
        piece = token.removeprefix("##") if continued else token
        piece = piece[1:] if piece.startswith(_WORD_MARKERS) else piece
        if begins and text:
            text += " "
        offsets.append((len(text), len(text) + len(piece)))
        text += piece
    return text, offsets


def join(prompt: Encoded, target: Encoded) -> Encoded:
    """The two one after the other, as one text for a causal model."""
    shift = len(prompt.text)
    words = None
    if prompt.words is not None and target.words is not None:
        first = 1 + max((word for word in prompt.words if word is not None), default=-1)
        words = prompt.words + [None if word is None else word + first for word in target.words]
    return Encoded(
        text=prompt.text + target.text,
        input_ids=prompt.input_ids + target.input_ids,
        special=prompt.special + target.special,
        offsets=prompt.offsets + [(a + shift, b + shift) for a, b in target.offsets],
        tokens=prompt.tokens + target.tokens,
        words=words,
        truncated=prompt.truncated or target.truncated,
        prompt_length=len(prompt),
        extra={name: prompt.extra[name] + target.extra[name] for name in prompt.extra if name in target.extra},
    )


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
    words = encoded.words or [None if special else 0 for special in encoded.special]
    keys: list[tuple[int, int] | None] = []
    for word, span in zip(words, encoded.offsets, strict=True):
        first = _first_character(encoded.text, span)
        # A token of white space alone belongs to what follows.
        run = bisect.bisect_right(starts, first) + encoded.text[first : first + 1].isspace()
        keys.append(None if word is None else (word, run))
    return keys


def _sentence_keys(encoded: Encoded, granularity: Granularity) -> list[int | None]:
    pattern = _SENTENCE_END if granularity is Granularity.SENTENCE else _PART_END
    ends = [match.end() for match in pattern.finditer(encoded.text) if not _abbreviates(encoded.text, match)]
    return [
        None if special else bisect.bisect_right(ends, _first_character(encoded.text, span))
        for special, span in zip(encoded.special, encoded.offsets, strict=True)
    ]


def _first_character(text: str, span: tuple[int, int]) -> int:
    """Where the token's first character that is not white space stands."""
    start, end = span
    while start + 1 < end and text[start].isspace():
        start += 1
    return start


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


@contextmanager
def _settings_kept(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """One caller at a time, and the truncation and padding set on a fast tokenizer's core are put back."""
    with lock_of(tokenizer):
        core = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        truncation, padding = (core.truncation, core.padding) if core is not None else (None, None)
        try:
            yield
        finally:
            if core is not None:
                core.no_truncation() if truncation is None else core.enable_truncation(**truncation)
                core.no_padding() if padding is None else core.enable_padding(**padding)
