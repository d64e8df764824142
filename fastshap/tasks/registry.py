"""Which tasks there are, and which task a model has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fastshap.checks import one_of
from fastshap.errors import InvalidArgumentError, InvalidTypeError, UnsupportedModelError
from fastshap.models.untrained import newly_initialised, warn_of_untrained
from fastshap.settings import Settings
from fastshap.tasks.base import Shown, Task
from fastshap.tasks.classification import ClassificationTask
from fastshap.tasks.generation import GenerationTask
from fastshap.tasks.masked_lm import MaskedLMTask
from fastshap.tasks.multiple_choice import MultipleChoiceTask
from fastshap.tasks.question_answering import QuestionAnsweringTask
from fastshap.tasks.score import ScoreTask
from fastshap.tasks.seq2seq import Seq2SeqTask
from fastshap.tasks.similarity import DotSimilarityTask, SimilarityTask
from fastshap.tasks.subject import unwrapped
from fastshap.tasks.token_classification import TokenClassificationTask
from fastshap.tasks.zero_shot import ZeroShotTask
from fastshap.types import SCORES, InferenceModes, ModelTask, inference_mode_of, name_of_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_Kind = TypeVar("_Kind", bound=type[Task])

_BUILT_IN: tuple[type[Task], ...] = (
    ClassificationTask,
    GenerationTask,
    Seq2SeqTask,
    TokenClassificationTask,
    QuestionAnsweringTask,
    MaskedLMTask,
    SimilarityTask,
    DotSimilarityTask,
    MultipleChoiceTask,
    ZeroShotTask,
    ScoreTask,
)
_registered: list[type[Task]] = []

# What a model does, by the ending of its class name in transformers.
_OTHERS = {
    "ForNextSentencePrediction": "tells whether a sentence follows another",
    "ForPreTraining": "is made for pre-training",
}


def register(task: _Kind) -> _Kind:
    """Adds a task from outside, for this process. It also works as a decorator of the class.

    fastshap asks tasks from outside before the built-in ones whether a model is theirs, in the order of registration.

    Args:
        task: a subclass of :class:`Task` with a ``name`` that no other task has.

    Returns:
        The class.

    Raises:
        InvalidTypeError: it is not a task class, or it lacks something.
        InvalidArgumentError: its name is taken, or holds other characters than small letters, digits and underscores.
    """
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise InvalidTypeError(f"register takes a subclass of fastshap.tasks.Task; got {task!r}.")
    missing = [name for name in ("name", "class_endings", "explains") if not hasattr(task, name)]
    missing += sorted(getattr(task, "__abstractmethods__", ())) if inspect.isabstract(task) else []
    if missing:
        raise InvalidTypeError(f"{task.__name__} lacks {', '.join(missing)}; see fastshap.tasks.Task.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", task.name):
        raise InvalidArgumentError(f"A task's name must be small letters, digits and underscores; got {task.name!r}.")
    if task_named(task.name) is not None:
        raise InvalidArgumentError(f"There is already a task named {task.name!r}; give yours another name.")
    _registered.append(task)
    return task


def all_tasks() -> tuple[type[Task], ...]:
    """All tasks, those from outside first."""
    return (*_registered, *_BUILT_IN)


def task_named(name: str) -> type[Task] | None:
    """The task of that name, or None if this process has none."""
    return next((task for task in all_tasks() if task.name == name), None)


def usual_task(architecture: str) -> str | None:
    """The name of the task that a model's class goes with, if it is one by its name."""
    return next((task.name for task in all_tasks() if task.is_named(architecture)), None)


def task_of_class(name: str) -> str:
    """The built-in task of a model class in earlier versions, which told tasks by the ending of the class name."""
    return (ClassificationTask if name.endswith(ClassificationTask.class_endings) else GenerationTask).name


def shown(model_task: ModelTask | str) -> Shown:
    """How outputs of a task are shown. An unregistered task has the default."""
    task = task_named(name_of_task(model_task))
    return Shown() if task is None else task.shown


def has_classes(model_task: ModelTask | str) -> bool:
    """Whether an output's targets are classes of the text, one for each name."""
    task = task_named(name_of_task(model_task))
    return task is not None and task.targets_are_classes


def known_tasks() -> str:
    """The tasks that there are, and where to read of them, for messages."""
    names = ", ".join(task.name for task in all_tasks())
    return (
        f"fastshap has other tasks: {names}. docs/tasks.md says for which models, docs/adding-a-task.md how to add one"
    )


def task_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    named: str | type[Task] | None = None,
) -> Task:
    """The task of a model: the one that is ``named``, or by the model's class name, or by what it does."""
    if settings.score is not None and named not in (None, ScoreTask.name, ScoreTask):
        raise InvalidArgumentError(
            f"A score of your own is explained whatever the task is; leave out task={getattr(named, 'name', named)!r}."
        )
    kind = kind_of(model, ScoreTask if settings.score is not None else named)
    own: Any = unwrapped(model)
    warn_of_untrained(own, kind.read_of(newly_initialised(own)))
    return kind(model, tokenizer, settings)


def named_score(given: Mapping[str, Any], model: Any, named: str | type[Task] | None) -> dict[str, Any]:
    """Parameters with a score's name replaced by the inference mode that it stands for."""
    score = given.get("score")
    if callable(score):
        return {"inference_mode": InferenceModes.LOGITS, **given}
    if not isinstance(score, str):
        return dict(given)
    mode = kind_of(model, named).mode_named(one_of(score, "score", SCORES), unwrapped(model))
    before = given.get("inference_mode")
    if before is not None and inference_mode_of(before) is not mode:
        raise InvalidArgumentError(
            f"score={score!r} and inference_mode are two names for one thing, and they say different ones; leave out either."
        )
    return {**given, "score": None, "inference_mode": mode}


def of_call(before: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that an explainer was given, with those of a call in their place. A named score and an inference mode are
    one thing, so the call's is instead of both.
    """
    replaced = set()
    if options.get("score") is not None:
        replaced = {"inference_mode"}
    elif "inference_mode" in options and isinstance(before.get("score"), str):
        replaced = {"score"}
    return {name: value for name, value in before.items() if name not in replaced} | dict(options)


def kind_of(model: Any, named: str | type[Task] | None) -> type[Task]:
    """The task class of a model.

    Raises:
        UnsupportedModelError: the model does something that fastshap does not explain, or not what is ``named``.
        InvalidArgumentError, InvalidTypeError: there is no task of that name.
    """
    own: Any = unwrapped(model)
    name = type(own).__name__
    makes = getattr(own, "output_modalities", ("text",))
    wanted = all_tasks() if named is None else (wanted_task(named),)
    for task in wanted if "text" in makes else ():
        if task.serves(own) if named is not None else task.fits(own):
            return task
    if named is not None:
        raise UnsupportedModelError(f"task={wanted[0].name!r} is for {wanted[0].explains}; this model is a {name}.")
    does = next((what for ending, what in _OTHERS.items() if name.endswith(ending)), "does something else")
    if getattr(own.config, "is_encoder_decoder", False):
        does = "is an encoder with a decoder"
    if "text" not in makes:
        does = f"makes {' and '.join(makes)}"
    raise UnsupportedModelError(f"{name} {does}. {known_tasks()}.")


def wanted_task(named: Any) -> type[Task]:
    """The task that a user asks for, by its name or as its class.

    Raises:
        InvalidArgumentError, InvalidTypeError: there is no such task.
    """
    if isinstance(named, type) and issubclass(named, Task):
        return named
    if not isinstance(named, str):
        raise InvalidTypeError(
            f"task must be None, a task's name, or a subclass of fastshap.tasks.Task; got {named!r}."
        )
    if (task := task_named(named)) is None:
        known = ", ".join(task.name for task in all_tasks())
        raise InvalidArgumentError(f"There is no task named {named!r}; there are {known}.")
    return task
