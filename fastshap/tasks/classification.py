"""Sequence classification: targets are classes."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshap.engine import Call
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.tasks.base import Predict, Prepared, Task
from fastshap.text import Encoded, encode
from fastshap.types import ModelTask


class ClassificationTask(Task):
    """``*ForSequenceClassification``: logits (R, classes)."""

    class_endings = ("ForSequenceClassification",)
    model_task = ModelTask.CLASSIFICATION

    @cached_property
    def equal_lengths(self) -> bool:  # type: ignore[override]
        """Decoders pool the last position when they are given embeddings: padding would be what they classify."""
        source = inspect.getsource(type(self.model).forward)
        return "pad_token_id" in source

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        config: Any = self.model.config
        return [str(config.id2label.get(i, i)) for i in range(config.num_labels)]

    def logits(self, call: Call) -> Tensor:
        """(R, classes), before the inference mode."""
        with _padding_token_named(self.model.config) if self.equal_lengths else contextlib.nullcontext():
            return self.model(**call.inputs).logits

    def scores(self, call: Call) -> Tensor:
        return self.inference_mode(self.logits(call)).gather(1, call.targets)

    def prepare(
        self, texts: Sequence[Any], targets: Sequence[Any] | None, predict: Predict
    ) -> list[Prepared | FastshapError]:
        encoded = encode(self.tokenizer, texts, max_length=self.max_length())
        if targets is None:
            chosen = iter(predict([e for e in encoded if isinstance(e, Encoded)], self.logits))
            targets = [next(chosen).argmax(-1, keepdim=True) if isinstance(e, Encoded) else None for e in encoded]
        return [
            self._prepared(one, target) if isinstance(one, Encoded) else one
            for one, target in zip(encoded, targets, strict=True)
        ]

    def _prepared(self, encoded: Encoded, targets: Tensor) -> Prepared:
        names = [self.labels[target] for target in targets.tolist()]
        return Prepared(encoded, targets, names)

    def split_targets(self, targets: Any, count: int) -> list[Tensor] | None:
        """None, one class for every text (a number or a label), a list of classes or a tensor (n,) or (n, t)."""
        if targets is None:
            return None
        if isinstance(targets, np.ndarray):
            targets = torch.from_numpy(targets)
        if isinstance(targets, Tensor) and targets.ndim > 0:
            if targets.ndim not in (1, 2) or targets.is_floating_point() or targets.dtype == torch.bool:
                raise InvalidTypeError(
                    "Classification targets as a tensor are integers of shape (texts,) or (texts, targets); "
                    f"got {tuple(targets.shape)} {targets.dtype}."
                )
            each = [row.reshape(-1).tolist() for row in targets]
        elif isinstance(targets, str) or _is_whole(targets):
            each = [[targets]] * count
        elif isinstance(targets, Iterable) and not isinstance(targets, bytes | dict | Tensor):
            each = [t.tolist() if isinstance(t, Tensor) and t.ndim == 1 else [t] for t in targets]
        else:
            raise InvalidTypeError(
                "Classification targets are None (the predicted class), a class, a list of classes or a tensor of shape "
                f"(texts,) or (texts, targets); got {type(targets).__name__}."
            )
        if len(each) != count:
            raise InvalidArgumentError(f"There are {count} texts but {len(each)} targets; give one for each text.")
        return [torch.tensor([self._class(target) for target in one], dtype=torch.int64) for one in each]

    def _class(self, target: Any) -> int:
        labels = self.labels
        listed = ", ".join(f"{i} ({label})" for i, label in enumerate(labels[:20]))
        if isinstance(target, str):
            if target not in labels:
                raise InvalidArgumentError(f"The model has no label {target!r}; its classes are {listed}.")
            return labels.index(target)
        if not _is_whole(target):
            raise InvalidTypeError(f"A target class is a number or a label; got {target!r}.")
        index = operator.index(target)
        if not 0 <= index < len(labels):
            raise InvalidArgumentError(f"Target {index} is out of range; the model's classes are {listed}.")
        return index


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def _padding_token_named(config: Any) -> Iterator[None]:
    """Decoders refuse several rows while no padding token is named, though rows of one length have no padding."""
    config = config.get_text_config()
    if config.pad_token_id is not None:
        yield
        return
    config.pad_token_id = 0
    try:
        yield
    finally:
        config.pad_token_id = None
