"""Errors that were recorded for rows: what kind they are, and what they say of a job."""

from __future__ import annotations

from collections.abc import Sequence

from fastshap.errors import (
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    JobError,
    ModelFailedError,
    NonFiniteError,
    UnsupportedModelError,
    WorkerDiedError,
)

# So many texts one after the other on which the model failed say that the model or its device is broken, not the texts.
MOST_FAILED = 64

_KINDS: dict[str, type[FastshapError]] = {
    kind.__name__: kind
    for kind in (
        InvalidArgumentError,
        InvalidTypeError,
        ModelFailedError,
        NonFiniteError,
        UnsupportedModelError,
        WorkerDiedError,
    )
}
_MODEL_FAILED = (ModelFailedError, NonFiniteError)


def error_of(entry: str) -> FastshapError:
    """The error that :func:`fastshap.errors.recorded` wrote."""
    kind, message = entry.split(": ", 1)
    return _KINDS[kind](message)


def kind_of(entry: str) -> str:
    """The name of the error's class."""
    return entry.split(":", 1)[0]


def message_of(entry: str) -> str:
    """What the error says, without the name of its class."""
    return entry.split(":", 1)[-1].strip()


def count_failed(errors: Sequence[str | None]) -> int:
    """On how many of these rows the model failed."""
    return sum(map(_model_failed, errors))


def count_tried(errors: Sequence[str | None]) -> int:
    """On how many of these rows the model was run."""
    return count_failed(errors) + sum(error is None for error in errors)


def all_failed(errors: Sequence[str | None]) -> JobError:
    """What is said where the model failed on all that it was run on."""
    count, first = count_failed(errors), next(error for error in errors if error is not None and _model_failed(error))
    where = "the only text" if count == 1 else f"each of {count:,} texts, one after the other"
    return JobError(
        f"The model failed on {where}. The first error is: {first.rstrip('.')}. Something is wrong with the model or its "
        "device, not with the texts; none of these was recorded."
    )


def _model_failed(entry: str | None) -> bool:
    kind = None if entry is None else _KINDS.get(kind_of(entry))
    return kind is not None and issubclass(kind, _MODEL_FAILED)
