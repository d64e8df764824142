"""The fields of a result. What is done with them stands in :mod:`fastshap.output.output` and what that imports."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastshap.engine.estimate import student_quantile
from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.models.provenance import Provenance
from fastshap.settings import HasSettings, Settings
from fastshap.types import ModelTask

if TYPE_CHECKING:
    from transformers import BatchEncoding

# The entry of ``model_inputs_to_explain`` with the targets' places in input_ids, (1, T), of tasks that choose them.
TARGET_POSITIONS = "target_positions"


@dataclass(slots=True, eq=False)
class Record(HasSettings):
    """What one text's elements contribute to its targets' scores: the data of an output.

    It has the fields of interpreto's AttributionOutput, and more. Each parameter of ``settings`` is an attribute too:
    ``output.seed`` is ``output.settings.seed``.

    Attributes:
        attributions: (t, G) float32: one row a target (classification: a class; generation: a group of target tokens), one
            column an element. For generation, elements that a causal target cannot see are NaN.
        elements: the G words, tokens or sentences, as the text shows them.
        model_inputs_to_explain: what the model saw: input_ids and attention_mask (1, L), with special_tokens_mask and
            offset_mapping. For generation the target's tokens are included. Tasks that explain scores at places of their choice
            add these, as target_positions (1, T).
        targets: (classification) the classes, (generation) the target's token ids, int64.
        model_task: CLASSIFICATION or GENERATION; the name of a task that was registered from outside.
        classes: the classes again for classification, None for generation.
        settings: the parameters of the explainer that decide numbers; with them and the same model come the same numbers.
        target_names: t names: labels, or the target's groups of tokens.
        standard_error: (t, G) of each attribution, over the random draws: from one run (conservative; NaN below 4 samples), or
            from the spread between rounds where there are at least 4. MEAN and SUM groups count what their tokens have in
            common; FIRST and LAST carry their token's. MAX, MIN and SIGNED_MAX select by noisy scores: theirs counts that
            another token may be the right one, for SIGNED_MAX on the other side of zero too (docs/adr/0014).
        degrees_of_freedom: of ``standard_error``; 0 where there is none.
        unassigned: (t,) total of the positions that no visible element shows. With SUM, the elements plus this are additive.
        convergence_delta: (t,) sum of all positions' scores minus (F(x) - mean F(b_i)), where asked for.
        error: what was wrong with the text, where on_error="record"; its attributions are then (0, 0).
        text: what the elements stand in; for a generation with the target behind the input. For token ids it is their text.
        element_spans: for each element, where it begins and ends in ``text``; (0, 0) for special tokens, which it lacks.
        element_tokens: for each element, its tokens' places in ``input_ids``.
        predicted_label: the class of the largest logit, for a classifier of two classes or more; otherwise None.
        probability: of that class, whether or not it is a target.
        target_probabilities: (t,) of the targets' classes, where ``probability`` is known.
        truncated: the text was longer than the model takes, and its end (or beginning) is not explained.
        converged: where rtol was given, whether every standard error came down to it, known from 4 rounds or 8 degrees of
            freedom at least.
        rounds: the independent rounds that samples were drawn in; ``n_perturbations`` is the samples of all of them together,
            ``settings.n_perturbations`` those of one.
        provenance: the model, tokenizer and libraries it was computed with.
    """

    attributions: Tensor
    elements: list[str]
    model_inputs_to_explain: BatchEncoding
    targets: Tensor
    model_task: ModelTask | str
    classes: Tensor | None = None
    settings: Settings = field(default_factory=Settings)
    target_names: list[str] = field(default_factory=list)
    standard_error: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    degrees_of_freedom: int = 0
    unassigned: Tensor = field(default_factory=lambda: torch.zeros(0))
    convergence_delta: Tensor | None = None
    error: str | None = None
    text: str = ""
    element_spans: list[tuple[int, int]] = field(default_factory=list)
    element_tokens: list[list[int]] = field(default_factory=list)
    predicted_label: str | None = None
    probability: float | None = None
    target_probabilities: Tensor | None = None
    truncated: bool = False
    converged: bool | None = None
    rounds: int = 1
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def n_perturbations(self) -> int:  # type: ignore[override]  # of all rounds, not of one
        """Samples used."""
        return self.settings.n_perturbations * self.rounds

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """The lower and upper ends (t, G) of intervals that hold the expected attribution with this confidence.

        Student's t, with ``degrees_of_freedom``. A single run of antithetic samples is conservative below 50. With independent
        ones, 95 % intervals of skewed scores may hold as few as 86 %. NaN where there is no standard error.
        """
        given: Any = confidence
        if isinstance(given, bool) or not isinstance(given, numbers.Real):
            raise InvalidTypeError(f"confidence must be a number between 0 and 1, 0.95 say; got {confidence!r}.")
        if not 0 < confidence < 1:
            percent = f"; for {confidence:g} % write {confidence / 100:g}" if 1 < confidence < 100 else ""
            raise InvalidArgumentError(f"confidence must lie between 0 and 1; got {confidence}{percent}.")
        if self.degrees_of_freedom == 0:
            half = torch.full_like(self.attributions, torch.nan)
        else:
            half = student_quantile((1 + confidence) / 2, self.degrees_of_freedom) * self.standard_error
        return self.attributions - half, self.attributions + half
