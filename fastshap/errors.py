"""Every error that fastshap raises on purpose.

Each is also a ValueError, a TypeError, an ImportError or, if it only shows at run time, a RuntimeError. So code that catches
the built-in classes keeps working.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any


class FastshapError(Exception):
    """Base class of fastshap's errors.

    The class and its fields tell a program what it needs to know. The message is for people.

    Attributes:
        text_index: the number of the text that the error belongs to, from 0, in the order in which texts were passed. None if
            the error concerns the model, a parameter or the call as a whole.
    """

    text_index: int | None = None


class InvalidArgumentError(FastshapError, ValueError):
    """A parameter, text or target has a value that cannot be used. The message says what would work."""


class InvalidTypeError(FastshapError, TypeError):
    """A parameter, text or target has a type that cannot be used. The message says what would work."""


class UnsupportedModelError(FastshapError, TypeError):
    """fastshap explains no task of this model, or the model does not take ``inputs_embeds``."""


class NonFiniteError(FastshapError, ValueError):
    """The model's scores or gradients are NaN or infinite for a text, so there is nothing true to report."""


class ModelFailedError(FastshapError, RuntimeError):
    """The model, or a function passed as ``inference_mode``, failed on a text. Its own error is the cause (``__cause__``)."""

    @classmethod
    def caused_by(cls, error: BaseException) -> ModelFailedError:
        """The error that takes a text's place, from the model's own error."""
        first = str(error).strip().split("\n")[0]
        failed = cls(f"The model failed on this text: {type(error).__name__}: {first}")
        failed.__cause__ = error
        return failed


class BackendUnavailableError(FastshapError, RuntimeError):
    """The backend that was asked for by name cannot run here."""


class MissingPackageError(FastshapError, ImportError):
    """An optional package is needed and not installed. The message says how to install it."""


class JobError(FastshapError, RuntimeError):
    """A batch job cannot begin, continue or end well. The message says what to do.

    Args:
        message: for people.
        final: the same job with ``resume=True`` would end the same way, so something else must be done first.

    Attributes:
        begun: whether the job had begun, so rows may have been written.
        resumable: whether what was explained is kept, and the same job with ``resume=True`` continues.
    """

    def __init__(self, message: str = "", *, final: bool = False) -> None:
        super().__init__(message)
        self.begun = False
        self._final = final

    @property
    def resumable(self) -> bool:
        return self.begun and not self._final


class WorkerDiedError(JobError):
    """The process that explained a text died again and again. Recorded for the text, or raised for the whole job."""


class OverloadedError(FastshapError, RuntimeError):
    """A queue is full; nothing was begun.

    Attributes:
        retry_after: seconds after which there will be room, about.
    """

    def __init__(self, message: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceededError(FastshapError, TimeoutError):
    """A request's deadline passed before its explanation was ready. What was left of its work is dropped."""


class ClosedError(FastshapError, RuntimeError):
    """A batcher was closed: it takes no more texts."""


class TruncationWarning(UserWarning):
    """Texts were too long for the model and were cut. Their outputs have ``truncated=True``."""


class SharedModelWarning(UserWarning):
    """Another thread changed the model while it was explained. Noticed only if it has hooks, compiled or quantised parts."""


class SlowBackendWarning(UserWarning):
    """The kernels cannot be compiled on this machine, so PyTorch's operators compute the same numbers more slowly."""


class UntrainedHeadWarning(UserWarning):
    """The model's checkpoint lacks weights that the task needs, so they are random. The scores explain nothing it learned."""


class NoiseWarning(UserWarning):
    """Scores are mostly noise: ``output.reliability`` of a target is below 0.5. Or all are zero, of a ``score`` of your own.

    The message says what would help.
    """


def recorded(error: Exception) -> str:
    """An error in the form that outputs and columns hold: the name of its class, a colon, and its message."""
    return f"{type(error).__name__}: {error}"


def warn(message: str, category: type[Warning], again: bool = False) -> None:
    """Warns, and names the line outside this package that made the call.

    Args:
        again: warn even if that line has had the same warning before, unless the user's filters hide it.
    """
    level, frame = _outside()
    if again and frame is not None:
        where = frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__")
        warnings.warn_explicit(message, category, *where)  # without a registry of what was said
    else:
        warnings.warn(message, category, stacklevel=level)


def silenced(message: str, category: type[Warning]) -> bool:
    """Whether the user's filters ignore such a warning; ``message`` may be its beginning."""
    _, frame = _outside()
    module, line = ("", 0) if frame is None else (frame.f_globals.get("__name__") or "<unknown>", frame.f_lineno)

    def fits(pattern: Any, value: str) -> bool:
        return pattern is None or (pattern == value if isinstance(pattern, str) else bool(pattern.match(value)))

    filters = getattr(warnings, "_get_filters", lambda: warnings.filters)()  # of this context, from Python 3.14 on
    for action, text, kind, where, at in filters:
        if issubclass(category, kind) and fits(text, message) and fits(where, module) and at in (0, line):
            return bool(action == "ignore")
    return False


def _outside() -> tuple[int, FrameType | None]:
    """The frame outside this package that made the call, and how far it is from the caller of this function's caller."""
    level, frame = 0, sys._getframe(1)
    own = __name__.split(".")[0]
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == own:
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    return level + 1, frame


def raise_first(results: Sequence[Any], first: int) -> None:
    """Raises the first error among the results of texts; ``first`` is the index of the first text."""
    for i, result in enumerate(results):
        if isinstance(result, FastshapError):
            error = type(result)(f"Text {first + i}: {result}")
            error.text_index = first + i
            raise error from result.__cause__
