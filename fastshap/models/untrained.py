"""Parameters that were never trained: transformers fills in those that a checkpoint lacks, a classifier's head say."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any

from torch import nn

from fastshap.errors import UntrainedHeadWarning, warn
from fastshap.models.tree import modules_of

_SHOWN = 4
_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def newly_initialised(model: nn.Module) -> list[str]:
    """Names of parameters that transformers (5.24) made up while it read the others, and that nothing was written to since.

    It marks parameters that it read. A model that was not read from a checkpoint, or that was copied, has no marks.
    """
    held = [one for module in modules_of(model) for one in module._parameters.values() if one is not None]
    made_up = {id(one) for one in held if not getattr(one, "_is_hf_initialized", False)}
    if len(made_up) == len({*map(id, held)}) or not made_up:  # most often
        return []
    return [name for name, one in model.named_parameters() if id(one) in made_up and one._version <= 1]


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
