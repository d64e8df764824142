"""Whatever is passed as ``model_inputs``, as one entry for each text: a string, or its token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.text.split_ids import words_in
from fastshap.types.targets import Contrast

KINDS = (
    "a string, a tuple of two strings (a pair), fastshap.Words, a list of messages (a conversation), token ids (a list or an "
    "integer tensor), a mapping of tensors with input_ids as a tokenizer returns it, a mapping of text and choices, or an "
    "iterable of these"
)
_SEVERAL = (
    "Several strings stand where one text is expected. A pair of texts is a tuple of two strings, (first, second). Texts that "
    "do not belong together stand in one list. Words that are already split are fastshap.Words([...])."
)
_SEVERAL_TARGETS = (
    "Several strings stand where one target is expected; give each text one, and a text twice for two targets."
)
_PAIR_KEYS, _CHOICE_KEYS = {"text", "text_pair"}, {"text", "choices"}
_OF_TARGETS = (type(None), FastshapError, Contrast)
_HANDLED = ("input_ids", "attention_mask", "special_tokens_mask", "token_type_ids")


@dataclass(frozen=True)
class Tokens:
    """One text that came as token ids, without padding."""

    ids: list[int]
    special: list[bool] | None = None  # from special_tokens_mask
    types: list[int] | None = None  # from token_type_ids
    words: list[int | None] | None = None  # the word of each token, where they came already split
    further: tuple[str, ...] = ()  # the names of a mapping's other entries
    masked: bool = True  # False for one of several rows without an attention_mask, where padding cannot be told


class Pair(NamedTuple):
    """Two texts that the model reads as one input."""

    first: str
    second: str


@dataclass(frozen=True)
class Words:
    """A text as words that are already split. At the granularity WORD each is one element, shown as it is given.

    The model gets the tokens that ``tokenizer(words, is_split_into_words=True)`` gives. The output's ``text`` is the words with
    a space between them.

    Raises:
        InvalidTypeError: what is given is no list of words. What is wrong with a word is said when the text is explained.

    Example:
        >>> model, tokenizer = fastshap.load_default_model()
        >>> explainer = fastshap.GradientShap(model, tokenizer, batch_size="auto", n_perturbations=20)
        >>> explainer(fastshap.Words(["The", "film", "'s", "end", "was", "moving", "!!"]))[0].elements
        ['The', 'film', "'s", 'end', 'was', 'moving', '!!']
    """

    words: Sequence[str]

    def __post_init__(self) -> None:
        given: Any = self.words
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            raise InvalidTypeError(
                f"Words takes a list of strings; got {_kind_of(given)}. A text that is not split is passed as a string."
            )
        object.__setattr__(self, "words", tuple(given))

    @property
    def text(self) -> str:
        """The words with a space between them."""
        return " ".join(word for word in self.words if isinstance(word, str))


class Choices(NamedTuple):
    """A text, and what may follow it: of these the model chooses."""

    text: str
    choices: tuple[str, ...]


class Chat(NamedTuple):
    """A conversation: a role and what it says, for each message."""

    messages: tuple[tuple[str, str], ...]

    @property
    def as_mappings(self) -> list[dict[str, str]]:
        """As a tokenizer's template takes it."""
        return [{"role": role, "content": content} for role, content in self.messages]


class Refused(NamedTuple):
    """An entry that an earlier look found wrong."""

    error: FastshapError


Source = str | Pair | Words | Choices | Chat | Tokens


def spelled(source: Any) -> str:
    """The texts of an entry, a line each; an empty string for one that is no text."""
    if isinstance(source, Choices):
        return "\n".join((source.text, *source.choices))
    if isinstance(source, Words):
        return source.text
    if isinstance(source, Chat):
        return "\n".join(content for _, content in source.messages)
    return source if isinstance(source, str) else "\n".join(source) if isinstance(source, Pair) else ""


def is_one_text(model_inputs: Any) -> bool:
    """Whether it is a single text, not a list of texts."""
    return (
        isinstance(model_inputs, str | Words)
        or _is_chat(model_inputs)
        or (_is_ids(model_inputs) and not _has_rows(model_inputs))
    )


def sources(model_inputs: Any, of_targets: bool = False) -> Iterator[Any]:
    """One source for each text, in order; what is none of these is an error there.

    Mappings of several rows and tensors (n, L) give n texts. A tuple of strings is a list of texts when it stands alone, as for
    a tokenizer, and a pair of texts when it stands in a list. A mapping with text and text_pair is a pair too, as for a
    pipeline.

    Args:
        of_targets: whether these are targets: None, contrasts and what an earlier look found wrong then stand for themselves.

    Raises:
        InvalidTypeError: ``model_inputs`` as a whole cannot hold texts.
    """
    if isinstance(model_inputs, str | Words | Mapping) or _is_ids(model_inputs) or _is_chat(model_inputs):
        return _entry(model_inputs)
    if hasattr(model_inputs, "columns") and hasattr(model_inputs, "iloc"):
        raise InvalidTypeError("model_inputs is a table; pass one of its columns, for instance table['text'].")
    if isinstance(model_inputs, np.ndarray) and (
        model_inputs.ndim == 1 or (model_inputs.ndim == 2 and _holds_text(model_inputs))
    ):
        model_inputs = model_inputs.tolist()
    if isinstance(model_inputs, Iterable) and not isinstance(model_inputs, bytes | Tensor | np.ndarray):
        return (
            source
            for entry in model_inputs
            for source in ((entry,) if of_targets and isinstance(entry, _OF_TARGETS) else _entry(entry, of_targets))
        )
    raise InvalidTypeError(f"model_inputs must be {KINDS}; got {_kind_of(model_inputs)}.")


def _entry(entry: Any, of_targets: bool = False) -> Iterator[Any]:
    try:
        if _is_chat(entry):
            yield _chat_of(entry)
        elif isinstance(entry, str | Pair | Words | Choices | Tokens):
            yield entry
        elif isinstance(entry, Refused):
            yield entry.error
        elif isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            yield Pair(*entry)
        elif isinstance(entry, Mapping):
            yield from _from_mapping(entry)
        elif _is_ids(entry):
            rows = _lists(entry, "token ids")
            yield from (Tokens(row, masked=len(rows) == 1) for row in rows)
        elif isinstance(entry, list | tuple) and any(isinstance(part, Words) for part in entry):
            raise InvalidTypeError("A pair is of two strings; join the words of each by spaces.")
        elif _holds_several(entry):
            raise InvalidTypeError(_SEVERAL_TARGETS if of_targets else _SEVERAL)
        else:
            yield InvalidTypeError(f"A text must be a string or token ids; got {_kind_of(entry)}.")
    except FastshapError as error:
        yield error


def _holds_several(entry: Any) -> bool:
    """Strings in a tuple, a list or an array: what a tokenizer would take for words, or for a pair of texts."""
    if isinstance(entry, np.ndarray):
        return _holds_text(entry)
    return isinstance(entry, list | tuple) and len(entry) > 1 and all(isinstance(part, str) for part in entry)


def _holds_text(values: np.ndarray) -> bool:
    return values.dtype.kind in "UTO" and values.size > 1 and all(isinstance(one, str) for one in values.flat)


def _from_mapping(mapping: Mapping[str, Any]) -> Iterator[Source]:
    if {"role", "content"} <= mapping.keys():
        raise InvalidTypeError(
            "A mapping with role and content is one message of a conversation; a conversation is a list of messages."
        )
    if "text_pair" in mapping:
        yield _pair_of(mapping)
        return
    if "choices" in mapping:
        yield _choices_of(mapping)
        return
    if "input_ids" not in mapping:
        raise InvalidTypeError(
            "A mapping must hold text and text_pair (a pair of texts), text and choices, or input_ids, as a tokenizer returns "
            f"it; got the keys {', '.join(map(str, mapping))}. To "
            "explain a column of a data set pass the column alone, for instance dataset['text']."
        )
    ids = _lists(mapping["input_ids"], "input_ids")
    masks = _beside(mapping, "attention_mask", ids)
    special = _beside(mapping, "special_tokens_mask", ids)
    types = _beside(mapping, "token_type_ids", ids)
    words = words_in(getattr(mapping, "encodings", None), ids)
    further = tuple(name for name, value in mapping.items() if name not in _HANDLED and value is not None)
    for i, row in enumerate(ids):
        kept = _kept(masks[i]) if masks else slice(0, len(row))
        yield Tokens(
            row[kept],
            [bool(flag) for flag in special[i][kept]] if special else None,
            types[i][kept] if types else None,
            words[i][kept] if words else None,
            further,
            masked=masks is not None or len(ids) == 1,
        )


def _is_chat(value: Any) -> bool:
    """A list of messages, each with a role and its content."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(one, Mapping) and {"role", "content"} <= one.keys() for one in value)
    )


def _chat_of(messages: Any) -> Chat:
    for number, one in enumerate(messages):
        if not isinstance(one["role"], str) or not isinstance(one["content"], str):
            raise InvalidTypeError(
                f"Message {number} of a conversation must have a role and a content that are strings; got "
                f"{_kind_of(one['content'])} as content."
            )
    return Chat(tuple((one["role"], one["content"]) for one in messages))


def _pair_of(mapping: Mapping[str, Any]) -> Pair:
    if mapping.keys() == _PAIR_KEYS and all(isinstance(one, str) for one in mapping.values()):
        return Pair(mapping["text"], mapping["text_pair"])
    raise InvalidTypeError(
        "A pair as a mapping holds text and text_pair, a string each, and nothing else; got the keys "
        f"{', '.join(map(str, mapping))}. Columns of many pairs go together as zip(firsts, seconds)."
    )


def _choices_of(mapping: Mapping[str, Any]) -> Choices:
    given = mapping["choices"]
    are_strings = isinstance(given, list | tuple) and all(isinstance(one, str) for one in (mapping.get("text"), *given))
    if are_strings and given and mapping.keys() == _CHOICE_KEYS:
        return Choices(mapping["text"], tuple(given))
    raise InvalidTypeError(
        "A text with choices is a mapping of text, a string, and choices, a list of strings, and of nothing else; got the keys "
        f"{', '.join(map(str, mapping))}."
    )


def _kept(mask: list[int]) -> slice:
    """The columns that hold tokens: one run, with padding on either side."""
    columns = [i for i, flag in enumerate(mask) if flag]
    if not columns:
        raise InvalidArgumentError("The attention_mask of a text is all zeros: it has no tokens.")
    kept = slice(columns[0], columns[-1] + 1)
    if not all(mask[kept]):
        raise InvalidArgumentError(
            "The attention_mask of a text has zeros between its tokens; only padding before or after them is understood."
        )
    return kept


def _beside(mapping: Mapping[str, Any], name: str, ids: list[list[int]]) -> list[list[int]] | None:
    if mapping.get(name) is None:
        return None
    rows = _lists(mapping[name], name)
    if [len(row) for row in rows] != [len(row) for row in ids]:
        raise InvalidArgumentError(f"{name} must have the shape of input_ids.")
    return rows


def _is_ids(value: Any) -> bool:
    """Token ids: a list of integers, or an integer tensor or array with one or two dimensions."""
    if isinstance(value, Tensor | np.ndarray):
        kind = str(value.dtype).removeprefix("torch.")
        return value.ndim in (1, 2) and kind.startswith(("int", "uint"))
    return isinstance(value, list | tuple) and bool(value) and all(_is_id(one) for one in value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _has_rows(value: Any) -> bool:
    return getattr(value, "ndim", 1) == 2


def _lists(value: Any, name: str) -> list[list[int]]:
    """Rows of integers, from a tensor, array or list with one or two dimensions."""
    rows = _plain(value)
    if isinstance(rows, list | tuple):
        rows = [rows] if all(_is_id(one) for one in rows) else [_plain(row) for row in rows]
        if all(isinstance(row, list | tuple) and all(_is_id(one) for one in row) for row in rows):
            return [[int(one) for one in row] for row in rows]
    raise InvalidTypeError(f"{name} must be integers of shape (L,) or (n, L).")


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists; flags among them as 0 and 1."""
    if isinstance(value, Tensor):
        return (value.long() if value.dtype == torch.bool else value).tolist()
    if isinstance(value, np.ndarray):
        return (value.astype(np.int64) if value.dtype == np.bool_ else value).tolist()
    return value


def _kind_of(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor | np.ndarray) else ""
    return type(value).__name__ + shape + ("; decode it first" if isinstance(value, bytes | bytearray) else "")
