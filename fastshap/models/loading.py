"""A model by its directory or name, and targets by what people write: what the command line and batch jobs begin with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastshap.errors import InvalidArgumentError, UnsupportedModelError, UntrainedHeadWarning
from fastshap.models.default import load_default_model
from fastshap.models.untrained import warn_of_untrained


def load_pair(model: str | None) -> tuple[Any, Any]:
    """The model and tokenizer to explain; a causal language model unless the configuration names a classifier.

    Args:
        model: a directory or hub id; None is the model inside the package.

    Raises:
        UnsupportedModelError: it holds a model of another kind.
        InvalidArgumentError: it could not be loaded; the message says why.
    """
    if model is None:
        return load_default_model()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(model)
        named = (config.architectures or ["unknown"])[0]
        generates = named.endswith(("ForCausalLM", "LMHeadModel")) or named in _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        if generates or named.endswith("ForSequenceClassification"):
            kind = AutoModelForCausalLM if generates else AutoModelForSequenceClassification
            found: Any = kind.from_pretrained(model, output_loading_info=True)
            loaded, report = found
            tokenizer = AutoTokenizer.from_pretrained(model)
            warn_of_untrained(loaded, {*report["missing_keys"], *map(str, report["mismatched_keys"])})
            return loaded, tokenizer
    except UntrainedHeadWarning:  # where warnings are errors
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are file formats
        raise InvalidArgumentError(
            f"The model {model!r} could not be loaded. {_why_not_loaded(model, error)}"
        ) from None
    raise UnsupportedModelError(
        f"{model!r} holds a {named}; models for sequence classification and causal language models are explained."
    )


def _names(mapping: Mapping[str, str | Sequence[str]]) -> set[str]:
    return {one for names in mapping.values() for one in ([names] if isinstance(names, str) else names)}


def _why_not_loaded(model: str, error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    if Path(model).is_dir():
        return f"The directory lacks something, or holds something else: {first}"
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        return "There is no such directory."
    return (
        "There is no such directory, and as a name on the model hub it was neither found in the local cache nor could it be "
        f"downloaded (no network, an offline setting, a private model or a wrong name): {first}"
    )


def wanted_targets(task: Any, targets: Sequence[str | int] | None, count: int) -> Any:
    """Targets for ``count`` texts, as the task understands them: the same classes for each, or the same text after each.

    Args:
        targets: class numbers (as strings too), labels in any case, or "all"; for a language model one text that follows.

    Raises:
        InvalidArgumentError: a class that the model has not, or several texts for a language model.
    """
    labels = getattr(task, "labels", None)
    if not targets:
        return None
    if labels is None:
        if len(targets) > 1:
            raise InvalidArgumentError("A language model takes one target, the text that follows.")
        return list(targets) * count
    classes = [_class(target, labels) for target in targets]
    for one in classes:
        task.split_targets(one, 1)  # an unknown class is a mistake of usage, not of a text
    return [classes] * count


def _class(target: str | int, labels: list[str]) -> int | str:
    """A number, or a label in any case where that leaves no doubt."""
    if not isinstance(target, str):
        return target
    if re.fullmatch(r"-?[0-9]+", target) and target not in labels:
        return int(target)
    alike = [label for label in labels if label.lower() == target.lower()]
    return alike[0] if target not in labels and len(alike) == 1 else target
