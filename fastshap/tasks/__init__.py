"""One file a task: which logits are explained, which targets there are, which of them a position can see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastshap.errors import UnsupportedModelError
from fastshap.tasks.base import Prediction, Prepared, Task, takes, unwrapped
from fastshap.tasks.classification import ClassificationTask
from fastshap.tasks.generation import GenerationTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ClassificationTask", "GenerationTask", "Prediction", "Prepared", "Task", "takes", "task_for", "unwrapped"]

_TASKS: tuple[type[Task], ...] = (ClassificationTask, GenerationTask)


def task_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inference_mode: Any, seed: int = 0) -> Task:
    """The task of a model, by the ending of its class name as Hugging Face names them."""
    name = type(unwrapped(model)).__name__
    for task in _TASKS:
        if name.endswith(task.class_endings):
            return task(model, tokenizer, inference_mode, seed)
    supported = ", ".join(f"*{ending}" for task in _TASKS for ending in task.class_endings)
    raise UnsupportedModelError(
        f"fastshap explains models of the classes {supported}; this one is a {name}. Load it with "
        "AutoModelForSequenceClassification or AutoModelForCausalLM."
    )
