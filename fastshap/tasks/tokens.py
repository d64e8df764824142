"""Texts to tokens that a given model can take."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any

from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.tasks.subject import Subject, takes, unwrapped
from fastshap.text.chat import encode_chat
from fastshap.text.encode import EXTRA, Encoded, encode
from fastshap.text.inputs import Chat, Choices, Pair, Tokens, Words
from fastshap.text.split import encode_words


def encode_for(
    subject: Subject, sources: Sequence[Any], own_pairs: bool = False, **options: Any
) -> list[Encoded | FastshapError]:
    """Tokenised texts; what is wrong with a text stands in its place, token ids unknown to the model too.

    Args:
        own_pairs: the task made the pairs itself, whether or not a text may be one.
        options: those of :func:`fastshap.text.encode.encode`.
    """
    checked = [
        _fit(subject, source) if isinstance(source, Tokens) else _alone(subject, source, own_pairs)
        for source in sources
    ]
    checked = [
        _conversation(subject, one, options.get("max_length")) if isinstance(one, Chat) else one for one in checked
    ]
    checked = encode_words(subject.tokenizer, checked, options.get("max_length"))
    known, foreign = _known(subject), {name for name in EXTRA if not takes(subject.model, name)}
    return [
        _unknown(known, one.input_ids) or refused_if_cut(subject, one) or _without(foreign, one)
        if isinstance(one, Encoded)
        else one
        for one in encode(subject.tokenizer, checked, **options)
    ]


def refused_if_cut(subject: Subject, encoded: Encoded) -> FastshapError | None:
    """What is wrong with a text that was cut, if none may be."""
    if not encoded.truncated or subject.settings.long_text != "error":
        return None
    return InvalidArgumentError(
        f"The text has more tokens than the {subject.max_length()} that the model takes; shorten or split it, or use "
        "long_text='truncate'."
    )


def _conversation(subject: Subject, chat: Chat, limit: int | None) -> Encoded | FastshapError:
    """A conversation that the model can take: what would be left of one that is cut is for the user to say."""
    encoded = encode_chat(subject.tokenizer, chat, subject.writes_targets)
    if isinstance(encoded, FastshapError) or limit is None or len(encoded) <= limit:
        return encoded
    return InvalidArgumentError(
        f"The conversation has {len(encoded)} tokens and the model takes {limit}; leave out or shorten messages."
    )


def unknown(subject: Subject, ids: Sequence[int]) -> FastshapError | None:
    """What is wrong with token ids that the model's embeddings do not reach."""
    return _unknown(_known(subject), ids)


def _known(subject: Subject) -> float:
    """How many token ids the model's embeddings reach."""
    return getattr(subject.model.get_input_embeddings(), "num_embeddings", math.inf)


def _unknown(known: float, ids: Sequence[int]) -> FastshapError | None:
    if max(ids, default=0) < known:
        return None
    return InvalidArgumentError(
        f"Token id {max(ids)} lies outside the model's embedding table of {known} rows. Either the "
        "tokenizer does not belong to this model, or tokens were added to it: then call "
        "model.resize_token_embeddings(len(tokenizer))."
    )


def _alone(subject: Subject, source: Any, own_pairs: bool) -> Any:
    """A pair only where the task takes pairs; choices are for a task that takes them apart."""
    if isinstance(source, Choices):
        return InvalidTypeError(
            f"A text with choices is for models that choose among them (*ForMultipleChoice); {subject.model_name} reads one "
            "text."
        )
    if isinstance(source, Chat) and not subject.takes_chats:
        return InvalidTypeError(
            f"A conversation is for models that answer it, or judge it as a whole; {subject.model_name} reads a text."
        )
    if isinstance(source, Words) and not subject.takes_words:
        return InvalidTypeError(
            f"Words that are already split are for models that judge a text or its tokens; for {subject.model_name}, join them "
            "by spaces and pass the text."
        )
    if not isinstance(source, Pair) or subject.takes_pairs or own_pairs:
        return source
    return InvalidTypeError(
        f"A pair of texts is one input of a classifier; {subject.model_name} reads one text. Texts that do not belong together "
        "stand in one list."
    )


def _fit(subject: Subject, source: Tokens) -> Tokens | FastshapError:
    """Token ids that the model can take as they are."""
    limit = subject.max_length()
    in_windows = subject.takes_windows and subject.settings.long_text == "window"
    if limit is not None and len(source.ids) > limit and not in_windows:
        return InvalidArgumentError(
            f"The text has {len(source.ids)} tokens and the model takes {limit}. Pass the string, which is cut to fit, or "
            "cut the token ids where it makes sense."
        )
    accepted = set(inspect.signature(unwrapped(subject.model).forward).parameters) - {"labels"}
    foreign = sorted(accepted.intersection(source.further))
    if source.types is not None and any(source.types) and "token_type_ids" not in subject.tokenizer.model_input_names:
        foreign.append("token_type_ids")
    if not source.masked and subject.tokenizer.pad_token_id in (source.ids[:1] + source.ids[-1:]):
        return InvalidArgumentError(
            "A row of token ids begins or ends with the padding token, and there is no attention_mask to say what is "
            "padding. Pass all that the tokenizer returns, or one list of ids for each text."
        )
    if foreign:
        return InvalidArgumentError(
            f"The mapping holds {', '.join(foreign)}, which the model takes and fastshap would lose; pass input_ids, "
            "attention_mask and what else the tokenizer returns."
        )
    return unknown(subject, source.ids) or source


def _without(foreign: set[str], encoded: Encoded) -> Encoded:
    """Leaves out what the tokenizer gives and the model does not take."""
    if foreign.isdisjoint(encoded.extra):
        return encoded
    extra = {name: values for name, values in encoded.extra.items() if name not in foreign}
    return dataclasses.replace(encoded, extra=extra)
