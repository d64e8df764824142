"""Whether a model computes the same from embeddings as from token ids: without that, gradients explain another function."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastshap.errors import FastshapError, InvalidArgumentError, UnsupportedModelError
from fastshap.tasks.subject import Subject
from fastshap.tasks.trial import near
from fastshap.text.encode import Encoded

_TEXTS = 3  # at most, on which ids and embeddings are compared, if the model fails on those before
_RANDOM = 8  # tokens of the text by chance, the last that is tried
_FROM_IDS = "does not run on input_ids"
# What else there is to do if that is wrong with an encoder with a decoder.
_ADVICE = {
    _FROM_IDS: "Its texts have to end with its end-of-text token, which the tokenizer adds. Of a model without a head, load "
    "the encoder alone, such as T5EncoderModel."
}
_OTHER_MODEL = "Use a model that is an encoder or a decoder alone."
_TABLES = ("hidden_size_per_layer_input", "ple_layer_ids")  # tell of embeddings per layer, in the names of transformers


@torch.no_grad()
def same_from_ids(subject: Subject, texts: Iterable[Encoded]) -> bool:
    """Whether ids and their embeddings gave the same; tried on a text, on the next where that fails, on tokens by chance.

    Raises:
        UnsupportedModelError: they gave different logits, or the model never ran.
    """
    failed: UnsupportedModelError | None = None
    for encoded in itertools.chain(itertools.islice(texts, _TEXTS), _random_text(subject)):
        ids, inputs = subject.alone(encoded)
        try:
            with told(subject, _FROM_IDS):
                right = subject.raw_logits(input_ids=ids, **inputs)
            with told(subject, "does not run on inputs_embeds", by_ids(subject)):
                embedded = subject.embedded(ids)
                if not isinstance(x := embedded["inputs_embeds"], Tensor):
                    raise UnsupportedModelError(
                        f"The input embeddings of {subject.model_name} give a {type(x).__name__}, and not one vector for each "
                        "token."
                    )
                ours = subject.raw_logits(**embedded | {"inputs_embeds": x.clone()}, **inputs)
        except UnsupportedModelError as error:
            failed = failed or error
            continue
        if right.isnan().any():
            continue  # of this text nothing can be told
        if not near(ours, right):
            raise _another_function(subject, float((ours - right).abs().max()), encoded)
        return True
    if failed is not None:
        raise failed
    return False


def _another_function(subject: Subject, apart: float, encoded: Encoded) -> UnsupportedModelError:
    pad: Any = getattr(subject.model.config.get_text_config(), "pad_token_id", None)
    hint = ""
    if pad in encoded.input_ids:
        hint = (
            " A decoder that classifies may take the end-of-text token for padding: give it a padding token of its own."
        )
    return UnsupportedModelError(
        by_ids(subject)
        or f"{subject.model_name} computes something else from inputs_embeds than from input_ids (logits differ by "
        f"{apart:.3g}), so its gradients would explain another function.{hint}"
    )


def by_ids(subject: Subject) -> str | None:
    """Why a model with embeddings per layer cannot be explained."""
    config = subject.model.config.get_text_config()
    if not any(getattr(config, name, None) for name in _TABLES):
        return None
    return (
        f"{subject.model_name} cannot be explained, since it looks tokens up by their ids in further tables (embeddings per "
        "layer), and a point between two embeddings has no id. Models of its kind without these tables can be explained."
    )


@contextlib.contextmanager
def told(subject: Subject, what: str, known: str | None = None) -> Iterator[None]:
    """An error of the model as one of ours: that it does ``what``, or, where it is known, what is behind that."""
    try:
        yield
    except (torch.OutOfMemoryError, FastshapError):
        raise
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        message = f"{subject.model_name} cannot be explained, since it {what}: {type(error).__name__}: {first}"
        if getattr(subject.model.config, "is_encoder_decoder", False):
            message = f"{message.rstrip('.')}. {_ADVICE.get(what, _OTHER_MODEL)}"
        raise UnsupportedModelError(known or message) from error


def misread_by(subject: Subject) -> Callable[[Encoded], FastshapError | None]:
    """What is wrong with a text of which a classifier finds the place to read at by the ids.

    A decoder that classifies the last token before the padding may find another one if the text holds the model's padding
    token. An encoder with a decoder looks for the end of the text.
    """
    config = subject.model.config
    pad: Any = getattr(config.get_text_config(), "pad_token_id", None)
    end: Any = config.eos_token_id if subject.reads_twice() else None

    def misread(encoded: Encoded) -> FastshapError | None:
        if isinstance(end, int) and end not in encoded.input_ids:
            return InvalidArgumentError(
                f"{subject.model_name} reads a text at its last end-of-text token (id {end}), and this text has none. Have the "
                "tokenizer add it, or end token ids with it."
            )
        if pad is not None and pad in encoded.input_ids and _differs_from_ids(subject, encoded):
            return UnsupportedModelError(
                "The text holds the model's padding token: the model computes something else from its ids, where it takes the "
                "token for padding, than from inputs_embeds. Give the model a padding token of its own, or leave the token out."
            )
        return None

    return misread


@torch.no_grad()
def _differs_from_ids(subject: Subject, encoded: Encoded) -> bool:
    ids, inputs = subject.alone(encoded)
    try:
        ours = subject.raw_logits(**subject.embedded(ids), **inputs)
        theirs = subject.raw_logits(input_ids=ids, **inputs)
        return not theirs.isnan().any() and not near(ours, theirs)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False  # whether the model runs at all is for the trial to say


def _random_text(subject: Subject) -> list[Encoded]:
    usable = subject.ordinary_tokens()
    length = min(_RANDOM, subject.max_length() or _RANDOM)
    ids = [usable[(7919 * i + 13) % len(usable)] for i in range(length)]
    zeros = {name: [0] * length for name in subject.extra()}
    return [
        Encoded(
            text="",
            input_ids=ids,
            special=[False] * length,
            offsets=[(0, 0)] * length,
            tokens=[""] * length,
            words=[None] * length,
            truncated=False,
            extra=zeros,
        )
    ]
