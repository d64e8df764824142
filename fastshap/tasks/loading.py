"""A model with its tokenizer by its directory or name: what the command line and batch jobs begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastshap.errors import InvalidArgumentError, UnsupportedModelError, UntrainedHeadWarning
from fastshap.models.default import load_default_model
from fastshap.models.untrained import warn_of_untrained
from fastshap.tasks.base import Task
from fastshap.tasks.registry import all_tasks, known_tasks, task_named, wanted_task


def task_named_by(model: str | None, task: str | type[Task] | None = None) -> type[Task] | None:
    """The ``task`` asked for, or that of the architecture in a model's configuration. None: no such model or task is there."""
    if task is not None:
        return task if isinstance(task, type) else task_named(task)
    if model is None:
        return None
    from transformers import AutoConfig

    try:
        return _task_of(AutoConfig.from_pretrained(model))
    except Exception:  # what is wrong is said when the model is loaded
        return None


def _task_of(config: Any) -> type[Task] | None:
    return next((task for task in all_tasks() if task.is_named(_architecture(config))), None)


def _architecture(config: Any) -> str:
    name: str = (config.architectures or ["unknown"])[0]
    return name


def load_pair(model: str | None, task: str | type[Task] | None = None) -> tuple[Any, Any]:
    """The model and tokenizer to explain, as the task loads them.

    Args:
        model: a directory or hub id; None is the model inside the package.
        task: the task's name or class; None is the task that the configuration's architecture belongs to.

    Raises:
        UnsupportedModelError: it holds a model of another kind.
        InvalidArgumentError, InvalidTypeError: it could not be loaded, the message says why; or there is no such task.
    """
    wanted = None if task is None else wanted_task(task)
    if model is None:
        return load_default_model()
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model)
        if (wanted := wanted or _task_of(config)) is not None:
            kind = getattr(transformers, wanted.auto_class)
            found: Any = kind.from_pretrained(model, output_loading_info=True)
            loaded, report = found
            tokenizer = transformers.AutoTokenizer.from_pretrained(model)
            warn_of_untrained(loaded, wanted.read_of([*report["missing_keys"], *map(str, report["mismatched_keys"])]))
            return loaded, tokenizer
    except UntrainedHeadWarning:  # where warnings are errors
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are file formats
        raise InvalidArgumentError(
            f"The model {model!r} could not be loaded. {_why_not_loaded(model, error)}"
        ) from None
    raise UnsupportedModelError(f"{model!r} holds a {_architecture(config)}. {known_tasks()}.")


def _why_not_loaded(model: str, error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    if Path(model).is_dir():
        return f"The directory lacks something, or holds something else: {first}"
    if Path(model).exists():
        return "It is a file. Name the directory that holds config.json, the weights and the tokenizer's files."
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        return "There is no such directory."
    return (
        "There is no such directory, and as a name on the model hub it was neither found in the local cache nor could it be "
        f"downloaded (no network, an offline setting, a private model or a wrong name): {first}"
    )
