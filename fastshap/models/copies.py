"""Copies of what explains: what can be copied and pickled, told before a pickler stumbles over it."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastshap.errors import InvalidTypeError
from fastshap.models.locks import lock_of

if TYPE_CHECKING:
    from typing_extensions import Self

_TAKE_MORE = {"cloudpickle", "dill"}  # picklers that also take functions without a name


class Copied:
    """What can be copied: a copy starts from ``_state()`` and finds out the rest for itself in ``__setstate__``."""

    model: Any

    def _state(self) -> dict[str, Any]:
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def __copy__(self) -> Self:
        own = object.__new__(type(self))
        own.__setstate__(self._state())
        return own

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        with lock_of(self.model):
            try:
                state = copy.deepcopy(self._state(), memo)
            except Exception as error:
                raise InvalidTypeError(
                    f"The explainer cannot be copied with its model, as something in it cannot ({type(error).__name__}: "
                    f"{error}). copy.copy makes an explainer of the same model."
                ) from error
        own = memo[id(self)] = object.__new__(type(self))
        own.__setstate__(state)
        return own


def check_picklable(parts: Mapping[str, Any]) -> None:
    """Nothing, if the standard library's pickler takes all parts of an explainer, or another one is at work.

    Raises:
        InvalidTypeError: it does not take one of them; the message names it, and why.
    """
    if _another_pickler():
        return
    for name, part in parts.items():
        try:
            _Trial(io.BytesIO()).dump(part)
        except Exception as error:
            raise InvalidTypeError(
                f"The explainer cannot be pickled, as its {name} cannot ({type(error).__name__}: {error}). A function has to "
                "stand at the top of a module under its own name; of anything else, make the explainer where it is used."
            ) from error


class _Trial(pickle.Pickler):
    """Leaves out tensors, which are large and can be pickled."""

    def persistent_id(self, value: Any) -> str | None:
        return "tensor" if isinstance(value, Tensor) and value.is_leaf else None


def _another_pickler() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if _TAKE_MORE & set(frame.f_globals.get("__name__", "").split(".")):
            return True
        frame = frame.f_back
    return False
