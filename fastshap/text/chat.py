"""Conversations through a tokenizer's chat template: what its messages say is text, all else is the template's."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from fastshap.errors import FastshapError, InvalidArgumentError
from fastshap.text.encode import Encoded, encode, first_visible
from fastshap.text.inputs import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of a private area, which no template holds.
_MARK, _MARKS = "\ue000{}\ue001", re.compile("\ue000[0-9]+\ue001")


def encode_chat(tokenizer: PreTrainedTokenizerBase, chat: Chat, answers: bool) -> Encoded | FastshapError:
    """The conversation as one text. Tokens of the template count as special, and each message is a part.

    Args:
        answers: whether what follows is the assistant's answer, which the template then opens.
    """
    if not getattr(tokenizer, "chat_template", None):
        return InvalidArgumentError(
            "The tokenizer has no chat template, so it cannot read a conversation; pass the text that the model expects."
        )
    text = _rendered(tokenizer, chat.as_mappings, answers)
    if isinstance(text, FastshapError):
        return text
    (encoded,) = encode(tokenizer, [text], max_length=None, add_special_tokens=False)
    if isinstance(encoded, FastshapError):
        return encoded
    marked = [{**one, "content": _MARK.format(number)} for number, one in enumerate(chat.as_mappings)]
    skeleton = _rendered(tokenizer, marked, answers)
    spans = None if isinstance(skeleton, FastshapError) else _contents(text, skeleton, chat)
    if spans is None:
        return encoded  # the template changes what messages say
    said = [_message(first_visible(text, span), span[1], spans) for span in encoded.offsets]
    special = [number is None or flag for number, flag in zip(said, encoded.special, strict=True)]
    if all(special):
        return InvalidArgumentError("The messages are empty; there is nothing to explain.")
    first = {number: place for place, number in reversed([*enumerate(said)]) if number is not None}
    return dataclasses.replace(
        encoded,
        special=special,
        offsets=[(0, 0) if flag else span for flag, span in zip(special, encoded.offsets, strict=True)],
        words=[None if flag else word for flag, word in zip(special, encoded.words, strict=True)],
        parts=tuple(first[number] for number in sorted(first)[1:]),
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], answers: bool) -> str | FastshapError:
    try:
        text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answers)
    except Exception as error:  # templates raise what they like: roles that must alternate, say
        return InvalidArgumentError(f"The tokenizer's chat template refuses the conversation: {error}")
    return str(text)


def _contents(text: str, skeleton: str, chat: Chat) -> list[tuple[int, int]] | None:
    """Where the template puts what each message says; None if it does not put it there as it is, once and in order.

    Args:
        skeleton: the template filled in with a mark for each message.
    """
    around = _MARKS.split(skeleton)
    if _MARKS.findall(skeleton) != [_MARK.format(number) for number in range(len(chat.messages))]:
        return None
    if not text.startswith(around[0]):
        return None
    found, at = [], len(around[0])
    for (_, content), behind in zip(chat.messages, around[1:], strict=True):
        said = next((one for one in (content, content.strip()) if text.startswith(one + behind, at)), None)
        if said is None:
            return None
        found.append((at, at + len(said)))
        at += len(said) + len(behind)
    return found if at == len(text) else None


def _message(start: int, end: int, spans: list[tuple[int, int]]) -> int | None:
    """The message that a token is of, if all of it is, but for white space before it."""
    return next((i for i, (first, last) in enumerate(spans) if first <= start < end <= last), None)
