"""Targets in words, as the command line and batch jobs have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastshap.errors import InvalidArgumentError
from fastshap.tasks.base import Task
from fastshap.types.targets import Contrast


def spelled_targets(task: Task, words: Sequence[str | int] | Contrast | None, count: int) -> Any:
    """The targets of ``count`` texts: see :meth:`fastshap.tasks.Task.spelled_targets`, or a contrast of two words.

    Raises:
        InvalidArgumentError: the task takes no contrast, or no text could have such a target.
    """
    if not isinstance(words, Contrast):
        return task.spelled_targets(words, count)
    if not task.takes_contrasts:
        raise InvalidArgumentError(
            f"A contrast in words is for a classifier or a language model; this model is a {task.model_name}."
        )
    if "all" in (words.target, words.other):
        raise InvalidArgumentError("A contrast is of two targets, neither of which is 'all'.")
    ours, theirs = (task.spelled_targets([one], count) for one in (words.target, words.other))
    return [Contrast(_only(one), _only(other)) for one, other in zip(ours, theirs, strict=True)]


def _only(target: Any) -> Any:
    return target[0] if isinstance(target, list) else target
