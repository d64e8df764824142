"""The result of an explanation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastshap.errors import InvalidArgumentError
from fastshap.estimate import student_quantile
from fastshap.types import Granularity, GranularityAggregationStrategy, InferenceModes, ModelTask

if TYPE_CHECKING:
    from transformers import BatchEncoding


@dataclass(slots=True, eq=False)
class AttributionOutput:
    """What one text's elements contribute to its targets' scores.

    The first nine fields are those of interpreto's output of the same name.

    Attributes:
        attributions: (t, G) float32: one row a target (classification: a class; generation: a group of target tokens), one
            column an element. For generation, elements that a causal target cannot see are NaN.
        elements: the G words, tokens or sentences, as the text shows them.
        model_inputs_to_explain: what the model saw: input_ids and attention_mask (1, L), with special_tokens_mask and
            offset_mapping. For generation the target's tokens are included.
        targets: (classification) the classes, (generation) the target's token ids, int64.
        model_task: CLASSIFICATION or GENERATION.
        classes: the classes again for classification, None for generation.
        granularity: what an element is.
        granularity_aggregation_strategy: how token scores became element scores.
        inference_mode: from logits to the scores explained.
        target_names: t names: labels, or the target's groups of tokens.
        standard_error: (t, G) of each attribution, over the random draws: from one run (conservative; NaN below 4 samples), or
            from the spread between rounds where there are at least 4. MEAN and SUM groups count what their tokens have in
            common; MAX, MIN, SIGNED_MAX, FIRST and LAST carry the standard error of the token that was selected.
        degrees_of_freedom: of ``standard_error``; 0 where there is none.
        unassigned: (t,) total of the positions that no visible element shows. With SUM, the elements plus this are additive.
        convergence_delta: (t,) sum of all positions' scores minus (F(x) - mean F(b_i)), where asked for.
        error: what was wrong with the text, where on_error="record"; its attributions are then (0, 0).
        truncated: the text was longer than the model takes, and its end (or beginning) is not explained.
        converged: where rtol was given, whether every standard error came down to it.
        n_perturbations, rounds: samples used, and the independent rounds they were drawn in.
        seed, rtol, noise_std, baseline, sampling, path_density, reduction, input_x_gradient, perturb_special_tokens: what it
            takes to compute the same numbers again, with the same model.
        fastshap_version: the library that computed it.
    """

    attributions: Tensor
    elements: list[str]
    model_inputs_to_explain: BatchEncoding
    targets: Tensor
    model_task: ModelTask
    classes: Tensor | None = None
    granularity: Granularity = Granularity.WORD
    granularity_aggregation_strategy: GranularityAggregationStrategy = GranularityAggregationStrategy.MEAN
    inference_mode: Callable[[Tensor], Tensor] = InferenceModes.LOGITS
    target_names: list[str] = field(default_factory=list)
    standard_error: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    degrees_of_freedom: int = 0
    unassigned: Tensor = field(default_factory=lambda: torch.zeros(0))
    convergence_delta: Tensor | None = None
    error: str | None = None
    truncated: bool = False
    converged: bool | None = None
    rounds: int = 1
    rtol: float | None = None
    seed: int = 0
    n_perturbations: int = 10
    noise_std: float = 0.1
    baseline: float | Tensor | None = None
    sampling: str = "antithetic"
    path_density: float | None = None
    reduction: str = "sum"
    input_x_gradient: bool = True
    perturb_special_tokens: bool = True
    fastshap_version: str = ""

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """The lower and upper ends (t, G) of intervals that hold the expected attribution with this confidence.

        Student's t, with ``degrees_of_freedom``; conservative for a single run. NaN where there is no standard error.
        """
        if not 0 < confidence < 1:
            raise InvalidArgumentError(f"confidence must lie between 0 and 1; got {confidence}.")
        if self.degrees_of_freedom == 0:
            half = torch.full_like(self.attributions, torch.nan)
        else:
            half = student_quantile((1 + confidence) / 2, self.degrees_of_freedom) * self.standard_error
        return self.attributions - half, self.attributions + half

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, fit for JSON; NaN becomes None."""
        mode, baseline = self.inference_mode, self.baseline
        return {
            "task": self.model_task.value,
            "elements": self.elements,
            "targets": self.targets.tolist(),
            "target_names": self.target_names,
            "attributions": [_plain(row) for row in self.attributions],
            "standard_error": [_plain(row) for row in self.standard_error],
            "degrees_of_freedom": self.degrees_of_freedom,
            "unassigned": _plain(self.unassigned),
            "convergence_delta": None if self.convergence_delta is None else _plain(self.convergence_delta),
            "error": self.error,
            "truncated": self.truncated,
            "converged": self.converged,
            "granularity": self.granularity.value,
            "granularity_aggregation_strategy": self.granularity_aggregation_strategy.value,
            "inference_mode": mode.value if isinstance(mode, Enum) else getattr(mode, "__name__", repr(mode)),
            "input_ids": self.model_inputs_to_explain["input_ids"][0].tolist() if self.error is None else [],
            "seed": self.seed,
            "n_perturbations": self.n_perturbations,
            "rounds": self.rounds,
            "rtol": self.rtol,
            "noise_std": self.noise_std,
            "baseline": baseline.tolist() if isinstance(baseline, Tensor) else baseline,
            "sampling": self.sampling,
            "path_density": self.path_density,
            "reduction": self.reduction,
            "input_x_gradient": self.input_x_gradient,
            "perturb_special_tokens": self.perturb_special_tokens,
            "fastshap_version": self.fastshap_version,
        }


def _plain(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
