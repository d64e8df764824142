"""GradientShap, the front door."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastshap import checks, ops
from fastshap.base import AttributionExplainer, MultitaskExplainerMixin
from fastshap.engine import run as engine
from fastshap.engine.budget import Budget, Kept
from fastshap.engine.graphs import Graphs
from fastshap.engine.packing import Execution, Layout
from fastshap.engine.seen import Seen
from fastshap.engine.work import Work, tokens_of_a_call, tokens_of_some_seconds, weights_of
from fastshap.errors import FastshapError, InvalidArgumentError, TruncationWarning, raise_first, warn
from fastshap.models.adjoint import check_linear_layers
from fastshap.models.copies import Copied, check_picklable
from fastshap.models.embedder import opened
from fastshap.models.provenance import Provenance, generation_settings, provenance_of, tokenizer_fingerprint
from fastshap.models.replicas import Replicas
from fastshap.models.view import Desk
from fastshap.output.inputs import saved_in
from fastshap.output.made import Maker
from fastshap.output.noise import Known
from fastshap.output.output import AttributionOutput
from fastshap.output.progress import Progress
from fastshap.output.record import Record
from fastshap.settings import DEFAULTS, PARAMETERS, Settings
from fastshap.settings.own import BESIDE, OPTIONS, OWN, SIGNATURE
from fastshap.tasks import Prepared, baselines, named_score, of_call
from fastshap.tasks.subject import table_shape
from fastshap.tasks.tokens import unknown
from fastshap.text.encode import Encoded
from fastshap.text.groups import Grouping
from fastshap.text.own_groups import problem_with
from fastshap.types import InferenceModes

if TYPE_CHECKING:
    from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

    from fastshap.tasks import Task
    from fastshap.types import Granularity, GranularityAggregationStrategy
    from fastshap.types.baselines import BaselineSet


_GENERATING = 0.2  # the share of a text's work that is done once its target is generated
# What a copy makes or finds out for itself.
_ANEW = ("_desk", "_replicas", "_budget", "_origin", "_tried", "_described", "_layout")


class GradientShap(MultitaskExplainerMixin, AttributionExplainer, Copied):
    """GradientSHAP for Hugging Face models: expected gradients, with a normal distribution around a baseline as background.

    Expected gradients are Erion et al.'s (2021, "Improving performance of deep learning models with axiomatic attribution
    priors and expected gradients"); captum calls them GradientShap, as they approximate the SHAP values that Lundberg
    and Lee define (2017, "A unified approach to interpreting model predictions").

    It averages the gradient of a target's score over n points between the text's embeddings and a noisy baseline, and
    multiplies it by their difference. The same arguments give the same numbers: the noise depends only on the seed and the
    text's tokens, not on the batch, the order of the texts, the device or the process.

    The eleven positional parameters are interpreto's. ``settings`` holds the parameters that decide numbers.

    Args:
        model: a model that takes ``inputs_embeds``, of one of the tasks in docs/tasks.md, or a transformers
            pipeline of one. fastshap runs it in evaluation mode and leaves it as it was.
        tokenizer: its tokenizer; a pipeline brings its own.
        batch_size: the most rows (perturbed copies) in one model call. "auto" takes what is fastest on a CPU, and what the
            free memory holds on a GPU. If a call runs out of memory, it is halved, and later calls stay as small.
        device: where to run. The model moves there once, now; None leaves it where it is. "auto" takes all GPUs of this
            machine, or the CPU if there is none. A list names the devices to use: the model moves to the first, and
            copies on the others share the work.
        task: the task's name, such as "zero_shot", where the model's class leaves a choice. docs/tasks.md lists them.
        {settings}
        return_convergence_delta: also report how far the scores are from adding up. It costs n + 1 forward rows per text.
        on_error: "raise", or "record": a text that cannot be explained gets an output with ``error`` set, and the others
            are explained.
        backend: "auto", "torch" or "triton".
        cuda_graphs: on one NVIDIA GPU, record the model calls of one text as CUDA graphs, which the host starts faster. A
            graph is used once it agreed with the plain call for two texts of its length (docs/adr/0020).

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

    _variances: list[Any] | None = None  # see Execution
    _quiet = False  # whether outputs alone tell of truncated texts

    if TYPE_CHECKING:
        # fmt: off
        # Written by tools/settings.py.
        def __init__(
            self,
            model: PreTrainedModel | Pipeline,
            tokenizer: PreTrainedTokenizerBase | None = None,
            batch_size: int | str = 4,
            granularity: Granularity | str | Sequence[tuple[int, int]] | Callable[[str], Any] = Granularity.WORD,
            granularity_aggregation_strategy: GranularityAggregationStrategy | str = GranularityAggregationStrategy.MEAN,
            device: torch.device | str | Sequence[torch.device | str] | None = None,
            inference_mode: Callable[[Tensor], Tensor] | str = InferenceModes.LOGITS,
            input_x_gradient: bool = True,
            n_perturbations: int = 10,
            baseline: Tensor | float | str | BaselineSet | None = None,
            noise_std: float = 0.1,
            *,
            reduction: str = "sum",
            sampling: str = "antithetic",
            path_density: float | Sequence[float] | str | None = None,
            seed: int = 0,
            rtol: float | None = None,
            max_perturbations: int | None = None,
            perturb_special_tokens: bool = True,
            score: Callable[[Any, Any], Tensor] | str | None = None,
            span: bool | Sequence[tuple[int, int]] = False,
            threshold: float = 0.5,
            long_text: str = "truncate",
            hypothesis_template: str = "This example is {}.",
            task: str | type[Task] | None = None,
            return_convergence_delta: bool = False,
            on_error: str = "raise",
            backend: str = "auto",
            cuda_graphs: bool = False,
        ) -> None: ...
        # End.
        # fmt: on
    else:

        def __init__(self, *args: Any, **named: Any) -> None:
            self._set_up(checks.bound(SIGNATURE, type(self).__name__, (self, *args), named))

    def _set_up(self, given: Mapping[str, Any]) -> None:
        own = {**OWN, **given}
        pair: Any = checks.pair(*opened(own["model"], own["tokenizer"]))
        named = named_score(given, pair[0], own["task"])
        self.settings = Settings(**{name: value for name, value in named.items() if name in DEFAULTS})
        self.on_error = checks.one_of(own["on_error"], "on_error", ("raise", "record"))
        self.return_convergence_delta = checks.flag(own["return_convergence_delta"], "return_convergence_delta")
        if self.return_convergence_delta and not self.settings.adds_up:
            raise InvalidArgumentError(
                "return_convergence_delta=True needs reduction='sum' and input_x_gradient=True: other scores do not add up "
                "to a difference of the model's output."
            )
        ops.check_backend(own["backend"])
        self.model, self.tokenizer = pair
        self.task = self.task_of(self.model, self.tokenizer, self.settings, own["task"])
        known, width = table_shape(self.model)
        checks.vocabulary(len(self.tokenizer), known)
        baselines.check(self.settings.baseline, self.tokenizer, known, width)
        devices = checks.devices(own["device"])
        if devices:
            self.model.to(devices[0])  # type: ignore[arg-type]
        self._desk = Desk(self.model)
        self._graphs = Graphs(checks.flag(own["cuda_graphs"], "cuda_graphs"), engine.device_of(self.model), devices)
        self._replicas = Replicas(self.model, devices[1:])
        self._budget = Budget(checks.batch_size(own["batch_size"]), engine.device_of(self.model))
        self._backend, self._layout, self._named = own["backend"], Layout(), own["task"]
        # The baseline is a copy, which nobody else writes to.
        self._given = {name: value for name, value in given.items() if name in OPTIONS}
        self._given |= {"baseline": self.settings.baseline}
        self._provenance = Provenance()
        self._described: Any = None  # the model's state when its provenance was found
        self._tried: Any = None  # the model's state when something was found
        self._truncation_warned, self._known_help = False, Known()
        self._origin: GradientShap | None = None

    def _state(self) -> dict[str, Any]:
        """All that a copy starts from: it finds out for itself how the model can be run, where it is."""
        state = {name: value for name, value in vars(self).items() if name not in _ANEW}
        own = {"task": self.task.untried(), "_further": self._replicas.further, "_batch_size": self._budget.batch_size}
        return state | own | {"_graphs": self._graphs.anew()}

    def __getstate__(self) -> dict[str, Any]:
        state = self._state()
        parts = {"inference_mode": self.settings.inference_mode, "tokenizer": self.tokenizer, "model": self.model}
        check_picklable(parts | {name: state[name] for name in state.keys() - {*parts, "settings", "task", "_given"}})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        further, batch_size = state.pop("_further"), state.pop("_batch_size")
        vars(self).update(state)
        self._desk = Desk(self.model)
        self._replicas = Replicas(self.model, further)
        self._budget = Budget(batch_size, engine.device_of(self.model))
        self._tried, self._described, self._origin, self._layout = None, None, None, Layout()

    @property
    def padding(self) -> tuple[int, int]:
        """Positions of all model calls so far that were padding, and all their positions."""
        return self._budget.padding, self._budget.positions

    def _for_call(self, options: Mapping[str, Any]) -> GradientShap:
        checks.refuse_unknown(
            options, OPTIONS, "A call", "Model, tokenizer and device are the explainer's own.", BESIDE
        )
        own = object.__new__(type(self))
        own.__dict__.update(self.__dict__)
        fixed = {"model": self.model, "tokenizer": self.tokenizer, "task": self._named}
        own._set_up(fixed | of_call(self._given, options))
        own._replicas, own._truncation_warned, own._origin = self._replicas, self._truncation_warned, self
        own._desk, own._graphs, own._known_help = self._desk, self._graphs, self._known_help
        if "batch_size" not in options:
            own._budget = self._budget
        if own._same_scores(self):
            own._learn(self)
        return own

    def _same_scores(self, other: GradientShap) -> bool:
        ours, theirs = self.settings, other.settings
        return ours.inference_mode is theirs.inference_mode and ours.score is theirs.score

    def _learn(self, other: GradientShap) -> None:
        """What another explainer of the same model and inference mode has found out by trying."""
        if other._tried is not None and self._tried is None:
            self.task, self._tried = other.task.with_settings(self.settings), other._tried
            self._layout = other._layout

    def _tell_origin(self) -> None:
        if self._origin is not None:
            self._origin._truncation_warned |= self._truncation_warned
            if self._same_scores(self._origin):
                self._origin._learn(self)

    def _tokens_together(self, options: Mapping[str, Any]) -> float:
        passes = 1 + self.task.expected_scores(options)  # forward, and backward for each score
        return tokens_of_some_seconds(self.model, passes, self.settings.n_perturbations)

    def _explain_window(
        self,
        texts: Sequence[Any],
        tokenise: Callable[[], Any],
        targets: Sequence[Any] | None,
        first: int,
        options: Mapping[str, Any],
        seen: Seen,
        progress: Progress,
    ) -> list[AttributionOutput]:
        with self._desk.at_work() as model, self.task.running_on(model):
            tokenised = tokenise()  # here, where little has to be asked of the model again
            if first == 0:
                self._replicas.begin()
            self._try_model(self.task.readable(tokenised))
            rode = self._with_riding_text(tokenised, targets, progress) if progress.total == 1 else None
            self._tell_origin()
            if rode is not None:
                return [rode]
            prepared = self.task.prepare(tokenised, targets, self._predict, options, lambda: progress.add(_GENERATING))
            prepared = [self._checked(one) for one in prepared]
            self._raise_error(prepared, first)
            good = [one for one in prepared if isinstance(one, Prepared)]
            self._warn_of_truncation(good)
            scored = iter(self._score(good, [self._grouping(one) for one in good], seen, progress))
            results = [next(scored) if isinstance(one, Prepared) else one for one in prepared]
            self._raise_error(results, first)
            self._tell_origin()
            failed, each = self._maker().failed, zip(results, texts, strict=True)
            return [failed(one, text) if isinstance(one, FastshapError) else one for one, text in each]

    def _with_riding_text(
        self, tokenised: Any, targets: Sequence[Any] | None, progress: Progress
    ) -> AttributionOutput | None:
        """The output of one text whose prediction comes from the calls with gradients. None: the text must run alone."""
        once = self.settings.rtol is None and not self.return_convergence_delta
        riding = self.task.riding(tokenised, targets) if once else None
        if riding is None or not isinstance(self._checked(riding.prepared), Prepared):
            return None
        grouping, work = self._grouping(riding.prepared), self._work(with_text=True)
        item = riding.prepared.item(grouping.joined)
        if not work.text_may_ride(item, self.task.found("weights", lambda: weights_of(work.model)) or 1):
            return None
        (found,) = work.scores([item], [grouping], riding.scores, progress.stage, None, False)
        if isinstance(found, FastshapError) or isinstance(prepared := riding.complete(), FastshapError):
            return None
        self._warn_of_truncation([prepared])
        self._describe_model()
        return self._maker().outputs([found], [prepared], [grouping])[0]  # type: ignore[return-value]  # no error

    def _repeat(self, record: Record) -> AttributionOutput:
        """Computes an output again: the same tokens, elements, targets and number of rounds, by this explainer's settings."""
        with self._desk.at_work() as model, self.task.running_on(model):
            prepared = self.task.again(*saved_in(record))
            grouping = self._grouping(prepared, (record.element_tokens, record.elements))
            self._replicas.begin()
            self._raise_error([unknown(self.task, prepared.encoded.input_ids)], 0)
            self._try_model(iter([prepared.encoded]))
            (output,) = self._score([prepared], [grouping], Seen(), Progress(), record.rounds)
            self._raise_error([output], 0)
            return output  # type: ignore[return-value]  # errors were raised

    def _again(self, record: Record, options: Mapping[str, Any]) -> AttributionOutput:
        apart = {"batch_size": self._budget.batch_size, "on_error": "raise", "return_convergence_delta": False}
        return self._for_call({**apart, **options})._repeat(record)

    def _grouping(self, one: Prepared, given: tuple[list[list[int]], list[str]] | None = None) -> Grouping:
        its, joins = self.settings, self.settings.reduction == "sum"
        return Grouping(one.encoded, its.granularity, its.strategy, self._backend, joins, given, one.scope)

    def _score(
        self,
        prepared: Sequence[Prepared],
        groupings: Sequence[Grouping],
        seen: Seen,
        progress: Progress,
        rounds: int | None = None,
    ) -> list[AttributionOutput | FastshapError]:
        """``rounds``: just so many, whatever ``rtol`` asks for."""

        def computed(places: list[int]) -> Sequence[Any]:
            groups = [groupings[i] for i in places]
            items = [prepared[i].item(groupings[i].joined) for i in places]
            with_ends = self.return_convergence_delta
            return self._work().scores(items, groups, self.task.scores, progress.stage, rounds, with_ends)

        keys = [one.key(group.members) for one, group in zip(prepared, groupings, strict=True)]
        found = seen.results(keys, self.task.state(), computed)
        self._describe_model()
        return self._maker().outputs(found, prepared, groupings)

    def _describe_model(self) -> None:
        state = self.task.state(), generation_settings(self.model)
        if self._described != state:
            its, device = self.tokenizer, engine.device_of(self.model)
            known = "provenance", state[1], type(its), tokenizer_fingerprint(its), device
            found = self.task.found(known, lambda: provenance_of(self.model, its, device))
            self._provenance, self._described = found or self._provenance, state

    def _work(self, with_text: bool = False) -> Work:
        models = self._replicas.models(self.task.model)
        execution = dataclasses.replace(self._execution, with_text=with_text)
        return Work(models[0], models, execution, stop=self.on_error == "raise")

    @property
    def _execution(self) -> Execution:
        its, baseline = self.settings, baselines.in_numbers(self.settings.baseline, self.task)
        how: dict[str, Any] = {"with_ids": self.task.reads_twice(), "variances": self._variances}
        how["graphs"] = self._graphs.at(self.task.state, is_view=self.task.model is not self.model)
        return Execution(its, self._layout, self._backend, self._budget, baseline, **how)

    def _try_model(self, texts: Iterator[Encoded]) -> None:
        """Whether the model can be explained at all, and how rows may share a call: until something is known of it.

        Nothing happens where there are no texts, so that what is wrong with all of them is said first.
        """
        if (first := next(texts, None)) is None:
            return
        if self._tried != (state := self.task.state()):
            self.task.found("adjoint", lambda: check_linear_layers(self.task.model))
            found = self.task.layout(itertools.chain([first], texts))
            side, maskless = (None, False) if found is None else (found.padding_side, found.maskless)
            self._layout = Layout(side or "right", equal_lengths=side is None, maskless=maskless)
            self._tried = state if found is not None else None
        self._budget.worth = self.task.found("call", lambda: tokens_of_a_call(self.task.model)) or 0.0
        mode = self.settings.inference_mode
        if not self._budget.measured and isinstance(mode, InferenceModes):  # which decides how many logits are kept
            self._budget.kept = self.task.found(("kept", mode), Kept) or Kept()
        self.task.refresh()

    def _predict(
        self, encoded: Sequence[Encoded], forward: engine.Forward, positions: Sequence[Tensor] | None = None
    ) -> list[Tensor | FastshapError]:
        return self._work().of_texts(encoded, forward, positions) if encoded else []

    def _maker(self) -> Maker:
        return Maker(self.task, self.settings, self._provenance)

    def _checked(self, one: Prepared | FastshapError) -> Prepared | FastshapError:
        if isinstance(one, FastshapError):
            return one
        if not one.targets.numel():
            return InvalidArgumentError("The text has no target; there is nothing to explain.")
        its = self.settings
        wrong = checks.baseline_length(its.baseline, len(one.encoded))
        return wrong or problem_with(its.granularity, one.encoded) or one

    def _raise_error(self, results: Sequence[Any], first: int) -> None:
        if self.on_error == "raise":
            raise_first(results, first)

    def _warn_of_truncation(self, prepared: Sequence[Prepared]) -> None:
        if not (self._quiet or self._truncation_warned) and any(one.encoded.truncated for one in prepared):
            self._truncation_warned = True
            warn(self.task.of_truncated_texts(), TruncationWarning)


GradientShap.__init__.__signature__ = SIGNATURE  # type: ignore[attr-defined]
GradientShap.__doc__ = checks.documented(GradientShap.__doc__, PARAMETERS)
