"""What a method has to beat: the elements of explained texts in a random order, by their length, by leaving out each alone, by
the gradient's size. Each takes outputs and returns outputs of the same texts, targets and elements with other scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastshap.errors import FastshapError
from fastshap.explainer import GradientShap
from fastshap.metrics.explained import Explained, explained
from fastshap.metrics.faithfulness import Faithfulness
from fastshap.metrics.measures import Measure, Steps, Target, with_text
from fastshap.metrics.rows import Job, working
from fastshap.output.inputs import saved_in
from fastshap.output.output import AttributionOutput
from fastshap.sampling import text_key


def with_scores(output: AttributionOutput, scores: Any) -> AttributionOutput:
    """The output with another method's scores (t, G). One that has an error stays as it is."""
    if output.error is not None:
        return output
    values = torch.as_tensor(scores, dtype=torch.float32, device="cpu").reshape(output.attributions.shape)
    none = torch.zeros(0, 0, device="cpu")
    return dataclasses.replace(output, attributions=values, standard_error=none, degrees_of_freedom=0)


def random_order(outputs: Sequence[AttributionOutput], seed: int = 0) -> list[AttributionOutput]:
    """Scores drawn at random; they depend on the seed and the text alone."""

    def drawn(output: AttributionOutput) -> np.ndarray:
        ids = output.model_inputs_to_explain["input_ids"][0].tolist()
        return np.random.default_rng([seed, *text_key(0, ids)]).random(output.attributions.shape)

    return [with_scores(one, drawn(one)) if one.error is None else one for one in outputs]


def word_length(outputs: Sequence[AttributionOutput]) -> list[AttributionOutput]:
    """The longest elements first."""
    return [
        with_scores(one, [[len(e.strip()) for e in one.elements]] * len(one.attributions)) if one.error is None else one
        for one in outputs
    ]


def leave_one_out(faithfulness: Faithfulness, outputs: Sequence[AttributionOutput]) -> list[AttributionOutput]:
    """What f falls by where an element alone is replaced, with the replacement and the score of ``faithfulness``.

    It takes G + 1 rows a text. Elements that the measures do not replace have NaN.
    """
    mode = faithfulness._explainer.settings.inference_mode
    with working(faithfulness._explainer):
        found = explained(outputs, faithfulness._explainer)
    jobs = [
        Job(one, target, _Alone(), mode)
        for one in found
        if isinstance(one, Explained)
        for target in range(len(one.scores))
    ]
    values: Iterator[Any] = iter(faithfulness._rows.values(jobs, lambda ended: None))
    return [
        with_scores(output, _placed(output, one, values)) if isinstance(one, Explained) else output
        for output, one in zip(outputs, found, strict=True)
    ]


def gradient_norm(explainer: GradientShap, outputs: Sequence[AttributionOutput]) -> list[AttributionOutput]:
    """The mean absolute gradient of the explained score at the text's own embeddings, in one row a text."""
    # All tokens count as special ones, which stay where they are on the path.
    at_the_text = {"perturb_special_tokens": False, "n_perturbations": 1, "rtol": None}
    how = {"reduction": "abs_mean", "input_x_gradient": False, "return_convergence_delta": False}
    own = explainer._for_call({**at_the_text, **how, "on_error": "record"})
    task, items, groupings = own.task, [], []
    with working(own):
        for output in outputs:
            if output.error is None:
                prepared = task.again(*saved_in(output))
                grouping = own._grouping(prepared, (output.element_tokens, output.elements))
                item = prepared.item(grouping.joined)
                items.append(item._replace(special=[True] * len(item.input_ids)))
                groupings.append(grouping)
        each = iter(own._work().scores(items, groupings, task.scores, lambda *_: None, None, False))
    return [one if one.error is not None else _of_gradient(one, next(each)) for one in outputs]


class _Alone(Measure):
    """Not one value but the G falls of f."""

    def steps(self, target: Target) -> Steps:
        f = yield with_text(np.eye(len(target.scores), dtype=np.bool_))
        return f[0] - f[1:]  # type: ignore[return-value]


def _placed(output: AttributionOutput, one: Explained, values: Iterator[Any]) -> np.ndarray:
    """(t, G) from the values of the elements that can be replaced."""
    scores = np.full(output.attributions.shape, np.nan)
    free = [g for g, tokens in enumerate(output.element_tokens) if list(tokens) in one.members]
    for row in scores:
        value = next(values)
        row[free] = np.nan if isinstance(value, str) else value
    return scores


def _of_gradient(output: AttributionOutput, found: Any) -> AttributionOutput:
    if isinstance(found, FastshapError):
        return with_scores(output, torch.full_like(output.attributions, torch.nan))
    running, _ = found
    return with_scores(output, running.attributions)
