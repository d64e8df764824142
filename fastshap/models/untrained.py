"""Parameters that were never trained: transformers fills in those that a checkpoint lacks, a classifier's head say."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any

from torch import nn

from fastshap.errors import UntrainedHeadWarning, warn

_SHOWN = 4
_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def newly_initialised(model: nn.Module) -> list[str]:
    """Names of parameters that transformers (5.24) made up while it read the others, and that nothing was written to since.

    It marks parameters that it read. A model that was not read from a checkpoint, or that was copied, has no marks.
    """
    parameters = dict(model.named_parameters())
    read = {name for name, parameter in parameters.items() if getattr(parameter, "_is_hf_initialized", False)}
    return (
        [name for name, parameter in parameters.items() if name not in read and parameter._version <= 1] if read else []
    )


def warn_of_untrained(model: Any, names: Collection[str]) -> None:
    """Once a model, also where another of its class was spoken of before."""
    if not names or model in _told:
        return
    _told.add(model)
    listed = ", ".join(sorted(names)[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    warn(
        f"{type(model).__name__} was loaded from a checkpoint without {listed}: these weights are random, so there is nothing "
        "learned to explain. Load a checkpoint that was trained for this task, or train this one first.",
        UntrainedHeadWarning,
        again=True,
    )
