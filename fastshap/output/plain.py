"""A record as plain lists, numbers and strings, and back: the form that files hold (schemas/output-3.json describes it).

What is read has to fit the schema, so that nothing that an output is used for later meets a value it cannot take.
``reliability`` is written for other readers, and computed again from the scores when it is asked for here.
NaN is null and infinities are "Infinity" and "-Infinity", as JSON has neither; all other numbers come back to the bit.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshap.errors import InvalidArgumentError
from fastshap.models.provenance import Provenance
from fastshap.output.checked import Rule, check, compiled, short
from fastshap.output.record import OF_TARGETS, Record
from fastshap.settings import PARAMETERS, Settings
from fastshap.tasks import has_classes
from fastshap.tasks.base import POSITIONS
from fastshap.types import model_task_of, name_of_task

SCHEMA_VERSION = 3
SCHEMA_PATH = Path(__file__).parents[1] / "schemas" / f"output-{SCHEMA_VERSION}.json"

# Fields that are what they are in JSON.
_SAME = (
    *("text", "elements", "segments", "target_names", "degrees_of_freedom", "error", "truncated", "converged"),
    *("predicted_label", "probability"),
)

AT_ENDS = ("convergence_delta", "output_value", "baseline_value")  # (t,) where the delta was asked for


@cache
def schema() -> dict[str, Any]:
    """What a file holds of an output: the schema's file, with the parameters as fastshap.settings states them."""
    found: dict[str, Any] = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    of_settings = {name: dict(its.schema) for name, its in PARAMETERS.items()} | {"rounds": {"$ref": "#/$defs/some"}}
    found["properties"]["settings"]["properties"] = of_settings
    return found


@cache
def _rule() -> Rule:
    return compiled(schema())


def to_plain(record: Record) -> dict[str, Any]:
    """What :func:`from_plain` takes; fit for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "task": name_of_task(record.model_task),
        **{name: getattr(record, name) for name in _SAME},
        "element_spans": [list(span) for span in record.element_spans],
        "element_tokens": record.element_tokens,
        "targets": record.targets.tolist(),
        "target_weights": None if record.target_weights is None else record.target_weights.tolist(),
        "attributions": [numbers(row) for row in record.attributions],
        "standard_error": [numbers(row) for row in record.standard_error],
        "reliability": numbers(record.reliability),
        "unassigned": numbers(record.unassigned),
        **{name: None if (value := getattr(record, name)) is None else numbers(value) for name in AT_ENDS},
        "target_probabilities": None if record.target_probabilities is None else record.target_probabilities.tolist(),
        "model_inputs": {name: value.tolist() for name, value in record.model_inputs_to_explain.items()},
        "settings": record.settings.to_plain() | {"n_perturbations": record.n_perturbations, "rounds": record.rounds},
        "provenance": vars(record.provenance) | {"versions": dict(record.provenance.versions)},
    }


def from_plain(kind: type[Any], data: Any) -> Any:
    """A record of class ``kind`` from what :func:`to_plain` returned, in this version of the library or an earlier one.

    Raises:
        InvalidArgumentError: it is nothing of the kind, lacks something, or was written by a later version; the message names
            the field.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise InvalidArgumentError(
            f"An output of fastshap has a schema_version from 1 to {SCHEMA_VERSION}; this has {short(version)}. "
            + ("It was written by a later version of fastshap; upgrade." if type(version) is int else "")
        )
    if version == 1:
        data = _from_first(data)
    data = dict.fromkeys(AT_ENDS[1:]) | data
    if version < SCHEMA_VERSION:
        data = {"segments": [], "target_weights": None} | data | {"schema_version": SCHEMA_VERSION}
    try:
        # A text that was refused may hold what is no character.
        refused = isinstance(data.get("error"), str) and isinstance(data.get("text"), str)
        check(data | {"text": encodable(data["text"])} if refused else data, _rule())
        _agree(data)
        return kind(**_fields(data))
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"This output does not read: {error} fastshap/schemas/{SCHEMA_PATH.name} says what it holds."
        ) from None


def _from_first(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 as version 2: a probability was that of the one target, where the model chose it."""
    names, probability = data.get("target_names"), data.get("probability")
    known = probability is not None and isinstance(names, list) and len(names) == 1
    return data | {
        "predicted_label": names[0] if known else None,  # type: ignore[index]
        "target_probabilities": [probability] if known else None,
    }


def _agree(data: dict[str, Any]) -> None:
    """What a schema cannot say: fields that have to fit each other.

    Raises:
        InvalidArgumentError: they do not; the message names the field.
    """
    targets, elements = len(data["target_names"]), len(data["elements"])
    sizes = dict.fromkeys(("unassigned", *AT_ENDS, "target_probabilities"), targets)
    sizes |= {"element_spans": elements, "element_tokens": elements, "attributions": targets, "standard_error": targets}
    for name, size in sizes.items():
        if data[name] is not None and len(data[name]) != size:
            raise InvalidArgumentError(f"{name} must hold {size} entries; it holds {len(data[name])}.")
    for name in ("attributions", "standard_error"):
        for t, row in enumerate(data[name]):
            if len(row) != elements:
                raise InvalidArgumentError(f"{name}[{t}] must hold {elements} entries; it holds {len(row)}.")
    failed = data["error"] is not None
    if failed and (targets or elements):
        raise InvalidArgumentError("error is for a text without targets and elements; this has some.")
    if not failed and not (targets and elements):
        raise InvalidArgumentError("target_names and elements must hold at least one entry each, where error is null.")
    if data["segments"] and len(data["segments"]) != elements:
        raise InvalidArgumentError(f"segments must hold {elements} entries or none; it holds {len(data['segments'])}.")
    _segments(data["segments"], [min(member) for member in data["element_tokens"]])
    _weights(data["target_weights"], targets, len(data["targets"]))
    own = data["target_weights"] is None
    if not failed and own and has_classes(data["task"]) and len(data["targets"]) != targets:
        raise InvalidArgumentError(f"targets must hold {targets} entries; it holds {len(data['targets'])}.")
    samples, rounds = data["settings"]["n_perturbations"], data["settings"]["rounds"]
    if samples % rounds:
        raise InvalidArgumentError(f"settings.n_perturbations must be a multiple of rounds, {rounds}; got {samples}.")
    if data["converged"] is not None and data["settings"]["rtol"] is None:
        raise InvalidArgumentError("converged must be null where settings.rtol is.")
    tokens = _tokens(data["model_inputs"], failed)
    _places(data["model_inputs"].get(POSITIONS), len(data["targets"]), tokens)
    for i, ((start, end), member) in enumerate(zip(data["element_spans"], data["element_tokens"], strict=True)):
        if not start <= end <= len(data["text"]):
            raise InvalidArgumentError(f"element_spans[{i}] must lie in the text; got {[start, end]}.")
        if max(member) >= tokens:
            raise InvalidArgumentError(f"element_tokens[{i}] must be below {tokens}; got {short(member)}.")
    if max(data["segments"], default=0) > max(tokens - 1, 0):
        raise InvalidArgumentError(
            f"segments must be below {tokens}, the number of tokens; got {short(data['segments'])}."
        )


def _segments(numbers: list[int], starts: list[int]) -> None:
    """Parts of a text follow each other. ``starts``: each element's first token."""
    along = [number for _, number in sorted(zip(starts, numbers, strict=False))]
    if along != sorted(along):
        raise InvalidArgumentError(f"segments must not become smaller along the text; got {short(numbers)}.")


def _tokens(inputs: dict[str, Any], failed: bool) -> int:
    """How many tokens the model saw."""
    if failed and not inputs:
        return 0
    for name in ("input_ids",) if failed else ("input_ids", "special_tokens_mask", "offset_mapping"):
        if name not in inputs:
            raise InvalidArgumentError(f"model_inputs lacks {name!r}.")
    count = len(inputs["input_ids"][0])
    for name, rows in inputs.items():
        if name.startswith(OF_TARGETS):
            continue
        if len(rows[0]) != count:
            raise InvalidArgumentError(
                f"model_inputs.{name}[0] must hold {count} entries, as input_ids does; it holds {len(rows[0])}."
            )
        _regular(rows[0], f"model_inputs.{name}[0]")
    return count


def _weights(rows: list[list[float]] | None, height: int, width: int) -> None:
    """(t, T)."""
    if rows is not None and (len(rows) != height or any(len(row) != width for row in rows)):
        raise InvalidArgumentError(f"target_weights must hold {height} lists of {width} numbers, or be null.")


def _places(rows: list[list[int]] | None, targets: int, tokens: int) -> None:
    """One for each target, each of a token."""
    if rows is not None and (len(rows[0]) != targets or not all(0 <= place < tokens for place in rows[0])):
        raise InvalidArgumentError(
            f"model_inputs.{POSITIONS}[0] must hold {targets} entries from 0 to {tokens - 1}; got {short(rows[0])}."
        )


def _regular(values: list[Any], name: str) -> None:
    """Numbers, or lists of numbers of one length."""
    lengths = {len(one) if isinstance(one, list) else -1 for one in values}
    if len(lengths) > 1:
        raise InvalidArgumentError(f"{name} must hold numbers, or lists of one length.")


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    from transformers import (
        BatchEncoding,  # here, so that importing fastshap loads no more of transformers than it must
    )

    settings = dict(data["settings"])
    rounds = settings.pop("rounds")
    settings["n_perturbations"] //= rounds
    targets, elements = len(data["target_names"]), len(data["elements"])
    ids = torch.tensor(data["targets"], dtype=torch.int64, device="cpu")
    inputs = {
        name: torch.tensor(value, dtype=torch.int64, device="cpu") for name, value in data["model_inputs"].items()
    }
    of_targets = {name: data[name] for name in (*AT_ENDS, "target_probabilities")}
    weights = data["target_weights"]
    known = {one.name for one in fields(Provenance)}
    return {
        **{name: data[name] for name in _SAME},
        "settings": Settings.from_plain(settings),
        "rounds": rounds,
        "model_task": model_task_of(data["task"]),
        "element_spans": [(start, end) for start, end in data["element_spans"]],
        "element_tokens": [list(member) for member in data["element_tokens"]],
        "targets": ids,
        "target_weights": None if weights is None else tensor(weights, targets, len(ids)),
        "classes": ids if has_classes(data["task"]) and data["error"] is None else None,
        "attributions": tensor(data["attributions"], targets, elements),
        "standard_error": tensor(data["standard_error"], targets, elements),
        "unassigned": tensor([data["unassigned"]], 1, targets)[0],
        **{name: None if one is None else tensor([one], 1, targets)[0] for name, one in of_targets.items()},
        "model_inputs_to_explain": BatchEncoding(inputs),
        "provenance": Provenance(**{name: value for name, value in data["provenance"].items() if name in known}),
    }


def numbers(values: Tensor) -> list[float | str | None]:
    """One dimension of floats."""
    return [number(value) for value in values.tolist()]


def number(value: float) -> float | str | None:
    """A float as JSON has it."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def tensor(rows: Any, height: int, width: int) -> Tensor:
    """(height, width) float32."""
    read = [[math.nan if value is None else float(value) for value in row] for row in rows]
    return torch.tensor(read, dtype=torch.float32, device="cpu").view(height, width)


def encodable(text: str) -> str:
    """Halves of surrogate pairs, which UTF-8 has not (and only texts that were refused hold), replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
