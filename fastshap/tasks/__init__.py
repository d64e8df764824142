"""One file a task: which logits are explained, which targets there are, which of them a position can see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastshap.errors import UnsupportedModelError
from fastshap.models.untrained import newly_initialised, warn_of_untrained
from fastshap.tasks.base import Prediction, Prepared, Task, takes, unwrapped
from fastshap.tasks.classification import ClassificationTask
from fastshap.tasks.generation import GenerationTask
from fastshap.tasks.heads import output_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ClassificationTask", "GenerationTask", "Prediction", "Prepared", "Task", "takes", "task_for", "unwrapped"]

_TASKS: tuple[type[Task], ...] = (ClassificationTask, GenerationTask)


# What a class does, by the ending of its name as Hugging Face gives them.
_OTHERS = {
    "ForMaskedLM": "fills in masked tokens",
    "ForQuestionAnswering": "marks answers in a text",
    "ForTokenClassification": "classifies tokens",
    "ForMultipleChoice": "chooses among texts",
    "ForNextSentencePrediction": "tells whether a sentence follows another",
    "ForPreTraining": "is made for pre-training",
    "Model": "gives hidden states and no scores",
}


def task_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inference_mode: Any, seed: int = 0) -> Task:
    """The task of a model: by the ending of its class name, or else by whether it goes on with a text.

    Raises:
        UnsupportedModelError: the model does something else.
    """
    own = unwrapped(model)
    name = type(own).__name__
    makes = getattr(own, "output_modalities", ("text",))
    for task in _TASKS if "text" in makes else ():
        if name.endswith(task.class_endings) or (task is GenerationTask and _goes_on(own)):
            warn_of_untrained(own, newly_initialised(own))
            return task(model, tokenizer, inference_mode, seed)
    does = next((what for ending, what in _OTHERS.items() if name.endswith(ending)), "does something else")
    if getattr(own.config, "is_encoder_decoder", False):
        does = "is an encoder with a decoder"
    if "text" not in makes:
        does = f"makes {' and '.join(makes)}"
    raise UnsupportedModelError(
        f"{name} {does}. fastshap explains models that classify texts (*{ClassificationTask.class_endings[0]}), and causal "
        "language models, which predict the next token from text alone."
    )


def _goes_on(model: Any) -> bool:
    """Whether a model of any other name is a causal language model of text, as far as shows before it runs.

    That its logits are a row for each token, and depend on no later one, is found when it is tried.
    """
    generates = getattr(model, "can_generate", bool)() and not getattr(model.config, "is_encoder_decoder", False)
    return generates and takes(model, "inputs_embeds") and output_layer(model) is not None
