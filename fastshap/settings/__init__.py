"""The parameters that decide numbers. Each is stated once, as a field of :class:`Settings`.

A field has the parameter's name, type and default, its check, what the shell and the docs say of it, and its form in files.
Signatures, docstrings, the command line, files and their schema, ``reproduce``, jobs and pages go through the fields. So a new
parameter takes one field here, and the code that uses its value. ``python -m tools.settings`` writes the copies for those who
read without running the code: the schema's file, the table in docs/parameters.md, and the annotations for type checkers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastshap import checks, ops
from fastshap.errors import InvalidArgumentError
from fastshap.sampling import SAMPLINGS
from fastshap.settings.parameter import Parameter, member, parameter, switch, word
from fastshap.types import (
    Granularity,
    GranularityAggregationStrategy,
    InferenceModes,
    inference_mode_of,
    mode_of_plain,
    plain_mode,
    plain_score,
    score_of,
    score_of_plain,
)
from fastshap.types.baselines import BASELINE_SCHEMA, BaselineSet, baseline_of_plain, plain_baseline
from fastshap.types.grouping import (
    GRANULARITY_SCHEMA,
    OwnGroups,
    granularity_of,
    granularity_of_plain,
    plain_granularity,
)

LONG_TEXTS = ("truncate", "error", "window")
_MOST_ROUNDS = 64  # of n_perturbations samples, where max_perturbations is not given
_FLOAT32 = 3.4028234663852886e38  # the largest


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """The parameters that decide an explanation's numbers, checked. Outputs carry them.

    Raises:
        InvalidArgumentError, InvalidTypeError: a value cannot be used; the message says what would work.
    """

    granularity: Granularity | OwnGroups = parameter(
        Granularity.WORD,
        of_a_text=True,
        check=granularity_of,
        option=str,
        help="What gets a score: all_tokens, token, word, tokenizer_word, part_sentence or sentence.",
        doc="ALL_TOKENS, TOKEN, WORD (as people read them), TOKENIZER_WORD (as the tokenizer splits them; interpreto's WORD "
        "member means this), PART_SENTENCE or SENTENCE; a member or its name. Or groups of your own: a list of (start, end) in "
        "characters of the text, or a function from a text to such a list. What is in no group is in ``unassigned``.",
        schema=GRANULARITY_SCHEMA,
        to_plain=plain_granularity,
        from_plain=granularity_of_plain,
    )
    granularity_aggregation_strategy: GranularityAggregationStrategy = parameter(
        GranularityAggregationStrategy.MEAN,
        of_a_text=True,
        **member(
            GranularityAggregationStrategy,
            help="How the scores of a word's tokens become one: mean, max, min, sum, signed_max, first or last.",
            doc="MEAN, MAX, MIN, SUM, SIGNED_MAX, FIRST or LAST of a group's token scores; ignored for ALL_TOKENS and TOKEN. "
            "With SUM the scores of words still add up.",
        ),
    )
    inference_mode: Callable[[Tensor], Tensor] = parameter(
        InferenceModes.LOGITS,
        check=lambda value, name: inference_mode_of(value),
        option=str,
        help="The score to explain: logits, softmax, log_softmax or sigmoid.",
        doc="LOGITS, SOFTMAX, LOG_SOFTMAX, SIGMOID, or a callable from logits to scores of the same shape.",
        schema={"type": "string", "pattern": "^(logits|softmax|log_softmax|sigmoid|callable:.*)$"},
        to_plain=plain_mode,
        from_plain=mode_of_plain,
    )
    input_x_gradient: bool = parameter(
        True,
        **switch(
            help="Multiply the gradient by the input.",
            doc='multiply the gradient by the input (minus the baseline, for "sum") before it is aggregated. If a model '
            "normalises each embedding first, as BERT does with LayerNorm, the elements of a gradient add up to zero: False "
            'with "sum" then gives zeros, up to rounding. "abs_mean" shows the size of such a gradient.',
        ),
    )
    n_perturbations: int = parameter(
        10,
        of_a_text=True,
        check=lambda value, name: checks.whole(value, name, least=1, most=2**31 - 1),
        option=int,
        help="Samples per text; more samples take longer and give steadier scores.",
        doc="samples per text (per round, if rtol is given).",
        schema={"$ref": "#/$defs/some", "description": "Samples in all rounds together."},
    )
    baseline: float | Tensor | str | BaselineSet = parameter(
        None,
        check=checks.baseline,
        option=checks.number_or_name,
        help="The embedding to compare with: a number for all dimensions (0 by default), a token such as [MASK], a token's "
        "number as #103, or mean, the mean embedding.",
        doc="the reference embedding: None (zero), a number (a constant for all dimensions, never a token id), a token of the "
        'tokenizer by its name ("[MASK]") or number ("#103"), "mean" (the mean embedding of the tokenizer\'s tokens), a Tensor '
        "(D,) or (L, D), or a :class:`fastshap.BaselineSet`, of which each sample draws a member.",
        schema=BASELINE_SCHEMA,
        to_plain=plain_baseline,
        from_plain=baseline_of_plain,
    )
    noise_std: float = parameter(
        0.1,
        check=checks.noise,
        option=float,
        help="Standard deviation of the noise that is added to the baseline.",
        doc="standard deviation of the normal noise added to the baseline. 0.1 is more than the spread of the packaged model's "
        "own embeddings, 0.063.",
        schema={"type": "number", "minimum": 0, "maximum": _FLOAT32},
    )
    reduction: str = parameter(
        "sum",
        **word(
            ops.REDUCTIONS,
            help="sum (signed and additive) or abs_mean (unsigned, as in interpreto).",
            doc='"sum" is signed and additive, as expected gradients are; "abs_mean" is unsigned, as interpreto computes it.',
        ),
    )
    sampling: str = parameter(
        "antithetic",
        of_a_text=True,
        **word(
            SAMPLINGS,
            help="How samples are drawn: antithetic (pairs, less noise) or iid (independent).",
            doc='"antithetic" (stratified path positions, pairs of opposite noise: fewer samples for the same error) or "iid" '
            "(independent draws, as in other libraries).",
        ),
    )
    path_density: float | tuple[float, ...] | str | None = parameter(
        None,
        of_a_text=True,
        check=checks.path_density,
        option=str,
        help="Where on the path samples are denser: numbers such as 3,2,1 for equal parts from the text to the baseline, auto "
        "to learn it (with rtol), or one number: 1 favours the middle, smaller numbers the baseline; uniform by default.",
        doc="None draws path positions uniformly. Other values draw more where you say, and weight samples so that the "
        "expectation stays. Several numbers are a density on equal bins of the path, from the text to the baseline: "
        ':func:`fastshap.fit_path_density` finds them for a model. "auto", with rtol, learns them for each text from earlier '
        "rounds. One number w draws in proportion to ((1 - a)^2 + (w a)^2)^(-3/2): 1 puts more in the middle of the path, less "
        "than 1 nearer the baseline. Which is best depends on model and noise (docs/adr/0022).",
        schema={
            "anyOf": [
                {"type": ["number", "null"], "minimum": 0.001, "maximum": 1000},
                {"const": "auto"},
                {
                    "type": "array",
                    "minItems": 2,
                    "maxItems": checks.MOST_BINS,
                    "items": {"type": "number", "minimum": 0},
                },
            ]
        },
        to_plain=lambda value: list(value) if isinstance(value, tuple) else value,
    )
    seed: int = parameter(
        0,
        of_a_text=True,
        check=lambda value, name: checks.whole(value, name, least=-(2**63), most=2**63 - 1),
        option=int,
        help="The same seed gives the same numbers.",
        doc="any integer of 64 bits.",
        schema={"$ref": "#/$defs/int64"},
    )
    rtol: float | None = parameter(
        None,
        of_a_text=True,
        check=checks.tolerance,
        option=float,
        help="Target accuracy: sample until every standard error is at most this share of the text's largest score, for "
        "example 0.05.",
        doc="None, or a target accuracy: sample in independent rounds of ``n_perturbations`` until every standard error is at "
        "most this fraction of the largest absolute score of the text and target. This is judged after four rounds, or at 8 "
        "degrees of freedom. Finished texts leave the batch. With the same seed, five rounds of 10 give other numbers than "
        "``n_perturbations=50``, because each round draws anew. Chance makes some scores large and ends these texts sooner, so "
        "the largest score comes out too large, by at most about ``rtol`` squared (1 % of it at 0.1; docs/adr/0014). With MAX, "
        "MIN and SIGNED_MAX, rounds go on while it is open which token is selected: near ties of opposite sign may never "
        "converge.",
        schema={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": _FLOAT32},
    )
    max_perturbations: int | None = parameter(
        None,
        of_a_text=True,
        check=lambda value, name: None if value is None else checks.whole(value, name, least=1),
        option=int,
        help=f"The most samples per text, with rtol; by default {_MOST_ROUNDS} times n_perturbations.",
        doc=f"the most samples per text, if rtol is given; None is {_MOST_ROUNDS} times ``n_perturbations``.",
        schema={"type": ["integer", "null"], "minimum": 1, "maximum": 9223372036854775807},
    )
    perturb_special_tokens: bool = parameter(
        True,
        **switch(
            help="Also perturb special tokens such as [CLS] and [SEP].",
            doc="False keeps [CLS], [SEP] and the like at their own embeddings, without noise.",
        ),
    )

    score: Callable[[Any, Any], Tensor] | None = parameter(
        None,
        check=lambda value, name: score_of(value),
        option=str,
        help="Another name for the score: logit, probability or log_probability, as suits the task.",
        doc='"logit", "probability" and "log_probability" choose the ``inference_mode`` that suits the task. A callable '
        "(outputs, inputs) -> (R, t) makes scores of the model's output and keyword arguments, without targets.",
        schema={"type": ["string", "null"], "pattern": "^callable:.*$"},
        to_plain=plain_score,
        from_plain=score_of_plain,
    )
    span: bool | tuple[tuple[int, int], ...] = parameter(
        False,
        check=checks.spans,
        option=bool,
        help="For a language model: explain the log-probability of the whole continuation as one score.",
        doc="for a language model. True explains the log-probability of the whole target, as one score with one backward pass. "
        "Several (start, end), in characters of the target without the space before it, explain that of each such part. False "
        "explains each element of the "
        "target. LOGITS becomes LOG_SOFTMAX, as only log-probabilities of tokens add up to something.",
        schema={
            "anyOf": [
                {"type": "boolean"},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "array", "items": {"$ref": "#/$defs/count"}, "minItems": 2, "maxItems": 2},
                },
            ]
        },
        to_plain=lambda value: [list(one) for one in value] if isinstance(value, tuple) else value,
    )

    threshold: float = parameter(
        0.5,
        check=checks.share,
        option=float,
        help="Where classes do not exclude each other: the probability from which one counts as predicted.",
        doc="of a model whose classes do not exclude each other (multi-label): a class counts as predicted, and is explained "
        "if no targets are given, from this probability on; if none reaches it, the most probable one does.",
        schema={"type": "number", "minimum": 0, "maximum": 1},
    )

    long_text: str = parameter(
        "truncate",
        **word(
            LONG_TEXTS,
            help="A text of more tokens than the model takes: truncate (cut it, and say so), error, or window (a classifier "
            "reads it in overlapping windows).",
            doc='of more tokens than the model takes: "truncate" cuts it, sets ``truncated`` and warns once; "error" refuses '
            'it; "window", for classifiers, explains the mean score of overlapping windows, which hold all of the text.',
        ),
    )

    hypothesis_template: str = parameter(
        "This example is {}.",
        check=checks.template,
        option=str,
        help="For zero-shot classification: the hypothesis that a label is put into, with {} in its place.",
        doc="for zero-shot classification: the hypothesis that the model reads beside the text, with {} where the label goes.",
        schema={"type": "string", "pattern": r"^[^{}]*\{\}[^{}]*$"},
    )

    def __post_init__(self) -> None:
        for name, its in PARAMETERS.items():
            self._keep(name, its.check(getattr(self, name), name))
        if self.span and self.inference_mode is InferenceModes.LOGITS:
            self._keep("inference_mode", InferenceModes.LOG_SOFTMAX)
        if self.span and self.inference_mode is not InferenceModes.LOG_SOFTMAX:
            raise InvalidArgumentError(
                "span explains a sum of log-probabilities; use inference_mode=LOG_SOFTMAX with it."
            )
        if self.score is not None and self.inference_mode is not InferenceModes.LOGITS:
            raise InvalidArgumentError("A score of your own is explained as it is; leave out inference_mode.")
        if self.rtol is None and self.max_perturbations is not None:
            raise InvalidArgumentError(
                "max_perturbations has no use without rtol; set n_perturbations instead, or rtol too."
            )
        if self.rtol is None and self.path_density == "auto":
            raise InvalidArgumentError(
                'path_density="auto" learns from earlier rounds and needs rtol; or fit one with fastshap.fit_path_density.'
            )
        if self.rtol is not None and self.max_perturbations is None:
            self._keep("max_perturbations", _MOST_ROUNDS * self.n_perturbations)
        if self.max_perturbations is not None:
            checks.whole(self.max_perturbations, "max_perturbations", least=self.n_perturbations)

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Settings):
            return NotImplemented
        return all(checks.equal(value, getattr(other, name)) for name, value in self.named().items())

    __hash__ = None  # type: ignore[assignment]

    @property
    def strategy(self) -> GranularityAggregationStrategy:
        """How scores are aggregated. Single tokens have nothing to aggregate."""
        single = self.granularity in (Granularity.TOKEN, Granularity.ALL_TOKENS)
        return GranularityAggregationStrategy.MEAN if single else self.granularity_aggregation_strategy

    @property
    def adds_up(self) -> bool:
        """Whether the scores of all positions add up to a difference of the model's output, apart from the sampling error."""
        return self.reduction == "sum" and self.input_x_gradient

    def named(self) -> dict[str, Any]:
        """The parameters by their names, as :class:`fastshap.GradientShap` takes them."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def changes(self) -> dict[str, Any]:
        """The parameters whose values differ from what they are by default."""
        usual = DEFAULTS | {"baseline": 0.0}
        if self.rtol is not None:
            usual["max_perturbations"] = _MOST_ROUNDS * self.n_perturbations
        return {
            name: value for name, value in self.named().items() if isinstance(value, Tensor) or value != usual[name]
        }

    def to_plain(self) -> dict[str, Any]:
        """The parameters as numbers, strings and lists, for JSON."""
        return {name: its.to_plain(getattr(self, name)) for name, its in PARAMETERS.items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Settings:
        """The settings that :meth:`to_plain` was called on. A parameter that an older file lacks has its default."""
        return cls(**{name: its.from_plain(plain[name]) for name, its in PARAMETERS.items() if name in plain})


PARAMETERS: dict[str, Parameter] = {one.name: one.metadata["parameter"] for one in dataclasses.fields(Settings)}
DEFAULTS: dict[str, Any] = {one.name: one.default for one in dataclasses.fields(Settings)}  # as signatures show them


class HasSettings:
    """Has ``settings``, and gives each of them as an attribute too."""

    __slots__ = ()
    settings: Settings

    if TYPE_CHECKING:
        # fmt: off
        # Written by tools/settings.py.
        granularity: Granularity | OwnGroups
        granularity_aggregation_strategy: GranularityAggregationStrategy
        inference_mode: Callable[[Tensor], Tensor]
        input_x_gradient: bool
        n_perturbations: int
        baseline: float | Tensor | str | BaselineSet
        noise_std: float
        reduction: str
        sampling: str
        path_density: float | tuple[float, ...] | str | None
        seed: int
        rtol: float | None
        max_perturbations: int | None
        perturb_special_tokens: bool
        score: Callable[[Any, Any], Tensor] | None
        span: bool | tuple[tuple[int, int], ...]
        threshold: float
        long_text: str
        hypothesis_template: str
        # End.
        # fmt: on


def _attribute(name: str) -> property:
    return property(lambda its: getattr(its.settings, name), doc=PARAMETERS[name].help)


for _name in PARAMETERS:
    setattr(HasSettings, _name, _attribute(_name))
