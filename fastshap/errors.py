"""Every error fastshap raises on purpose. All of them are a ValueError or a TypeError as well, or, for what only shows at
run time, a RuntimeError, so that code which catches the built-in classes keeps working.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any


class FastshapError(Exception):
    """Base class of fastshap's errors.

    What a program needs to know stands in the class and in fields; the message is for people.

    Attributes:
        text_index: the number of the text that the error belongs to, from 0 on, in the order they were passed in; None where
            it concerns the model, a parameter or the call as a whole.
    """

    text_index: int | None = None


class InvalidArgumentError(FastshapError, ValueError):
    """A parameter, text or target has a value that cannot be used. The message says what would do."""


class InvalidTypeError(FastshapError, TypeError):
    """A parameter, text or target has a type that cannot be used. The message says what would do."""


class UnsupportedModelError(FastshapError, TypeError):
    """The model has no task that fastshap explains, or takes no ``inputs_embeds``."""


class NonFiniteError(FastshapError, ValueError):
    """The model's scores or gradients are NaN or infinite for a text, so there is nothing true to report."""


class ModelFailedError(FastshapError, RuntimeError):
    """The model, or a function given as inference mode, failed on a text with an error of its own, which is the cause."""

    @classmethod
    def caused_by(cls, error: Exception) -> ModelFailedError:
        """What stands in a text's place, of the model's own error."""
        first = str(error).strip().split("\n")[0]
        failed = cls(f"The model failed on this text: {type(error).__name__}: {first}")
        failed.__cause__ = error
        return failed


class BackendUnavailableError(FastshapError, RuntimeError):
    """The backend that was asked for by name cannot run here."""


class MissingPackageError(FastshapError, ImportError):
    """A package that only some uses need is not installed. The message says how to install it."""


class JobError(FastshapError, RuntimeError):
    """A batch job cannot begin, continue or end well. The message says what to do.

    Args:
        message: for people.
        final: the same job with ``resume=True`` would end the same way, so that more is needed than that.

    Attributes:
        begun: whether the job had begun, so that rows may have been written.
        resumable: whether what was explained is kept and the same job with ``resume=True`` continues.
    """

    def __init__(self, message: str = "", *, final: bool = False) -> None:
        super().__init__(message)
        self.begun = False
        self._final = final

    @property
    def resumable(self) -> bool:
        return self.begun and not self._final


class WorkerDiedError(JobError):
    """The process that explained a text died over it, again and again; recorded for the text, or raised for a whole job."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model takes and were cut. The outputs concerned have ``truncated=True``."""


class SharedModelWarning(UserWarning):
    """Another thread changed the model while it was explained. Only models with hooks, compiled or quantised parts can tell."""


class UntrainedHeadWarning(UserWarning):
    """The model's checkpoint lacks weights that the task needs, so they are random: what is explained was never learned."""


def recorded(error: Exception) -> str:
    """An error as outputs and columns hold it: the name of its class, a colon, and its message."""
    return f"{type(error).__name__}: {error}"


def warn(message: str, category: type[Warning], again: bool = False) -> None:
    """Warns at the line outside of this package that everything was called from.

    Args:
        again: also where the same was said at that line before, unless the user's filters hide it.
    """
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == __name__.split(".")[0]:
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    if again and frame is not None:
        where = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
        warnings.warn_explicit(message, category, *where)  # without a registry of what was said
    else:
        warnings.warn(message, category, stacklevel=level)


def raise_first(results: Sequence[Any], first: int) -> None:
    """Raises the first error among the results of texts, the first of which has the index ``first``."""
    for i, result in enumerate(results):
        if isinstance(result, FastshapError):
            error = type(result)(f"Text {first + i}: {result}")
            error.text_index = first + i
            raise error from result.__cause__
