"""The fields of a result. :mod:`fastshap.output.output`, and what it imports, does something with them."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastshap.engine.estimate import reliability, student_quantile
from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.models.provenance import Provenance
from fastshap.settings import HasSettings, Settings
from fastshap.types import ModelTask

if TYPE_CHECKING:
    from transformers import BatchEncoding

# The beginning of the names of all entries that are of the targets, and not of the tokens.
OF_TARGETS = "target_"
# The entry that says which tokens each of S sequences holds, (1, L, S), where the model reads several.
SEQUENCES = "sequences_mask"


class Later:
    """Fields' values that are made when somebody looks at them. See :func:`later`."""

    __slots__ = ("make", "of")

    def __init__(self, make: Callable[..., Any], of: tuple[Any, ...]) -> None:
        self.make, self.of = make, of


def later(make: Callable[..., Any], *of: Any) -> Any:
    """What to give a record for some fields in place of ``make(name, *of)``: that is called when somebody looks at one first.

    Outputs by the thousand are mostly asked for their scores alone.
    """
    return Later(make, of)


@dataclass(slots=True, eq=False)
class Record(HasSettings):
    """What one text's elements contribute to its targets' scores: the data of an output.

    It has the fields of interpreto's AttributionOutput, and more. Each parameter of ``settings`` is also an attribute:
    ``output.seed`` is ``output.settings.seed``.

    Attributes:
        attributions: (t, G) float32, with one row per target (classification: a class; generation: a group of target tokens)
            and one column per element. In generation, elements that a causal target cannot see are NaN.
        elements: the G words, tokens or sentences, as the text shows them.
        model_inputs_to_explain: what the model saw: input_ids and attention_mask (1, L), with special_tokens_mask and
            offset_mapping. In generation they include the target's tokens. Tasks that choose at which places they explain
            scores add these places, as target_positions (1, T).
        targets: (T,) int64: the classes (classification), or the target's token ids (generation).
        model_task: CLASSIFICATION, GENERATION or another member, or the name of a task that was registered from outside.
        classes: the classes again for classification, None for generation.
        settings: the parameters of the explainer that decide numbers. The same settings and model give the same numbers.
        target_names: t names: labels, or the target's groups of tokens.
        standard_error: (t, G) the standard error of each attribution over the random draws. It comes from one run
            (conservative; NaN below 4 samples), or from the spread between rounds if there are at least 4. For MEAN and SUM it
            includes what the tokens of a group have in common. For FIRST and LAST it is that of their token. MAX, MIN and
            SIGNED_MAX select by noisy scores: it allows for another token being the right one, for SIGNED_MAX also on the
            other side of zero (docs/adr/0014).
        degrees_of_freedom: those of ``standard_error``; 0 if there is none.
        unassigned: (t,) total score of the positions that no visible element shows. With SUM, the elements plus this add up.
        convergence_delta: (t,) sum of all positions' scores minus (F(x) - mean F(b_i)), if you asked for it.
        output_value: (t,) F(x), the target's score at the text, if you asked for the convergence delta.
        baseline_value: (t,) mean F(b_i), its mean at the noisy baselines, likewise.
        error: what was wrong with the text, with on_error="record". Its attributions are then (0, 0).
        text: the text that the elements come from. In generation the target follows the input. For token ids it is their text.
        element_spans: for each element, where it begins and ends in ``text``; (0, 0) for special tokens, which are not in it.
        element_tokens: for each element, its tokens' places in ``input_ids``.
        segments: for each element, the part of the text that it stands in, from 0: of a pair the first or second text, in
            generation the input or the target. Empty if it is not known.
        target_weights: (t, T) float32: the explained scores as sums of the scores of ``targets``: 1 and -1 for a contrast, ones
            for a span. None if each target's own score is explained.
        predicted_label: the class of the largest logit, for a classifier with two or more classes; otherwise None.
        probability: the probability of that class, whether or not it is a target.
        target_probabilities: (t,) the probabilities of the targets' classes, if ``probability`` is known.
        truncated: the text was too long for the model, and its end (or beginning) is not explained.
        converged: if rtol was given, whether every standard error came down to it. This is judged from 4 rounds, or from 8
            degrees of freedom.
        rounds: the number of independent rounds of samples. ``n_perturbations`` is the number of samples in all rounds
            together, ``settings.n_perturbations`` in one.
        provenance: the model, tokenizer and libraries that computed it.
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
    output_value: Tensor | None = None
    baseline_value: Tensor | None = None
    error: str | None = None
    text: str = ""
    element_spans: list[tuple[int, int]] = field(default_factory=list)
    element_tokens: list[list[int]] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    target_weights: Tensor | None = None
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

    @property
    def reliability(self) -> Tensor:
        """(t,) float32, from 0 to 1: the expected share of the scores' squared size that a repeated run would find again.

        Below 0.5 a target's scores are mostly noise. It is ``1 - sum SE^2 / sum s^2`` over the elements that the target can
        see, so it follows from ``attributions`` and ``standard_error``; NaN without standard errors. If all scores are zero and
        their errors too, it is 1. A single run of fewer than 20 antithetic samples has too low a reliability rather than
        too high a one (docs/adr/0021).
        """
        return reliability(self.attributions, self.standard_error)

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """The lower and upper ends (t, G) of intervals that hold the expected attribution with this confidence.

        They use Student's t with ``degrees_of_freedom``. A single run of fewer than 50 antithetic samples is conservative. With
        independent samples, 95 % intervals of skewed scores may hold in as few as 86 % of cases. The ends are NaN if there is
        no standard error.
        """
        given: Any = confidence
        if isinstance(given, bool) or not isinstance(given, numbers.Real):
            raise InvalidTypeError(f"confidence must be a number between 0 and 1, such as 0.95; got {confidence!r}.")
        if not 0 < confidence < 1:
            percent = f"; for {confidence:g} % write {confidence / 100:g}" if 1 < confidence < 100 else ""
            raise InvalidArgumentError(f"confidence must be between 0 and 1; got {confidence}{percent}.")
        if self.degrees_of_freedom == 0:
            half = torch.full_like(self.attributions, torch.nan)
        else:
            half = student_quantile((1 + confidence) / 2, self.degrees_of_freedom) * self.standard_error
        return self.attributions - half, self.attributions + half


def _made_when_asked_for(name: str) -> None:
    """Lets a field be given as :class:`Later`."""
    slot: Any = vars(Record)[name]

    def get(record: Record) -> Any:
        value = slot.__get__(record)
        if type(value) is Later:
            value = value.make(name, *value.of)
            slot.__set__(record, value)
        return value

    setattr(Record, name, property(get, slot.__set__, slot.__delete__))


for _name in ("elements", "model_inputs_to_explain", "element_spans", "segments"):
    _made_when_asked_for(_name)
