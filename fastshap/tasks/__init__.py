"""One file a task: which scores are explained, which targets there are, and what they depend on."""

from __future__ import annotations

from fastshap.tasks.base import NO_PREDICTION, Predict, Prediction, Prepared, Shown, Task
from fastshap.tasks.registry import (
    has_classes,
    named_score,
    of_call,
    register,
    shown,
    task_for,
    task_named,
    task_of_class,
    usual_task,
)
from fastshap.tasks.subject import takes, unwrapped
from fastshap.text.encode import Encoded
from fastshap.text.groups import Scope

__all__ = [
    "NO_PREDICTION",
    "Encoded",
    "Predict",
    "Prediction",
    "Prepared",
    "Scope",
    "Shown",
    "Task",
    "has_classes",
    "named_score",
    "of_call",
    "register",
    "shown",
    "takes",
    "task_for",
    "task_named",
    "task_of_class",
    "unwrapped",
    "usual_task",
]
