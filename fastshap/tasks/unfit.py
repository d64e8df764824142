"""Settings that make no sense for a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastshap.errors import InvalidArgumentError
from fastshap.settings import DEFAULTS

if TYPE_CHECKING:
    from fastshap.tasks.base import Task


def refuse_unfit(task: Task) -> None:
    """Nothing, if the task's settings make sense for it.

    Raises:
        InvalidArgumentError: one does not; the message says what it is for.
    """
    its = task.settings
    if its.span and not task.takes_spans:
        raise InvalidArgumentError(
            f"span is for language models, which write a target of several tokens; this model is a {task.model_name}."
        )
    if its.long_text == "window" and not task.takes_windows:
        raise InvalidArgumentError(
            f"long_text='window' is for classifiers, which read each window by itself; this model is a {task.model_name}. "
            "Use 'truncate' or 'error', or split the text."
        )
    if its.hypothesis_template != DEFAULTS["hypothesis_template"] and not task.takes_hypotheses:
        raise InvalidArgumentError(
            "hypothesis_template is for zero-shot classification, which puts labels into it; add task='zero_shot', or leave it "
            "out."
        )
