"""Texts to tokens: what the model sees, and where each token stands in the text."""

from __future__ import annotations

import dataclasses
import marshal
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.models.locks import lock_of
from fastshap.text.inputs import Pair, Tokens
from fastshap.text.spelling import align, decode, scheme, spell, words

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchEncoding, PreTrainedTokenizerBase

# Further inputs of the model that have one value for each token.
EXTRA = ("token_type_ids",)


# WordPiece loses the white space of a text, and its decoder writes "didn ' t".
_APART = re.compile(r"(?<=\w) (['’]) (?=(?:t|s|m|d|re|ve|ll)\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenised text, unpadded; the lists have one entry a token."""

    text: str
    input_ids: list[int]
    special: list[bool]  # added by the tokenizer's template, not part of the text
    offsets: list[tuple[int, int]]  # characters of ``text``; (0, 0) for special tokens
    tokens: list[str]
    words: list[int | None]  # word index, None for special tokens
    truncated: bool
    parts: tuple[int, ...] = ()  # the first token of each further part, which no element shares with the part before
    sequences: tuple[
        list[int], ...
    ] = ()  # where the model reads several sequences made of these tokens: the places of each
    extra: dict[str, list[int]] = field(default_factory=dict)  # further inputs of the model, token_type_ids say
    split: bool = False  # whether the words came already split

    def __len__(self) -> int:
        return len(self.input_ids)

    def with_sequences(self, sequences: tuple[list[int], ...]) -> Encoded:
        """The same tokens, of which the model reads these sequences."""
        return dataclasses.replace(self, sequences=sequences)

    def key(self, positions: Tensor | None) -> bytes:
        """What decides what a model makes of the text, where the rows at ``positions`` (P,) are asked for."""
        return as_bytes(self.input_ids, self.extra, self.sequences, None if positions is None else positions.tolist())


def as_bytes(*values: Any) -> bytes:
    """Numbers in lists as a key: equal keys mean equal numbers. It is hashed once, and is a single object."""
    return marshal.dumps(values, 2)  # the last version whose bytes hang on the values alone


def encode(
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Any],
    *,
    max_length: int | None,
    add_special_tokens: bool = True,
    truncation_side: str | None = None,
) -> list[Encoded | FastshapError]:
    """Tokenises texts, each cut to ``max_length`` tokens where given, and takes token ids as they are.

    What is wrong with a text stands in its place. ``add_special_tokens`` concerns strings alone; ``truncation_side`` says which
    end is cut, None as the tokenizer does.
    """
    problems = [_problem_with(source) for source in sources]
    good = [source for source, problem in zip(sources, problems, strict=True) if problem is None]
    texts = [source for source in good if isinstance(source, str)]
    pairs = [source for source in good if isinstance(source, Pair)]
    kinds: list[tuple[type, list[Any]]] = [(str, texts), (Pair, pairs)]
    options: dict[str, Any] = {
        "add_special_tokens": add_special_tokens,
        "return_attention_mask": False,
        "verbose": False,
    }
    if max_length is not None:
        options |= {"truncation": True, "max_length": max_length}
    with settings_kept(tokenizer, truncation_side):
        encode_texts = _encode_fast if tokenizer.is_fast else _encode_slow
        encoded = {kind: iter(encode_texts(tokenizer, some, options) if some else []) for kind, some in kinds}
        found = [
            problem
            or (source if isinstance(source, Encoded) else None)
            or (_encode_ids(tokenizer, source) if isinstance(source, Tokens) else next(encoded[type(source)]))
            for source, problem in zip(sources, problems, strict=True)
        ]
    return [_with_content(one) if isinstance(one, Encoded) else one for one in found]


def _problem_with(source: object) -> FastshapError | None:
    if isinstance(source, FastshapError):
        return source
    if isinstance(source, Encoded):
        return None
    if isinstance(source, Pair):
        problems = map(_problem_with, source)
        return next((type(one)(f"Of a pair, one text cannot be used. {one}") for one in problems if one), None)
    if isinstance(source, Tokens):
        return None if source.ids else InvalidArgumentError("The text has no tokens; there is nothing to explain.")
    if not isinstance(source, str):
        return InvalidTypeError(f"A text must be a string or token ids; got {type(source).__name__}.")
    if not source.strip():
        return InvalidArgumentError("The text is empty or only white space; there is nothing to explain.")
    try:
        source.encode()
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
    rows = tokenizer(texts, **options)
    extra = {name: rows[name] for name in EXTRA if name in rows}
    found = [
        Encoded(
            text=text,
            input_ids=ids,
            special=(special := [*map(bool, encoding.special_tokens_mask)]),
            offsets=encoding.offsets,
            tokens=encoding.tokens,
            words=numbered(encoding.word_ids, special),
            truncated=bool(encoding.overflowing),
            extra={name: values[i] for name, values in extra.items()},
        )
        for i, (text, ids, encoding) in enumerate(zip(texts, rows["input_ids"], rows.encodings, strict=True))
    ]
    if texts and isinstance(texts[0], Pair):
        return [_as_pair(*one) for one in zip(found, texts, rows.encodings, strict=True)]
    return found


def _as_pair(encoded: Encoded, pair: Pair, encoding: Any) -> Encoded:
    """Two texts as one: a line each."""
    second = [number == 1 for number in encoding.sequence_ids]
    shift = len(pair.first) + 1
    words = 1 + max((w for w, two in zip(encoded.words, second, strict=True) if w is not None and not two), default=-1)
    return _replaced(
        encoded,
        text="\n".join(pair),
        offsets=[
            (a + shift, b + shift) if two else (a, b) for (a, b), two in zip(encoded.offsets, second, strict=True)
        ],
        words=[w + words if two and w is not None else w for w, two in zip(encoded.words, second, strict=True)],
        parts=(second.index(True),) if True in second else (),
    )


def _encode_slow(tokenizer: PreTrainedTokenizerBase, texts: list[Any], options: dict[str, Any]) -> list[Encoded]:
    rows = tokenizer(texts, return_special_tokens_mask=True, **options)
    encoded = []
    for i, text in enumerate(texts):
        ids = list(rows["input_ids"][i])
        special = [bool(flag) for flag in rows["special_tokens_mask"][i]]
        truncated = False
        if len(ids) == options.get("max_length"):
            uncut = tokenizer(*_one_or_two(text), add_special_tokens=options["add_special_tokens"], verbose=False)
            truncated = len(uncut["input_ids"]) > len(ids)
        one = _from_ids(tokenizer, ids, special, _extra(rows, i), truncated)
        text = "\n".join(_one_or_two(text))
        aligned = align(text, one.text, [span for span, flag in zip(one.offsets, special, strict=True) if not flag])
        if aligned is not None:
            found = iter(aligned)
            one = _replaced(one, text=text, offsets=[(0, 0) if flag else next(found) for flag in special])
        encoded.append(one)
    return encoded


def _one_or_two(text: str | Pair) -> Sequence[str]:
    return (text,) if isinstance(text, str) else text


def _encode_ids(tokenizer: PreTrainedTokenizerBase, source: Tokens) -> Encoded | FastshapError:
    if min(source.ids) < 0:
        return InvalidArgumentError(f"Token ids are zero or more; got {min(source.ids)}.")
    named = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id, tokenizer.mask_token_id}  # which stand in texts
    special = source.special or [token in named for token in source.ids]
    types = source.types or [0] * len(source.ids)
    extra = {name: types for name in EXTRA if name in tokenizer.model_input_names}
    if all(special):
        return InvalidArgumentError("The token ids are special tokens alone; there is nothing to explain.")
    found = _from_ids(tokenizer, source.ids, special, extra, truncated=False)
    return found if source.words is None else _replaced(found, words=source.words, split=True)


def _from_ids(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    special: list[bool],
    extra: dict[str, list[int]],
    truncated: bool,
) -> Encoded:
    """Spells the runs of tokens between special ones, one below the other."""
    text, first = "", 0
    offsets: list[tuple[int, int]] = []
    numbers: list[int | None] = []
    names: list[str] = []
    for is_special, run in groupby(zip(ids, special, strict=True), key=lambda pair: pair[1]):
        part = [token for token, _ in run]
        known = [token if token < len(tokenizer) else 0 for token in part]  # tables are often wider than vocabularies
        listed = zip(tokenizer.convert_ids_to_tokens(known), known, part, strict=True)
        tokens = [name if name and token == given else f"<{given}>" for name, token, given in listed]
        names += tokens
        if is_special:
            offsets += [(0, 0)] * len(part)
            numbers += [None] * len(part)
            continue
        spelled, spans, indices = _read(tokenizer, known, tokens)
        text += "\n" if text else ""
        offsets += [(a + len(text), b + len(text)) for a, b in spans]
        numbers += [None if index is None else index + first for index in indices]
        text += spelled
        first += 1 + max((index for index in indices if index is not None), default=-1)
    parts = _second_text(ids, special, extra.get("token_type_ids", []), tokenizer.sep_token_id)
    return Encoded(text, ids, special, offsets, names, numbers, truncated, parts, extra=extra)


def _second_text(ids: list[int], special: list[bool], types: list[int], separator: int | None) -> tuple[int, ...]:
    """The first token of a pair's second text: where the types say so, or behind the only separator between texts."""
    starts = [i for i, flag in enumerate(special) if not flag and i > 0 and special[i - 1]]
    if 1 in types:
        return tuple(i for i in starts if types[i] == 1)[:1]
    starts = [i for i in starts if separator in (ids[i - 1], ids[max(0, i - 2)]) and not all(special[:i])]
    return (starts[0],) if len(starts) == 1 else ()


def _read(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], tokens: list[str]
) -> tuple[str, list[tuple[int, int]], Sequence[int | None]]:
    """The text of some tokens, their characters in it and their words."""
    marker = scheme(tokenizer)
    if not tokenizer.is_fast:
        return *spell(tokenizer, ids, tokens, marker), words(tokens, marker)
    text = decode(tokenizer, ids)
    for spelled in dict.fromkeys((_APART.sub(r"\1", text), text)):
        encoding = tokenizer(spelled, add_special_tokens=False).encodings[0]
        if encoding.ids == ids:
            return spelled, list(encoding.offsets), numbered(encoding.word_ids, [0] * len(ids))
    # Not the tokens that this text would have today: cut within a word, or written one by one by a model.
    text, spans = spell(tokenizer, ids, tokens, marker)
    if tokenizer.unk_token_id in ids:
        return text, spans, words(tokens, marker)
    encoding = tokenizer(text, add_special_tokens=False).encodings[0]
    within = [encoding.char_to_word(first_visible(text, span)) for span in spans]
    return text, spans, numbered(within, [0] * len(ids))


def first_visible(text: str, span: tuple[int, int]) -> int:
    """Where the first character of a span that is not white space stands; its beginning if there is none."""
    start, end = span
    if not text[start : start + 1].isspace():
        return start
    return next((at for at in range(start, end) if not text[at].isspace()), start)


def numbered(word_ids: list[int | None], special: Sequence[int]) -> list[int | None]:
    """A word for every token of the text; one that the tokenizer counts to no word belongs to the one before."""
    if [word is None for word in word_ids] == special:  # most often
        return word_ids
    numbers: list[int | None] = []
    last = 0
    for word, flag in zip(word_ids, special, strict=True):
        last = last if word is None else word
        numbers.append(None if flag else last)
    return numbers


def _extra(rows: BatchEncoding, i: int) -> dict[str, list[int]]:
    return {name: list(rows[name][i]) for name in EXTRA if name in rows}


def _replaced(encoded: Encoded, **changes: Any) -> Encoded:
    return dataclasses.replace(encoded, **changes)


def without_ending(encoded: Encoded) -> Encoded:
    """The text without special tokens at its end, which would stand between it and what follows."""
    end = len(encoded)
    while end > 0 and encoded.special[end - 1]:
        end -= 1
    return until(encoded, end)


def until(encoded: Encoded, end: int) -> Encoded:
    """The tokens before ``end``; the text stays whole."""
    changes: dict[str, Any] = {
        name: getattr(encoded, name)[:end] for name in ("input_ids", "special", "offsets", "tokens", "words")
    }
    extra = {name: values[:end] for name, values in encoded.extra.items()}
    return _replaced(encoded, **changes, extra=extra, parts=tuple(first for first in encoded.parts if first < end))


def beginning(encoded: Encoded, end: int) -> Encoded:
    """The tokens before ``end``, with their part of the text."""
    cut = until(encoded, end)
    return _replaced(cut, text=cut.text[: max((last for _, last in cut.offsets), default=0)])


def without(encoded: Encoded, places: Collection[int]) -> Encoded:
    """All tokens of a text of one part but some; the text stays as it is."""
    kept = [i for i in range(len(encoded)) if i not in places]
    names = ("input_ids", "special", "offsets", "tokens", "words")
    changes: dict[str, Any] = {name: [getattr(encoded, name)[i] for i in kept] for name in names}
    return _replaced(
        encoded, **changes, extra={name: [values[i] for i in kept] for name, values in encoded.extra.items()}
    )


def after(encoded: Encoded, start: int) -> Encoded:
    """The tokens from ``start`` on, with their part of the text."""
    first = max((end for _, end in encoded.offsets[:start]), default=0)
    names = ("input_ids", "special", "tokens", "words")
    return _replaced(
        encoded,
        text=encoded.text[first:],
        offsets=[(max(0, a - first), max(0, b - first)) for a, b in encoded.offsets[start:]],
        **{name: getattr(encoded, name)[start:] for name in names},
        extra={name: values[start:] for name, values in encoded.extra.items()},
        parts=tuple(one - start for one in encoded.parts if one > start),
    )


def goes_on(beginning: Encoded, both: Encoded) -> bool:
    """Whether ``both`` begins with the tokens of ``beginning`` and has further ones."""
    count = len(beginning)
    return len(both) > count and both.input_ids[:count] == beginning.input_ids


def join(first: Encoded, second: Encoded, between: str = "") -> Encoded:
    """The two one after the other, as one text of two parts, with ``between`` between them in the text."""
    shift = len(first.text) + len(between)
    words = 1 + max((word for word in first.words if word is not None), default=-1)
    return Encoded(
        text=first.text + between + second.text,
        input_ids=first.input_ids + second.input_ids,
        special=first.special + second.special,
        offsets=first.offsets
        + [_shifted(span, flag, shift) for span, flag in zip(second.offsets, second.special, strict=True)],
        tokens=first.tokens + second.tokens,
        words=first.words + [None if word is None else word + words for word in second.words],
        truncated=first.truncated or second.truncated,
        parts=(*first.parts, len(first)),
        extra={name: first.extra[name] + second.extra[name] for name in first.extra if name in second.extra},
    )


def _shifted(span: tuple[int, int], special: bool, shift: int) -> tuple[int, int]:
    """Special tokens stand nowhere in a text."""
    return span if special else (span[0] + shift, span[1] + shift)


@contextmanager
def settings_kept(tokenizer: PreTrainedTokenizerBase, truncation_side: str | None) -> Iterator[None]:
    """One caller at a time; the side of truncation and what is set on a fast tokenizer's core are put back."""
    with lock_of(tokenizer):
        side = tokenizer.truncation_side
        core = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        truncation, padding = (core.truncation, core.padding) if core is not None else (None, None)
        try:
            tokenizer.truncation_side = truncation_side or side
            yield
        finally:
            tokenizer.truncation_side = side
            if core is not None:
                core.no_truncation() if truncation is None else core.enable_truncation(**truncation)
                core.no_padding() if padding is None else core.enable_padding(**padding)
