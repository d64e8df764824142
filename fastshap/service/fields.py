"""The fields of an instance: their JSON schemas, from what :mod:`fastshap.settings` and the model's task say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastshap.output.plain import schema
from fastshap.service.limits import Limits
from fastshap.settings import PARAMETERS
from fastshap.tasks import Task

# What is explained is the service's own; a request chooses how.
OF_THE_SERVICE = ("inference_mode", "score", "span", "hypothesis_template")
OPTIONS = tuple(name for name in PARAMETERS if name not in OF_THE_SERVICE)
_COUNTS = ("n_perturbations", "max_perturbations")
_TEXT = {"type": "string", "pattern": r"\S"}  # one that is not white space alone


def properties(task: Task, limits: Limits, explaining: bool = True) -> dict[str, dict[str, Any]]:
    """A schema for each field of an instance.

    Args:
        explaining: with the fields that only explanations have.
    """
    found: dict[str, dict[str, Any]] = {"text": _TEXT | {"description": "The text."}}
    if task.takes_pairs:
        found["pair"] = _TEXT | {"description": "The second text, for a model that reads pairs of texts."}
    if takes_choices(task):
        said = "What may follow the text: of these the model chooses."
        found["choices"] = _list_of(_TEXT, limits.max_targets) | {"description": said}
    if task.takes_chats and getattr(task.tokenizer, "chat_template", None):
        message: dict[str, Any] = {
            "type": "object",
            "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
        }
        message |= {"required": ["role", "content"], "additionalProperties": False}
        said = "A conversation, in the place of text."
        found["messages"] = _list_of(message, limits.max_targets) | {"description": said}
    one: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    found["target"] = {
        "anyOf": [{"type": "null"}, *one["anyOf"]],
        "description": "What to explain: a class by its label or number; for a language model the continuation. By default "
        "what the model predicts or writes.",
    }
    if not task.writes_targets:  # a text has one continuation
        found["targets"] = {
            "anyOf": [{"type": "string", "pattern": "^all$"}, _list_of(one, limits.max_targets)],
            "description": "Several targets in the place of target: a list, or all. Not for language models.",
        }
    if task.takes_contrasts:
        said = "Why the target rather than this one: the difference of their scores is explained."
        found["contrast"] = {**one, "description": said}
    if task.writes_targets:
        said = "The most tokens that the model writes if there is no target."
        most = {"minimum": 1, "maximum": limits.max_new_tokens}
        found["max_new_tokens"] = {"type": "integer", **most, "description": said}
    return found | (_settings(limits) if explaining else {})


def takes_choices(task: Task) -> bool:
    """Whether a text has choices, which the task's own examples show."""
    (first, *_), _ = task.examples(["a"])
    return isinstance(first, Mapping) and "choices" in first


def instance(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an instance that is an object."""
    found: dict[str, Any] = {"type": "object", "properties": fields, "additionalProperties": False}
    if "messages" in fields:
        return found | {"oneOf": [{"required": ["text"]}, {"required": ["messages"]}]}
    return found | {"required": ["text", "choices"] if "choices" in fields else ["text"]}


def _list_of(items: Mapping[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


def _settings(limits: Limits) -> dict[str, dict[str, Any]]:
    found = {}
    for name in OPTIONS:
        its = PARAMETERS[name]
        found[name] = {**_sendable(its.schema), "description": its.help}
        if name in _COUNTS:
            found[name]["maximum"] = limits.max_samples
    return found


def _sendable(value: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as it stands, but for references, and for what a request cannot send: functions and tensors."""
    if "$ref" in value:
        return _sendable(schema()["$defs"][value["$ref"].removeprefix("#/$defs/")])
    found = {name: one for name, one in value.items() if name != "description"}
    if "anyOf" in found:
        found["anyOf"] = [_sendable(one) for one in found["anyOf"] if one.get("type") != "object"]
    if "items" in found:
        found["items"] = _sendable(found["items"])
    if "pattern" in found:
        found["pattern"] = found["pattern"].replace("|callable:.*", "")
    return found
