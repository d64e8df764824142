"""Words that are already split, as tokens: those of a tokenizer that is told ``is_split_into_words=True``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.text.encode import EXTRA, Encoded, numbered, settings_kept
from fastshap.text.inputs import Words
from fastshap.text.spelling import BEGINS, scheme

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_words(tokenizer: PreTrainedTokenizerBase, sources: Sequence[Any], max_length: int | None) -> list[Any]:
    """The sources, with each :class:`Words` tokenised, or what is wrong with it in its place."""
    checked = [_problem_with(one) or one if isinstance(one, Words) else one for one in sources]
    good = [one for one in checked if isinstance(one, Words)]
    if not good:
        return checked
    found = iter(_encoded(tokenizer, good, max_length))
    return [next(found) if isinstance(one, Words) else one for one in checked]


def _problem_with(source: Words) -> FastshapError | None:
    if not source.words:
        return InvalidArgumentError("The text has no words; there is nothing to explain.")
    given: Any = source.words
    for number, word in enumerate(given):
        if not isinstance(word, str):
            return InvalidTypeError(f"Word {number}, counted from 0, must be a string; got {type(word).__name__}.")
        if not word.strip():
            return InvalidArgumentError(
                f"Word {number}, counted from 0, is empty or only white space; leave it out, with its label."
            )
        try:
            word.encode()
        except UnicodeEncodeError:
            return InvalidArgumentError(
                f"Word {number}, counted from 0, holds half of a surrogate pair, which no tokenizer takes."
            )
    return None


def _encoded(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[Words], max_length: int | None
) -> list[Encoded | FastshapError]:
    if not tokenizer.is_fast:
        slow = InvalidArgumentError(
            f"{type(tokenizer).__name__} does not say which tokens are of which word, as fast tokenizers do; join the words "
            "by spaces and pass the text."
        )
        return [slow] * len(sources)
    options: dict[str, Any] = {"is_split_into_words": True, "return_attention_mask": False, "verbose": False}
    if max_length is not None:
        options |= {"truncation": True, "max_length": max_length}
    with settings_kept(tokenizer, None):
        rows = tokenizer([[*source.words] for source in sources], **options)
    marker, added = scheme(tokenizer), tokenizer.get_added_vocab()
    return [
        _run_together(source, encoding, marker, added)
        or _of_no_token(source, encoding)
        or _one(source, encoding, {name: rows[name][i] for name in EXTRA if name in rows})
        for i, (source, encoding) in enumerate(zip(sources, rows.encodings, strict=True))
    ]


def _one(source: Words, encoding: Any, extra: dict[str, list[int]]) -> Encoded:
    """Characters are counted in the words joined by spaces, and not in each word."""
    special = [*map(bool, encoding.special_tokens_mask)]
    words = numbered(encoding.word_ids, special)
    starts = [*accumulate([len(word) + 1 for word in source.words], initial=0)]
    offsets = [
        (0, 0) if word is None else (starts[word] + start, starts[word] + end)
        for word, (start, end) in zip(words, encoding.offsets, strict=True)
    ]
    cut = bool(encoding.overflowing)
    return Encoded(source.text, encoding.ids, special, offsets, encoding.tokens, words, cut, extra=extra, split=True)


def _run_together(source: Words, encoding: Any, marker: str | None, added: Collection[str]) -> FastshapError | None:
    """Where the vocabulary marks the beginnings of words, and none behind the first begins with the mark.

    Args:
        added: tokens that are never marked, such as that of a mask.
    """
    begins = dict(reversed([*zip(encoding.word_ids, encoding.tokens, strict=True)]))
    later = [token for word, token in begins.items() if word and token not in added]
    if marker not in BEGINS or not later or any(token.startswith(marker) for token in later):
        return None
    return InvalidArgumentError(
        f"The tokenizer puts no space before words: it reads {''.join(source.words[:2])[:40]!r}. Load it with "
        "add_prefix_space=True (RoBERTa's and GPT-2's take that), or join the words by spaces and pass the text. If the model "
        "was trained on such tokens, pass tokenizer(words, is_split_into_words=True)."
    )


def _of_no_token(source: Words, encoding: Any) -> FastshapError | None:
    """Where the tokenizer leaves nothing of a word that it has not cut."""
    there = {word for word in encoding.word_ids if word is not None}
    wanted = range(min(there), max(there) + 1) if encoding.overflowing and there else range(len(source.words))
    lost = next((word for word in wanted if word not in there), None)
    if lost is None:
        return None
    return InvalidArgumentError(
        f"The tokenizer leaves nothing of word {lost}, counted from 0, {source.words[lost]!r}; leave it out, with its label."
    )
