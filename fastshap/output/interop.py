"""A record in the forms that other libraries take. None of them is needed until its form is asked for."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np

from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed
from fastshap.output.record import Record
from fastshap.types import Granularity, InferenceModes, ModelTask


def to_interpreto(record: Record) -> Any:
    """``interpreto.attributions.base.AttributionOutput`` with the same scores and elements.

    Written against interpreto 0.5.2. Its Insertion and Deletion metrics find the tokens of each element by the granularity: it
    is WORD here for all but ALL_TOKENS, and the model inputs name the elements as their words. interpreto writes
    elements into its pages as they are, markup too: take its plots of texts that you trust.

    Raises:
        MissingPackageError: interpreto is not installed.
        InvalidArgumentError: the output is a text's error, or of a task that interpreto has not.
    """
    from transformers import (
        BatchEncoding,  # here, so that importing fastshap loads no more of transformers than it must
    )

    _explained(record)
    if not isinstance(record.model_task, ModelTask):
        raise InvalidArgumentError(
            f"interpreto has no task {record.model_task!r}, so it has no object for this output."
        )
    base = needed("interpreto.attributions.base")
    commons = needed("interpreto")
    mode = record.inference_mode
    word = Granularity.ALL_TOKENS if record.granularity is Granularity.ALL_TOKENS else Granularity.WORD
    kept = {name: value for name, value in record.model_inputs_to_explain.items() if name in _MODEL_INPUTS}
    groups: list[int | None] = [None] * kept["input_ids"].shape[1]
    for number, member in enumerate(record.element_tokens):
        for token in member:
            groups[token] = number
    inputs = BatchEncoding(kept)
    inputs.word_ids = lambda batch_index=0: groups  # type: ignore[method-assign]
    return base.AttributionOutput(
        attributions=record.attributions.clone(),
        elements=list(record.elements),
        model_inputs_to_explain=inputs,
        targets=record.targets.clone(),
        model_task=base.ModelTask[record.model_task.name],
        classes=None if record.classes is None else record.classes.clone(),
        granularity=commons.Granularity[word.name],
        granularity_aggregation_strategy=base.GranularityAggregationStrategy[
            record.granularity_aggregation_strategy.name
        ],
        inference_mode=getattr(base.InferenceModes, mode.name, mode) if isinstance(mode, InferenceModes) else mode,
    )


_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def to_shap(record: Record) -> Any:
    """``shap.Explanation``: values (G,) for one target, (G, t) for several; data are the pieces of the text.

    Written against shap 0.51. Each piece goes up to where the next begins, so that pieces joined give the text. Base values are
    0: scores count from the noisy baseline's, whose own score is not kept. What a causal target cannot see has the value 0.

    Raises:
        MissingPackageError: shap is not installed.
        InvalidArgumentError: the output is a text's error.
    """
    _explained(record)
    shap = needed("shap")
    values = record.attributions.nan_to_num().double().numpy().T
    one = values.shape[1] == 1
    explanation = shap.Explanation(
        values=values[:, 0] if one else values,
        base_values=0.0 if one else np.zeros(values.shape[1]),
        data=np.array(_pieces(record), dtype=object),
        output_names=None if one else list(record.target_names),
    )
    if one:  # its constructor takes no name for a single output, and its plots show one
        explanation.output_names = record.target_names[0]
    return explanation


def to_captum(record: Record, true_class: str = "–") -> list[Any]:
    """``captum.attr.visualization.VisualizationDataRecord``, one a target.

    Written against captum 0.9. Scores are divided by the target's largest, as captum colours numbers from -1 to 1; the
    attribution score is their undivided sum. Elements and labels are escaped, as captum writes them into its table as they are.

    Args:
        true_class: what the text really is, for captum's column of that name.

    Raises:
        MissingPackageError: captum is not installed.
        InvalidArgumentError: the output is a text's error.
    """
    _explained(record)
    visualization = needed("captum.attr").visualization
    predicted = record.predicted_label
    made = []
    for t, name in enumerate(record.target_names):
        row = record.attributions[t].nan_to_num()
        largest = float(row.abs().max())
        made.append(
            visualization.VisualizationDataRecord(
                word_attributions=row / largest if largest else row,
                pred_prob=math.nan if record.probability is None else record.probability,
                pred_class="–" if predicted is None else html.escape(predicted),
                true_class=html.escape(true_class),
                attr_class=html.escape(name),
                attr_score=float(row.sum()),
                raw_input_ids=[html.escape(element) for element in record.elements],
                convergence_score=math.nan if record.convergence_delta is None else float(record.convergence_delta[t]),
            )
        )
    return made


def _explained(record: Record) -> None:
    if record.error is not None:
        raise InvalidArgumentError(f"This text was not explained, so there is nothing to hand on: {record.error}")


def _pieces(record: Record) -> list[str]:
    """The text cut where elements begin, the first piece from its start; special tokens by their names."""
    pieces, shown = [], [span for span in record.element_spans if span != (0, 0)]
    starts = [start for start, _ in shown[1:]] + [len(record.text)]
    last, k = 0, 0
    for element, span in zip(record.elements, record.element_spans, strict=True):
        if span == (0, 0):
            pieces.append(f"{element} ")
            continue
        end = max(last, starts[k])
        pieces.append(record.text[last:end] or element)
        last, k = end, k + 1
    return pieces
