"""How much an explanation changes where the input hardly does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastshap.checks import finite, whole
from fastshap.errors import FastshapError, InvalidArgumentError, InvalidTypeError
from fastshap.explainer import GradientShap
from fastshap.metrics.explained import NOT_EXPLAINED, NOT_FINITE
from fastshap.metrics.result import MetricResult, gathered
from fastshap.metrics.rows import working
from fastshap.output.inputs import saved_in
from fastshap.output.output import AttributionOutput
from fastshap.sampling import text_key
from fastshap.tasks.subject import table_shape

_WINDOW = 64  # texts whose rows run together


def sensitivity_max(
    explainer: GradientShap,
    model_inputs: Any,
    targets: Any = None,
    *,
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    seed: int = 0,
) -> MetricResult:
    """The largest relative change of the scores s (G,) where uniform noise moves each embedding: max ``|s - s'| / |s|``.

    Lower is better. Explanations of a text and of its moved copies draw the same random numbers, so what changes is due to
    the input alone. It costs ``n_perturb_samples`` explanations a text. Where all scores are zero, it is ``|s'|``. Source: Yeh
    et al. 2019, "On the (in)fidelity and sensitivity of explanations"; as ``sensitivity_max`` of captum.

    Args:
        explainer: whose explanations are measured, of any task.
        model_inputs, targets: as for :meth:`GradientShap.explain`. A text of several targets counts by their mean.
        perturb_radius: the noise lies between minus and plus this, for each dimension of each token's embedding.
        n_perturb_samples: moved copies of each text.
        seed: of the noise, which depends on it and the text alone.
    """
    if not isinstance(explainer, GradientShap):
        raise InvalidTypeError(f"sensitivity_max takes a GradientShap; got {type(explainer).__name__}.")
    radius = finite(perturb_radius, "perturb_radius", "a positive number")
    if radius <= 0:
        raise InvalidArgumentError(f"perturb_radius must be positive; got {perturb_radius!r}.")
    copies = whole(n_perturb_samples, "n_perturb_samples", least=1)
    seed = whole(seed, "seed", least=0)
    own = explainer._for_call({"on_error": "record"})
    outputs = own.explain(model_inputs, targets, progress=False)
    values: list[float | str] = []
    for start in range(0, len(outputs), _WINDOW):
        values += _values(own, outputs[start : start + _WINDOW], radius, copies, seed)
    return gathered(values, name="max-sensitivity", higher_is_better=False)


def _values(
    explainer: GradientShap, outputs: list[AttributionOutput], radius: float, copies: int, seed: int
) -> list[float | str]:
    task, items, groupings = explainer.task, [], []
    with working(explainer):
        width = table_shape(explainer.model)[1]
        for output in outputs:
            if output.error is not None:
                continue
            prepared = task.again(*saved_in(output))
            grouping = explainer._grouping(prepared, (output.element_tokens, output.elements))
            item = prepared.item(grouping.joined)
            draws = np.random.default_rng([seed, *text_key(0, item.input_ids)])
            for _ in range(copies):
                noise = draws.uniform(-radius, radius, (len(item.input_ids), width)).astype(np.float32)
                items.append(item._replace(moved=torch.from_numpy(noise)))
                groupings.append(grouping)
        found = iter(explainer._work().scores(items, groupings, task.scores, lambda *_: None, None, False))
    values: list[float | str] = []
    for output in outputs:
        if output.error is not None:
            values.append(NOT_EXPLAINED)
            continue
        moved = [next(found) for _ in range(copies)]
        values.append(_largest(output, moved))
    return values


def _largest(output: AttributionOutput, moved: list[Any]) -> float | str:
    """The mean over targets of the largest relative change."""
    if any(isinstance(one, FastshapError) for one in moved):
        return NOT_FINITE
    scores = output.attributions.double().nan_to_num()  # (t, G); what a target cannot see is NaN
    changed = torch.stack([running.attributions for running, _ in moved]).double().nan_to_num()  # (copies, t, G)
    size = scores.norm(dim=-1)
    relative = (changed - scores).norm(dim=-1) / size.where(size > 0, 1.0)  # (copies, t)
    return float(relative.amax(0).mean())
