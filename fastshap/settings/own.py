"""The explainer's signature: the parameters that decide numbers, and those that decide none."""

from __future__ import annotations

from typing import Any

from fastshap import checks
from fastshap.settings import DEFAULTS

_FIXED = ("tokenizer", "device", "task", "cuda_graphs")  # parameters that no call can change
# Those that decide no number, with their defaults.
OWN: dict[str, Any] = {"tokenizer": None, "batch_size": 4, "device": None, "task": None}
OWN |= {"return_convergence_delta": False, "on_error": "raise", "backend": "auto"}
OWN |= {"cuda_graphs": False}
# By their places, as interpreto has them; the others by their names.
_PLACES = (
    *("model", "tokenizer", "batch_size", "granularity", "granularity_aggregation_strategy", "device"),
    *("inference_mode", "input_x_gradient", "n_perturbations", "baseline", "noise_std"),
)
SIGNATURE = checks.signature(("self", *_PLACES), DEFAULTS | OWN)
OPTIONS = DEFAULTS.keys() | OWN.keys() - {*_FIXED}
BESIDE = ("model_inputs", "targets", "generation_kwargs", "progress")  # what a call takes beside these
