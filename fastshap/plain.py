"""A record as plain lists, numbers and strings, and back: the form that files hold (schemas/output-1.json describes it).

NaN is null and infinities are "Infinity" and "-Infinity", as JSON has neither; all other numbers come back to the bit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshap.errors import FastshapError, InvalidArgumentError
from fastshap.provenance import Provenance
from fastshap.record import Record
from fastshap.types import Granularity, GranularityAggregationStrategy, InferenceModes, ModelTask

SCHEMA_VERSION = 1
SCHEMA_PATH = Path(__file__).parent / "schemas" / f"output-{SCHEMA_VERSION}.json"

# Fields that are what they are in JSON.
_SAME = ("text", "elements", "target_names", "degrees_of_freedom", "error", "truncated", "converged", "probability")
_SAME_SETTINGS = (
    "n_perturbations",
    "rounds",
    "rtol",
    "max_perturbations",
    "noise_std",
    "sampling",
    "path_density",
    "reduction",
    "input_x_gradient",
    "perturb_special_tokens",
    "seed",
)
_CUSTOM = "callable:"


class CustomMode:
    """Stands for an inference mode that was a function: a file holds its name alone."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, logits: Tensor) -> Tensor:
        raise InvalidArgumentError(
            f"The inference mode {self.__name__!r} was a function, and a file holds its name alone; pass the function, as "
            "inference_mode."
        )


def to_plain(record: Record) -> dict[str, Any]:
    """What :func:`from_plain` takes; fit for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "task": record.model_task.value,
        **{name: getattr(record, name) for name in _SAME},
        "element_spans": [list(span) for span in record.element_spans],
        "element_tokens": record.element_tokens,
        "targets": record.targets.tolist(),
        "attributions": [numbers(row) for row in record.attributions],
        "standard_error": [numbers(row) for row in record.standard_error],
        "unassigned": numbers(record.unassigned),
        "convergence_delta": None if record.convergence_delta is None else numbers(record.convergence_delta),
        "model_inputs": {name: value.tolist() for name, value in record.model_inputs_to_explain.items()},
        "settings": {
            "granularity": record.granularity.value,
            "granularity_aggregation_strategy": record.granularity_aggregation_strategy.value,
            "inference_mode": _mode_name(record.inference_mode),
            "baseline": _plain_baseline(record.baseline),
            **{name: getattr(record, name) for name in _SAME_SETTINGS},
        },
        "provenance": asdict(record.provenance),
    }


def from_plain(kind: type[Any], data: Any) -> Any:
    """A record of class ``kind`` from what :func:`to_plain` returned, in this version of the library or an earlier one.

    Raises:
        InvalidArgumentError: it is nothing of the kind, lacks something, or was written by a later version.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise InvalidArgumentError(
            f"An output of fastshap has schema_version {SCHEMA_VERSION}; this has {version!r}. "
            + ("It was written by a later version of fastshap; upgrade." if isinstance(version, int) else "")
        )
    try:
        return kind(**_fields(data))
    except FastshapError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"does not read: {error}"
        raise InvalidArgumentError(
            f"This output {what}; fastshap/schemas/{SCHEMA_PATH.name} says what it holds."
        ) from None


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    from transformers import (
        BatchEncoding,  # here, so that importing fastshap loads no more of transformers than it must
    )

    settings = data["settings"]
    targets, elements = len(data["target_names"]), len(data["elements"])
    task = ModelTask(data["task"])
    ids = torch.tensor(data["targets"], dtype=torch.int64, device="cpu")
    inputs = {
        name: torch.tensor(value, dtype=torch.int64, device="cpu") for name, value in data["model_inputs"].items()
    }
    delta = data["convergence_delta"]
    known = {one.name for one in fields(Provenance)}
    return {
        **{name: data[name] for name in _SAME},
        **{name: settings[name] for name in _SAME_SETTINGS},
        "model_task": task,
        "element_spans": [(start, end) for start, end in data["element_spans"]],
        "element_tokens": [list(member) for member in data["element_tokens"]],
        "targets": ids,
        "classes": ids if task is ModelTask.CLASSIFICATION and data["error"] is None else None,
        "attributions": tensor(data["attributions"], targets, elements),
        "standard_error": tensor(data["standard_error"], targets, elements),
        "unassigned": tensor([data["unassigned"]], 1, targets)[0],
        "convergence_delta": None if delta is None else tensor([delta], 1, targets)[0],
        "model_inputs_to_explain": BatchEncoding(inputs),
        "granularity": Granularity(settings["granularity"]),
        "granularity_aggregation_strategy": GranularityAggregationStrategy(
            settings["granularity_aggregation_strategy"]
        ),
        "inference_mode": _mode(settings["inference_mode"]),
        "baseline": _baseline(settings["baseline"]),
        "provenance": Provenance(**{name: value for name, value in data["provenance"].items() if name in known}),
    }


def numbers(values: Tensor) -> list[float | str | None]:
    """One dimension of floats."""
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def tensor(rows: Any, height: int, width: int) -> Tensor:
    """(height, width) float32."""
    read = [[math.nan if value is None else float(value) for value in row] for row in rows]
    return torch.tensor(read, dtype=torch.float32, device="cpu").view(height, width)


def _mode_name(mode: Any) -> str:
    if isinstance(mode, InferenceModes):
        return mode.value
    return _CUSTOM + str(getattr(mode, "__name__", type(mode).__name__))


def _mode(name: str) -> Any:
    return CustomMode(name.removeprefix(_CUSTOM)) if name.startswith(_CUSTOM) else InferenceModes(name)


def _plain_baseline(baseline: float | Tensor | None) -> Any:
    if not isinstance(baseline, Tensor):
        return baseline
    return {"dtype": str(baseline.dtype).removeprefix("torch."), "values": baseline.tolist()}


def _baseline(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    return torch.tensor(plain["values"], dtype=getattr(torch, plain["dtype"]), device="cpu")
