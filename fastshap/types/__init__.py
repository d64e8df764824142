"""The enumerations of the public interface. Members and names are interpreto's, whose own members are accepted too."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastshap.errors import InvalidArgumentError, InvalidTypeError

E = TypeVar("E", bound=Enum)


class Granularity(Enum):
    """What one score stands for."""

    ALL_TOKENS = "all_tokens"  #: every token, special ones too
    TOKEN = "token"  #: every token of the text
    WORD = "word"  #: as people read: didn't, 3.50 and state-of-the-art are one
    TOKENIZER_WORD = "tokenizer_word"  #: as the tokenizer splits, which is interpreto's WORD: didn ' t are three
    PART_SENTENCE = "part_sentence"  #: split at , ; : . ! ?
    SENTENCE = "sentence"


class GranularityAggregationStrategy(Enum):
    """How the scores of a group's tokens become one score."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"
    SUM = "sum"
    SIGNED_MAX = "signed_max"  #: the score of largest absolute value, with its sign
    FIRST = "first"
    LAST = "last"


class InferenceModes(Enum):
    """From logits (…, classes) to the scores that are explained, of the same shape. interpreto has all but SIGMOID."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    LOG_SOFTMAX = "log_softmax"
    SIGMOID = "sigmoid"  #: probabilities of classes that do not exclude each other

    def __call__(self, logits: Tensor) -> Tensor:
        if self is InferenceModes.SOFTMAX:
            return torch.softmax(logits, dim=-1)
        if self is InferenceModes.LOG_SOFTMAX:
            return torch.log_softmax(logits, dim=-1)
        if self is InferenceModes.SIGMOID:
            return torch.sigmoid(logits)
        return logits


_CUSTOM = "callable:"


class CustomMode:
    """Stands for an inference mode that was a function: a file holds its name alone."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, logits: Tensor) -> Tensor:
        raise InvalidArgumentError(
            f"The inference mode {self.__name__!r} was a function, and a file holds its name alone; pass the function, as "
            "inference_mode."
        )


class CustomScore:
    """Likewise for a score."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, outputs: Any, inputs: Any) -> Tensor:
        raise InvalidArgumentError(
            f"The score {self.__name__!r} was a function, and a file holds its name alone; pass the function, as score."
        )


SCORES = ("logit", "probability", "log_probability")  # by their names; which inference mode each is, the task says


class ModelTask(Enum):
    """What the explained model does. A task that was registered from outside has no member: outputs name it as a string."""

    CLASSIFICATION = "classification"
    GENERATION = "generation"


def model_task_of(name: str) -> ModelTask | str:
    """The member for a task of this name; a task from outside goes by its name."""
    return next((member for member in ModelTask if member.value == name), name)


def name_of_task(task: ModelTask | str) -> str:
    """The other way round: how files call it."""
    return task.value if isinstance(task, ModelTask) else task


# Members of interpreto's enumerations that mean another one here.
_THEIRS = {"Granularity.WORD": "TOKENIZER_WORD"}


def member_of(enum: type[E], value: object, parameter: str) -> E:
    """The member that ``value`` names: a member, its name in any case, or another library's member that means the same."""
    if isinstance(value, enum):
        return value
    name = _THEIRS.get(f"{enum.__name__}.{value.name}", value.name) if isinstance(value, Enum) else value
    choices = ", ".join(member.name for member in enum)
    if not isinstance(name, str):
        raise InvalidTypeError(
            f"{parameter} must be a member of {enum.__name__} or its name, one of {choices}; got {value!r}."
        )
    try:
        return enum[name.strip().upper()]
    except KeyError:
        raise InvalidArgumentError(f"{parameter} must be one of {choices}; got {name!r}.") from None


def inference_mode_of(value: object) -> Callable[[Tensor], Tensor]:
    """An :class:`InferenceModes` member for a member or a name, or the callable itself."""
    if isinstance(value, str) or (isinstance(value, Enum) and value.name in InferenceModes.__members__):
        return member_of(InferenceModes, value, "inference_mode")
    if not callable(value):
        raise InvalidTypeError(
            "inference_mode must be LOGITS, SOFTMAX, LOG_SOFTMAX, SIGMOID or a callable from logits to scores of the same "
            f"shape; "
            f"got {value!r}."
        )
    return value


def plain_mode(mode: Any) -> str:
    """An inference mode as files name it."""
    if isinstance(mode, InferenceModes):
        return mode.value
    return _CUSTOM + str(getattr(mode, "__name__", type(mode).__name__))


def score_of(value: object) -> Callable[[Any, Any], Tensor] | None:
    """A score of the user's own, or none; the names of scores stand for inference modes, and were replaced before."""
    if value is None or callable(value):
        return value
    raise InvalidTypeError(
        f"score must be None, {', '.join(map(repr, SCORES))}, or a callable (outputs, inputs) -> (R, t); got {value!r}."
    )


def plain_score(score: Any) -> str | None:
    """As :func:`plain_mode`."""
    return None if score is None else _CUSTOM + str(getattr(score, "__name__", type(score).__name__))


def score_of_plain(name: str | None) -> Callable[[Any, Any], Tensor] | None:
    """The score that :func:`plain_score` named: a name alone."""
    return None if name is None else CustomScore(name.removeprefix(_CUSTOM))


def mode_of_plain(name: str) -> Callable[[Tensor], Tensor]:
    """The inference mode that :func:`plain_mode` named; one that was a function only has its name."""
    return CustomMode(name.removeprefix(_CUSTOM)) if name.startswith(_CUSTOM) else InferenceModes(name)
