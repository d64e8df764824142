"""Classes as targets: the forms that they come in, and what classifiers have to be told for several rows."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshap.engine.packing import Call
from fastshap.tasks.sequences import mean_of

Row = tuple[int | None, ...]  # the classes of one target: one, two of a contrast, or None for what is predicted


@dataclass
class RidingScores:
    """The scores of a text whose own row is the last one; a target that is open (-1) is that row's predicted class.

    Attributes:
        task: a classifier's.
        aside: that row's logits, after a call.
    """

    task: Any
    aside: list[Tensor] = field(default_factory=list)

    def __call__(self, model: Any, call: Call) -> Tensor:
        each = self.task.logits_of_each(model, call)
        self.aside[:] = [mean_of(each)[-1].detach()]
        best = self.aside[0].argmax().to(call.targets.device)
        return self.task.chosen(each, call.targets.where(call.targets >= 0, best))


def joined_of(rows: Sequence[Row]) -> Tensor | None:
    """(t, T), of targets of one class or two; None where each is one."""
    if all(len(row) == 1 for row in rows):
        return None
    joined, at = torch.zeros(len(rows), sum(map(len, rows)), device="cpu"), 0
    for weights, row in zip(joined, rows, strict=True):
        weights[at : at + len(row)] = torch.tensor([1.0, -1.0], device="cpu")[: len(row)]
        at += len(row)
    return joined


def row_of(target: Any) -> list[Any]:
    """The targets of one text: a class, or several as a list, an array or a tensor of one dimension."""
    if isinstance(target, Tensor | np.ndarray):
        target = target.tolist()
    return list(target) if isinstance(target, list | tuple) else [target]


def is_number(value: Any) -> bool:
    if isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def padding_token_named(model: Any) -> Iterator[None]:
    """Decoders refuse several rows while no padding token is named, though rows of one length have no padding.

    It is named in a copy of the configuration, which others may be reading.
    """
    theirs = model.config
    if getattr(theirs.get_text_config(), "pad_token_id", None) is not None:
        yield
        return
    model.config = copy.deepcopy(theirs)
    model.config.get_text_config().pad_token_id = 0
    try:
        yield
    finally:
        model.config = theirs
