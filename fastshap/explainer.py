"""GradientShap, the front door."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastshap import checks, ops
from fastshap.base import AttributionExplainer, MultitaskExplainerMixin
from fastshap.engine import run as engine
from fastshap.engine.budget import Budget
from fastshap.engine.estimate import Running
from fastshap.engine.packing import Execution, Item, Layout
from fastshap.engine.rounds import Rounds, at_texts
from fastshap.errors import (
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    ModelFailedError,
    NonFiniteError,
    TruncationWarning,
    UnsupportedModelError,
    warn,
)
from fastshap.models.adjoint import check_linear_layers
from fastshap.models.copies import check_picklable
from fastshap.models.locks import lock_of
from fastshap.models.provenance import Provenance, provenance_of
from fastshap.models.replicas import Replicas, side_by_side
from fastshap.models.view import Desk
from fastshap.output.output import AttributionOutput
from fastshap.output.progress import Progress
from fastshap.output.record import TARGET_POSITIONS, Record
from fastshap.settings import DEFAULTS, Settings, documented
from fastshap.tasks import Prediction, Prepared, takes
from fastshap.tasks.tokens import unknown
from fastshap.text.encode import EXTRA, Encoded
from fastshap.text.groups import Grouping
from fastshap.types import InferenceModes

if TYPE_CHECKING:
    from transformers import BatchEncoding, Pipeline, PreTrainedModel, PreTrainedTokenizerBase

    from fastshap.types import Granularity, GranularityAggregationStrategy


# Tokens of all rows from which two threads are faster on a CPU than one (docs/adr/0009).
_ENOUGH_TOKENS = 1 << 12
_ENOUGH_ON_A_GPU = 1 << 15  # that fill one
# Texts whose scores one call of an explainer remembers, in case they come again.
_REMEMBERED = 2048
_STATE = "state"  # under which the model's is remembered beside them
# Additions and multiplications of a window of texts, some seconds' work. Measured on a CPU: with 1e11 a long list took 14 %
# longer with the packaged model, as small windows hold few texts of one length. Not measured on a GPU.
_WORK = {"cpu": 4e11}
_WORK_ON_A_GPU = 1e14
_GENERATING = 0.2  # the share of a text's work that is done once its target is generated
_FIXED = ("tokenizer", "device")  # parameters that no call can change
_ANEW = ("_desk", "_replicas", "_budget", "_origin", "_tried", "_layout")  # what a copy makes or finds out for itself


_Text = TypeVar("_Text")
_Result = TypeVar("_Result")


class _Scored(NamedTuple):
    prepared: Prepared
    grouping: Grouping
    running: Running
    delta: Tensor | None  # (T,), or (t,) where the targets' scores were joined


class GradientShap(MultitaskExplainerMixin, AttributionExplainer):
    """GradientSHAP for Hugging Face models: expected gradients, with a normal distribution around a baseline as background.

    Expected gradients are Erion et al.'s (2021, "Improving performance of deep learning models with axiomatic attribution
    priors and expected gradients"); captum calls them GradientShap, as they approximate the SHAP values that Lundberg
    and Lee define (2017, "A unified approach to interpreting model predictions").

    The gradient of a target's score is averaged over n points between the text's embeddings and a noisy baseline, and
    multiplied by their difference. Same arguments, same numbers: the noise depends on the seed and the tokens of a text
    alone, never on the batch it is in, its place in the list, the device, or the process.

    The eleven parameters that can be given by their places are interpreto's. ``settings`` holds those that decide numbers.

    Args:
        model: a ``*ForSequenceClassification`` or a causal language model that takes ``inputs_embeds``, or a transformers
            pipeline of one. It is used in evaluation mode and comes back as it was.
        tokenizer: its tokenizer; a pipeline brings its own.
        batch_size: perturbed rows of one model call, at most; "auto" takes what is fastest on a CPU, and what the free memory
            holds on a GPU. Calls that run out of memory are halved, and later ones stay as small.
        device: where the method runs: the model is moved there once, now. None leaves it where it is. "auto" takes all GPUs of
            this machine, or the CPU where there is none; a list names the devices to use. The model moves to the first
            one, and copies on the others share its work.
        {settings}
        return_convergence_delta: also report how far the scores are from adding up; costs n + 1 forward rows a text.
        on_error: "raise", or "record": a bad text gets an output with ``error`` set, and the rest is explained.
        backend: "auto", "torch" or "triton".

    Raises:
        InvalidArgumentError, InvalidTypeError: a parameter that cannot be used.
        UnsupportedModelError: a model of another task, or one that takes no ``inputs_embeds``.
        BackendUnavailableError: a backend asked for by name that cannot run here.

    Example:
        >>> model, tokenizer = fastshap.load_default_model()
        >>> explainer = GradientShap(model, tokenizer, batch_size="auto", n_perturbations=20)
        >>> (output,) = explainer("A gorgeous, witty film.")
        >>> output.elements
        ['A', 'gorgeous', ',', 'witty', 'film', '.']
    """

    if TYPE_CHECKING:
        # fmt: off
        # Written by tools/settings.py.
        def __init__(
            self,
            model: PreTrainedModel | Pipeline,
            tokenizer: PreTrainedTokenizerBase | None = None,
            batch_size: int | str = 4,
            granularity: Granularity | str = Granularity.WORD,
            granularity_aggregation_strategy: GranularityAggregationStrategy | str = GranularityAggregationStrategy.MEAN,
            device: torch.device | str | Sequence[torch.device | str] | None = None,
            inference_mode: Callable[[Tensor], Tensor] | str = InferenceModes.LOGITS,
            input_x_gradient: bool = True,
            n_perturbations: int = 10,
            baseline: Tensor | float | None = None,
            noise_std: float = 0.1,
            *,
            reduction: str = "sum",
            sampling: str = "antithetic",
            path_density: float | None = None,
            seed: int = 0,
            rtol: float | None = None,
            max_perturbations: int | None = None,
            perturb_special_tokens: bool = True,
            return_convergence_delta: bool = False,
            on_error: str = "raise",
            backend: str = "auto",
        ) -> None: ...
        # End.
        # fmt: on
    else:

        def __init__(self, *args: Any, **named: Any) -> None:
            self._set_up(_SIGNATURE.bind(self, *args, **named).arguments)

    def _set_up(self, given: Mapping[str, Any]) -> None:
        own = {**_OWN, **given}
        pair: Any = checks.pair(own["model"], own["tokenizer"])
        self.settings = Settings(**{name: value for name, value in given.items() if name in DEFAULTS})
        self.on_error = checks.one_of(own["on_error"], "on_error", ("raise", "record"))
        self.return_convergence_delta = checks.flag(own["return_convergence_delta"], "return_convergence_delta")
        if self.return_convergence_delta and not self.settings.adds_up:
            raise InvalidArgumentError(
                "return_convergence_delta=True needs reduction='sum' and input_x_gradient=True: other scores do not add up "
                "to a difference of the model's output."
            )
        ops.check_backend(own["backend"])
        self.model, self.tokenizer = pair
        self.task = self.task_of(self.model, self.tokenizer, self.settings.inference_mode, self.settings.seed)
        known, width = _table_shape(self.model)
        if 10 * len(self.tokenizer) < known:
            raise InvalidArgumentError(
                f"The tokenizer knows {len(self.tokenizer)} tokens and the model {known}: it is another model's, or its files "
                "are missing beside the model's. Load the one that the model was trained with."
            )
        _check_width(self.settings.baseline, width)
        devices = checks.devices(own["device"])
        if devices:
            self.model.to(devices[0])  # type: ignore[arg-type]
        self._desk = Desk(self.model)
        self._replicas = Replicas(self.model, devices[1:])
        self._budget = Budget(checks.batch_size(own["batch_size"]), engine.device_of(self.model))
        self._backend = own["backend"]
        self._layout = Layout()
        # The baseline is a copy, which nobody else writes to.
        self._given = {name: value for name, value in given.items() if name in _PARAMETERS}
        self._given |= {"baseline": self.settings.baseline}
        self._provenance = Provenance()
        self._tried: Any = None  # the model's state when something was found
        self._truncation_warned = False
        self._origin: GradientShap | None = None

    @property
    def _execution(self) -> Execution:
        return Execution(self.settings, self._layout, self._backend, self._budget)

    def _state(self) -> dict[str, Any]:
        """All that a copy starts from: it finds out for itself how the model can be run, where it is."""
        state = {name: value for name, value in vars(self).items() if name not in _ANEW}
        own = {"task": self.task.untried(), "_further": self._replicas.further, "_batch_size": self._budget.batch_size}
        return state | own

    def __getstate__(self) -> dict[str, Any]:
        state = self._state()
        first = ("inference_mode", "tokenizer", "model")  # of which the others are made
        check_picklable({name: state[name] for name in (*first, *(state.keys() - {*first, "task", "_given"}))})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        further, batch_size = state.pop("_further"), state.pop("_batch_size")
        vars(self).update(state)
        self._desk = Desk(self.model)
        self._replicas = Replicas(self.model, further)
        self._budget = Budget(batch_size, engine.device_of(self.model))
        self._tried, self._origin, self._layout = None, None, Layout()

    def __copy__(self) -> GradientShap:
        own = object.__new__(type(self))
        own.__setstate__(self._state())
        return own

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientShap:
        with lock_of(self.model):
            try:
                state = copy.deepcopy(self._state(), memo)
            except Exception as error:
                raise InvalidTypeError(
                    f"The explainer cannot be copied with its model, as something in it cannot ({type(error).__name__}: "
                    f"{error}). copy.copy makes an explainer of the same model."
                ) from error
        own = memo[id(self)] = object.__new__(type(self))
        own.__setstate__(state)
        return own

    @property
    def padding(self) -> tuple[int, int]:
        """Positions of all model calls so far that were padding, and all their positions."""
        return self._budget.padding, self._budget.positions

    def _for_call(self, options: Mapping[str, Any]) -> GradientShap:
        refuse_unknown(options, "A call", "Model, tokenizer and device are the explainer's own.")
        own = object.__new__(type(self))
        own.__dict__.update(self.__dict__)
        own._set_up({"model": self.model, "tokenizer": self.tokenizer} | self._given | dict(options))
        own._replicas, own._truncation_warned, own._origin = self._replicas, self._truncation_warned, self
        own._desk = self._desk
        if "batch_size" not in options:
            own._budget = self._budget
        if own.settings.inference_mode is self.settings.inference_mode:
            own._learn(self)
        return own

    def _learn(self, other: GradientShap) -> None:
        """What another explainer of the same model and inference mode has found out by trying."""
        if other._tried is not None and self._tried is None:
            self.task, self._tried = other.task.with_seed(self.settings.seed), other._tried
            self._layout = other._layout

    def _tokens_together(self, options: Mapping[str, Any]) -> float:
        device = engine.device_of(self.model).type
        table = next(self.model.get_input_embeddings().parameters()).numel()
        weights = sum(one.numel() for one in self.model.parameters()) - table
        passes = 1 + self.task.expected_scores(options)  # forward, and backward for each score
        rows = _WORK.get(device, _WORK_ON_A_GPU) / (2 * max(1, weights) * passes)
        return max(rows, _ENOUGH_TOKENS if device == "cpu" else _ENOUGH_ON_A_GPU) / self.settings.n_perturbations

    def _explain_window(
        self,
        texts: Sequence[Any],
        tokenised: Any,
        targets: Sequence[Any] | None,
        first: int,
        options: Mapping[str, Any],
        seen: dict[Any, Any],
        progress: Progress,
    ) -> list[AttributionOutput]:
        with self._desk.at_work() as model, self.task.running_on(model):
            self._try_model(self.task.readable(tokenised))
            prepared = self.task.prepare(tokenised, targets, self._predict, options, lambda: progress.add(_GENERATING))
            prepared = [self._with_fitting_baseline(_with_targets(one)) for one in prepared]
            self._raise_first(prepared, first)
            good = [one for one in prepared if isinstance(one, Prepared)]
            self._warn_of_truncation(good)
            scored = iter(self._score(good, [self._grouping(one) for one in good], seen, progress))
            results = [next(scored) if isinstance(one, Prepared) else one for one in prepared]
            self._raise_first(results, first)
            self._provenance = provenance_of(self.model, self.tokenizer, engine.device_of(self.model))
            if self._origin is not None:
                self._origin._truncation_warned |= self._truncation_warned
                if self._origin.settings.inference_mode is self.settings.inference_mode:
                    self._origin._learn(self)
            return [
                self._failed(result, text if isinstance(text, str) else "")
                if isinstance(result, FastshapError)
                else self._output(result)
                for result, text in zip(results, texts, strict=True)
            ]

    def _repeat(self, record: Record) -> AttributionOutput:
        """Computes an output again: the same tokens, elements, targets and number of rounds, by this explainer's settings."""
        given = {name: value[0].tolist() for name, value in record.model_inputs_to_explain.items()}
        ids = given["input_ids"]
        encoded = Encoded(
            text=record.text,
            input_ids=ids,
            special=[bool(flag) for flag in given["special_tokens_mask"]],
            offsets=[(start, end) for start, end in given["offset_mapping"]],
            tokens=[""] * len(ids),
            words=[None] * len(ids),
            truncated=record.truncated,
            extra={name: given[name] for name in EXTRA if name in given},
        )
        prediction = Prediction(record.predicted_label, record.probability, record.target_probabilities)
        positions = record.model_inputs_to_explain.get(TARGET_POSITIONS)
        prepared = self.task.again(
            encoded, record.targets, record.target_names, prediction, None if positions is None else positions[0]
        )
        grouping = self._grouping(prepared, (record.element_tokens, record.elements))
        with self._desk.at_work() as model, self.task.running_on(model):
            self._raise_first([unknown(self.task, ids)], 0)
            self._try_model(iter([prepared.encoded]))
            scored = self._score([prepared], [grouping], {}, Progress(), record.rounds)
            self._raise_first(scored, 0)
            self._provenance = provenance_of(self.model, self.tokenizer, engine.device_of(self.model))
            return self._output(scored[0])  # type: ignore[arg-type]  # errors were raised

    def _grouping(self, one: Prepared, given: tuple[list[list[int]], list[str]] | None = None) -> Grouping:
        its, joins = self.settings, self.settings.reduction == "sum"
        return Grouping(one.encoded, its.granularity, its.strategy, self._backend, joins, given, one.scope)

    def _score(
        self,
        prepared: Sequence[Prepared],
        groupings: Sequence[Grouping],
        seen: dict[Any, Any],
        progress: Progress,
        rounds: int | None = None,
    ) -> list[_Scored | FastshapError]:
        """``seen`` holds what was computed before, under what decides it: a text that comes again is not computed again.

        ``rounds``: just so many, whatever ``rtol`` asks for.
        """
        if seen.pop(_STATE, None) != (state := self.task.state()):
            seen.clear()  # the model has changed since
        keys = [_identity(one, grouping) for one, grouping in zip(prepared, groupings, strict=True)]
        new: dict[Any, int] = {}
        for i, key in enumerate(keys):
            if key not in seen:
                new.setdefault(key, i)
        computed = self._isolated(
            [(prepared[i], groupings[i]) for i in new.values()],
            lambda some, alone: self._computed(some, progress, rounds, alone),
        )
        found: dict[Any, Any] = dict(zip(new, computed, strict=True))
        found |= {key: seen.pop(key) for key in keys if key in seen}
        seen |= found  # the most recent last
        for key in list(seen)[: max(0, len(seen) - _REMEMBERED)]:
            del seen[key]
        seen[_STATE] = state
        return [
            found[key] if isinstance(found[key], FastshapError) else _finite(_Scored(one, grouping, *found[key]))
            for one, grouping, key in zip(prepared, groupings, keys, strict=True)
        ]

    def _isolated(
        self, texts: Sequence[_Text], compute: Callable[[Sequence[_Text], bool], Sequence[_Result]]
    ) -> list[_Result | FastshapError]:
        """What was computed for each text; where the model fails on a text, found by halving, an error stands in its place.

        ``compute``'s second argument: whether the model itself is to run, without copies and threads, which may be at fault.
        """
        for alone in (False, True) if len(texts) == 1 else (False,):
            try:
                return [*compute(texts, alone)]
            except (FastshapError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                if alone:
                    return [ModelFailedError.caused_by(error)]
        middle = len(texts) // 2
        first = self._isolated(texts[:middle], compute)
        failed = [one for one in first if isinstance(one, FastshapError)]
        if failed and self.on_error == "raise":
            return [*first, *failed[:1] * (len(texts) - middle)]  # the first is raised
        return [*first, *self._isolated(texts[middle:], compute)]

    def _computed(
        self, texts: Sequence[tuple[Prepared, Grouping]], progress: Progress, rounds: int | None, alone: bool = False
    ) -> list[tuple[Running, Tensor | None]]:
        """Scores, and convergence deltas where they are wanted."""
        if not texts:
            return []
        items = [_item(one.encoded, one.targets, one.scope.positions, grouping.joined) for one, grouping in texts]
        models = [self.task.model] if alone else self._workers(items)
        rounds_of = Rounds(self._execution, self.task.scores)
        running = rounds_of.run(models, items, [grouping for _, grouping in texts], progress.stage, rounds)
        if not self.return_convergence_delta:
            return [(its, None) for its in running]
        return list(zip(running, rounds_of.deltas(models, items, running), strict=True))

    def _workers(self, items: Sequence[Item]) -> list[torch.nn.Module]:
        """The models that share the work: one a device, or on a CPU two on half its cores each, where there is enough to do."""
        models = self._replicas.models(self.task.model)
        tokens = self.settings.n_perturbations * sum(len(item.input_ids) for item in items)
        alone = len(models) == 1 and engine.device_of(models[0]).type == "cpu"
        if not alone or tokens < _ENOUGH_TOKENS or not isinstance(self.settings.inference_mode, InferenceModes):
            return models
        return side_by_side(models[0], min(2, torch.get_num_threads()))

    def _try_model(self, texts: Iterator[Encoded]) -> None:
        """Whether the model can be explained at all, and how rows may share a call: until something is known of it.

        Nothing happens where there are no texts, so that what is wrong with all of them is said first.
        """
        if (first := next(texts, None)) is None:
            return
        if self._tried != (state := self.task.state()):
            check_linear_layers(self.task.model)
            found = self.task.layout(itertools.chain([first], texts))
            side, maskless = (None, False) if found is None else (found.padding_side, found.maskless)
            self._layout = Layout(side or "right", equal_lengths=side is None, maskless=maskless)
            self._tried = state if found is not None else None
        self.task.refresh()

    def _predict(
        self, encoded: Sequence[Encoded], forward: engine.Forward, positions: Sequence[Tensor] | None = None
    ) -> list[Tensor | FastshapError]:
        """See :class:`fastshap.tasks.Predict`. Texts that are alike run once."""
        if not encoded:
            return []
        wanted = [None] * len(encoded) if positions is None else positions
        keys = [_input_of(one, at) for one, at in zip(encoded, wanted, strict=True)]
        different = dict(zip(keys, zip(encoded, wanted, strict=True), strict=True))
        items = [_item(one, _no_targets(at), at) for one, at in different.values()]
        models = self._replicas.models(self.task.model)

        def rows(some: Sequence[Item], alone: bool) -> list[Tensor]:
            return at_texts(models[:1] if alone else models, some, forward, self._execution)

        found = dict(zip(different, self._isolated(items, rows), strict=True))
        return [found[key] for key in keys]

    def _output(self, scored: _Scored) -> AttributionOutput:
        prepared, grouping, running, delta = scored
        tokens = running.tokens
        return AttributionOutput(
            attributions=running.attributions,
            elements=grouping.elements,
            model_inputs_to_explain=_model_inputs(
                prepared.encoded, prepared.scope.positions if self.task.keeps_positions else None
            ),
            targets=prepared.targets,
            classes=prepared.targets if self.task.targets_are_classes else None,
            target_names=grouping.names(prepared.target_names),
            standard_error=running.standard_error(),
            degrees_of_freedom=running.freedom,
            unassigned=grouping.unassigned(tokens),
            convergence_delta=None if delta is None else grouping.reduce_targets(delta).clone(),
            text=prepared.encoded.text,
            element_spans=grouping.spans,
            element_tokens=grouping.members,
            predicted_label=prepared.prediction.label,
            probability=prepared.prediction.probability,
            target_probabilities=prepared.prediction.of_targets,
            truncated=prepared.encoded.truncated,
            converged=None if self.settings.rtol is None else running.meets(self.settings.rtol),
            rounds=running.rounds,
            **self._common(),
        )

    def _failed(self, error: FastshapError, text: str) -> AttributionOutput:
        return AttributionOutput.failed(error, text, **self._common())

    def _common(self) -> dict[str, Any]:
        return {"model_task": self.task.model_task, "settings": self.settings, "provenance": self._provenance}

    def _with_fitting_baseline(self, one: Prepared | FastshapError) -> Prepared | FastshapError:
        baseline = self.settings.baseline
        if not isinstance(one, Prepared) or not isinstance(baseline, Tensor) or baseline.ndim == 1:
            return one
        length, (rows, width) = len(one.encoded), baseline.shape
        if rows == length:
            return one
        return InvalidArgumentError(
            f"The baseline has shape {(rows, width)}, but this text has embeddings of shape {(length, width)}. Pass a "
            f"baseline of that shape, or one of shape ({width},) that fits every text."
        )

    def _raise_first(self, results: Sequence[Any], first: int) -> None:
        if self.on_error == "record":
            return
        for i, result in enumerate(results):
            if isinstance(result, FastshapError):
                error = type(result)(f"Text {first + i}: {result}")
                error.text_index = first + i
                raise error from result.__cause__

    def _warn_of_truncation(self, prepared: Sequence[Prepared]) -> None:
        if not self._truncation_warned and any(one.encoded.truncated for one in prepared):
            self._truncation_warned = True
            warn(
                f"Texts of more than {self.task.max_length()} tokens lost their {self.task.cut_end()}, as the model takes no "
                "more; their outputs have truncated=True. Split long texts to explain all of them.",
                TruncationWarning,
            )


def _with_targets(one: Prepared | FastshapError) -> Prepared | FastshapError:
    if isinstance(one, Prepared) and not len(one.targets):
        return InvalidArgumentError("The text has no target; there is nothing to explain.")
    return one


def _finite(scored: _Scored) -> _Scored | NonFiniteError:
    delta = scored.delta
    if bool(scored.running.tokens.isfinite().all()) and (delta is None or bool(delta.isfinite().all())):
        return scored
    return NonFiniteError(
        "The model's scores or gradients are NaN or infinite for this text. Look for damaged weights, for overflow in half "
        "precision (load the model in float32 or bfloat16), or for a baseline or noise_std of enormous size."
    )


# Those that decide no number, with their defaults.
_OWN: dict[str, Any] = {
    "tokenizer": None,
    "batch_size": 4,
    "device": None,
    "return_convergence_delta": False,
    "on_error": "raise",
    "backend": "auto",
}
# By their places, as interpreto has them; the others by their names.
_PLACES = (
    *("model", "tokenizer", "batch_size", "granularity", "granularity_aggregation_strategy", "device"),
    *("inference_mode", "input_x_gradient", "n_perturbations", "baseline", "noise_std"),
)


def _signature() -> inspect.Signature:
    known = DEFAULTS | _OWN
    kinds = dict.fromkeys(("self", *_PLACES), inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Signature(
        [
            inspect.Parameter(
                name, kinds.get(name, inspect.Parameter.KEYWORD_ONLY), default=known.get(name, inspect.Parameter.empty)
            )
            for name in dict.fromkeys(("self", *_PLACES, *known))
        ]
    )


_SIGNATURE = _signature()
_PARAMETERS = DEFAULTS.keys() | _OWN.keys() - {*_FIXED}
GradientShap.__init__.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
GradientShap.__doc__ = documented(GradientShap.__doc__)
_BESIDE = ("model_inputs", "targets", "generation_kwargs", "progress")  # what a call takes beside these


def refuse_unknown(options: Mapping[str, Any], who: str, further: str) -> None:
    """Names of options that there are not are an error, which says what may have been meant.

    Raises:
        InvalidArgumentError: there are such names.
    """
    if unknown := sorted(options.keys() - _PARAMETERS):
        named = ", ".join(name + checks.meant(name, options[name], [*_BESIDE, *_PARAMETERS]) for name in unknown)
        raise InvalidArgumentError(
            f"{who} has no option {named}; there are {', '.join(sorted(_PARAMETERS))}. {further}"
        )


def _identity(prepared: Prepared, grouping: Grouping) -> tuple[Any, ...]:
    """What decides a text's scores, beside the model and the explainer's settings."""
    encoded = prepared.encoded
    return (
        tuple(encoded.input_ids),
        tuple(encoded.special),
        encoded.parts,
        None if prepared.scope.positions is None else tuple(prepared.scope.positions.tolist()),
        tuple((name, *values) for name, values in encoded.extra.items()),
        tuple(prepared.targets.tolist()),
        tuple(map(tuple, grouping.members)),
    )


def _input_of(encoded: Encoded, positions: Tensor | None) -> tuple[Any, ...]:
    """What decides what a model makes of the text itself."""
    extra = tuple(itertools.chain(*encoded.extra.values()))
    return tuple(encoded.input_ids), extra, None if positions is None else tuple(positions.tolist())


def _no_targets(positions: Tensor | None) -> Tensor:
    """(P,) for the rows that are asked for."""
    return torch.zeros(1 if positions is None else len(positions), dtype=torch.int64, device="cpu")


def _item(encoded: Encoded, targets: Tensor, positions: Tensor | None, joined: Tensor | None = None) -> Item:
    return Item(
        input_ids=torch.tensor(encoded.input_ids, device="cpu"),
        targets=targets,
        special=torch.tensor(encoded.special, device="cpu"),
        extra={name: torch.tensor(values, device="cpu") for name, values in encoded.extra.items()},
        joined=joined,
        positions=positions,
    )


def _model_inputs(encoded: Encoded, positions: Tensor | None = None) -> BatchEncoding:
    from transformers import (
        BatchEncoding,
    )  # here, so that importing fastshap loads no more of transformers than it must

    data = {
        "input_ids": torch.tensor([encoded.input_ids], device="cpu"),
        "attention_mask": torch.ones(1, len(encoded), dtype=torch.int64, device="cpu"),
        "special_tokens_mask": torch.tensor([encoded.special], device="cpu").long(),
        "offset_mapping": torch.tensor([encoded.offsets], device="cpu"),
    }
    if positions is not None:
        data[TARGET_POSITIONS] = positions[None]
    return BatchEncoding(data | {name: torch.tensor([values], device="cpu") for name, values in encoded.extra.items()})


def _check_width(baseline: float | Tensor, width: int) -> None:
    if isinstance(baseline, Tensor) and baseline.shape[-1] != width:
        raise InvalidArgumentError(
            f"The baseline has shape {tuple(baseline.shape)}, but the model's embeddings have shape (L, {width}): pass a "
            f"number, a tensor of shape ({width},), or one of the text's shape (L, {width})."
        )


def _table_shape(model: Any) -> tuple[int, int]:
    """(tokens, D) of the model's input embeddings."""
    if not takes(model, "inputs_embeds"):
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no inputs_embeds, so there is no gradient with respect to its embeddings."
        )
    try:
        rows, width = next(model.get_input_embeddings().parameters()).shape
    except (NotImplementedError, AttributeError, StopIteration, ValueError):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no table of input embeddings, so there is nothing to perturb."
        ) from None
    return rows, width
