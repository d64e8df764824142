"""What is answered of an output: an entry of ``explanations`` and one of ``predictions``."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from torch import Tensor

from fastshap.output.record import Record
from fastshap.settings import Settings


def explanation(output: Record) -> dict[str, Any]:
    """An entry of ``explanations``. Lists of scores have one list for each target."""
    return {
        "words": output.elements,
        "importances": rows(output.attributions),
        "standard_error": rows(output.standard_error),
        "targets": output.target_names,
        "delta": numbers(output.convergence_delta),
        "output_value": numbers(output.output_value),
        "baseline_value": numbers(output.baseline_value),
        "unassigned": numbers(output.unassigned),
        "reliability": numbers(output.reliability),
        "samples": output.n_perturbations,
        "converged": output.converged,
        "truncated": output.truncated,
        "settings_fingerprint": settings_fingerprint(output.settings),
        "model_fingerprint": output.provenance.model_fingerprint,
    }


def prediction(output: Record) -> dict[str, Any]:
    """An entry of ``predictions``: the class that the model predicts, and the targets."""
    known = output.target_probabilities
    return {
        "label": output.predicted_label,
        "probability": None if output.probability is None else _number(output.probability),
        "targets": output.target_names,
        "target_probabilities": None if known is None else numbers(known),
    }


def rows(values: Tensor) -> list[list[float | None]]:
    """(t, G)."""
    return [[_number(one) for one in row] for row in values.tolist()]


def numbers(values: Tensor | None) -> list[float | None] | None:
    """(t,)."""
    return None if values is None else [_number(one) for one in values.tolist()]


def _number(value: float) -> float | None:
    """A float32 to the bit, in as few digits as that takes at most. JSON has no other than finite numbers."""
    return float(f"{value:.9g}") if math.isfinite(value) else None


_known: tuple[Settings | None, str] = (None, "")


def settings_fingerprint(settings: Settings) -> str:
    """16 hex digits that change with any parameter that decides numbers."""
    global _known
    last, found = _known
    if last is not settings:
        text = json.dumps(settings.to_plain(), sort_keys=True)
        found = hashlib.sha256(text.encode()).hexdigest()[:16]
        _known = (settings, found)
    return found
