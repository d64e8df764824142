"""What every task provides."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastshap.engine.packing import Call
from fastshap.engine.run import Forward, device_of
from fastshap.errors import FastshapError, InvalidArgumentError, UnsupportedModelError
from fastshap.models.provenance import version_of
from fastshap.models.replicas import hooks_of
from fastshap.tasks.first_token import described
from fastshap.tasks.layout import PLAIN, Layout, harmless, lengths, masked, without_mask
from fastshap.tasks.trial import Judge, Ran, ToLogits, as_written, points, ran, remembered
from fastshap.text.encode import EXTRA, Encoded, encode
from fastshap.text.inputs import Tokens
from fastshap.types import ModelTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEXTS = 3  # of a window, at most, on which ids and embeddings are compared, if the model fails on those before
_RANDOM = 8  # tokens of the text by chance, the last that is tried
_COMPANY = (0.4, 1.5, 0.8)  # sizes of the rows beside which a row has to come out as it does alone
_TABLES = ("hidden_size_per_layer_input", "ple_layer_ids")  # tell of embeddings per layer, in the names of transformers
_Found = TypeVar("_Found")


class Prediction(NamedTuple):
    """What a classifier of two classes or more makes of the text itself."""

    label: str | None  # of the largest logit
    probability: float | None  # of that class
    of_targets: Tensor | None  # (T,) the targets' probabilities


_NO_PREDICTION = Prediction(None, None, None)


@dataclass(frozen=True)
class Prepared:
    """One text ready to be explained."""

    encoded: Encoded  # all tokens the model sees
    targets: Tensor  # (T,) int64
    target_names: list[str]  # a label each, or a token each
    prediction: Prediction = _NO_PREDICTION


Predict = Callable[[list[Encoded], Forward], list[Tensor | FastshapError]]


class Task(ABC):
    """Turns texts and targets into what the engine works on, and model outputs into scores (R, T)."""

    class_endings: ClassVar[tuple[str, ...]]
    model_task: ClassVar[ModelTask]

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        inference_mode: Callable[[Tensor], Tensor],
        seed: int = 0,
    ) -> None:
        self._model = self._running = model
        self.tokenizer = tokenizer
        self.inference_mode = inference_mode
        self.seed = seed
        self.in_place = False  # until the model has been tried
        self._looked_at: Any = None  # the model's state then
        self._at_work = False
        self._state: tuple[Any, Any] | None = None  # of the model, while explanations are at work

    def untried(self) -> Task:
        """The same task, which knows nothing of the model yet."""
        return type(self)(self._model, self.tokenizer, self.inference_mode, self.seed)

    def with_seed(self, seed: int) -> Task:
        """The same task with another seed, which knows what this one has found of the model."""
        own = copy.copy(self)
        own.seed, own._running, own._at_work, own._state = seed, self._model, False, None
        return own

    @property
    def model(self) -> Any:
        """What runs: the model, or a view of it while explanations are at work."""
        return self._running

    @contextlib.contextmanager
    def running_on(self, model: Any) -> Iterator[None]:
        """While explanations are at work."""
        self._running, self._at_work, self._state = model, True, None
        try:
            yield
        finally:
            self._running, self._at_work, self._state = self._model, False, None

    @abstractmethod
    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        """What :meth:`prepare` goes on with. This much does not run the model, and may be done in another thread.

        Args:
            sources: one entry a text, from :func:`fastshap.text.inputs.sources`.
            targets: one entry a text, from :meth:`split_targets`, or None where the task chooses all of them.
            options: how a model that generates its targets does so.
        """

    @abstractmethod
    def prepare(
        self,
        tokenised: Any,
        targets: Sequence[Any] | None,
        predict: Predict,
        options: Mapping[str, Any],
        generated: Callable[[], None],
    ) -> list[Prepared | FastshapError]:
        """Tokenised texts with their targets; what is wrong with a text stands in its place.

        Args:
            tokenised: from :meth:`tokenised`, of the same targets and options.
            predict: runs the model on unperturbed texts and returns what a forward gives, one row a text, or an error where
                the model fails on one.
            generated: called after each text that the model has generated a target for.
        """

    @abstractmethod
    def split_targets(self, targets: Any, count: int) -> list[Any] | None:
        """``targets`` as the user gave them, one entry for each of ``count`` texts; None where the task chooses."""

    @abstractmethod
    def serves_all(self, targets: Any) -> bool:
        """Whether ``targets`` is one target for every text, not a list with an entry for each."""

    @abstractmethod
    def entries(self, targets: Any) -> Iterator[Any]:
        """The targets of one text after the other, as they are needed."""

    def cut_end(self) -> str:
        """Which end a text loses that is too long."""
        return "beginning" if self.tokenizer.truncation_side == "left" else "end"

    def check_options(self, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """``generation_kwargs`` as the user gave them."""
        if options:
            raise InvalidArgumentError(
                f"generation_kwargs are for causal language models; this model is a {type(unwrapped(self.model)).__name__}."
            )
        return {}

    def transformed(self, logits: Tensor) -> Tensor:
        """The scores that the inference mode makes of logits (..., classes); of the same shape."""
        scores = self.inference_mode(logits)
        if not isinstance(scores, Tensor) or scores.shape != logits.shape:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InvalidArgumentError(
                f"inference_mode must return scores of the logits' shape, {tuple(logits.shape)}; it returned {shape}."
            )
        if logits.requires_grad and not scores.requires_grad:
            raise InvalidArgumentError(
                "inference_mode returned scores without a gradient; it must be differentiable (no .detach(), .item(), argmax)."
            )
        return scores

    def raw_logits(self, **inputs: Tensor) -> Tensor:
        """The model's logits, (R, classes) or (R, L, V)."""
        return self.logits_of(self.model, inputs)

    @abstractmethod
    def logits_of(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The logits of the model, or of a copy of it."""

    @abstractmethod
    def scores(self, model: Any, call: Call) -> Tensor:
        """The targets' scores (R, T) of one call of the model, or of a copy of it, after the inference mode."""

    def encode(self, sources: Sequence[Any], **options: Any) -> list[Encoded | FastshapError]:
        """Tokenised texts; what is wrong with a text stands in its place, token ids unknown to the model too."""
        checked = [self._fit(source) if isinstance(source, Tokens) else source for source in sources]
        return [
            self.unknown(one.input_ids) or self._without_foreign(one) if isinstance(one, Encoded) else one
            for one in encode(self.tokenizer, checked, **options)
        ]

    def _fit(self, source: Tokens) -> Tokens | FastshapError:
        """Token ids that the model can take as they are."""
        limit = self.max_length()
        if limit is not None and len(source.ids) > limit:
            return InvalidArgumentError(
                f"The text has {len(source.ids)} tokens and the model takes {limit}. Pass the string, which is cut to fit, or "
                "cut the token ids where it makes sense."
            )
        accepted = set(inspect.signature(unwrapped(self.model).forward).parameters) - {"labels"}
        foreign = sorted(accepted.intersection(source.further))
        if source.types is not None and any(source.types) and "token_type_ids" not in self.tokenizer.model_input_names:
            foreign.append("token_type_ids")
        if not source.masked and self.tokenizer.pad_token_id in (source.ids[:1] + source.ids[-1:]):
            return InvalidArgumentError(
                "A row of token ids begins or ends with the padding token, and there is no attention_mask to say what is "
                "padding. Pass all that the tokenizer returns, or one list of ids for each text."
            )
        if foreign:
            return InvalidArgumentError(
                f"The mapping holds {', '.join(foreign)}, which the model takes and fastshap would lose; pass input_ids, "
                "attention_mask and what else the tokenizer returns."
            )
        return self.unknown(source.ids) or source

    def unknown(self, ids: Sequence[int]) -> FastshapError | None:
        """What is wrong with token ids that the model's embeddings do not reach."""
        known = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        if known is None or max(ids, default=0) < known:
            return None
        return InvalidArgumentError(
            f"Token id {max(ids)} lies outside the model's embedding table of {known} rows. Either the "
            "tokenizer does not belong to this model, or tokens were added to it: then call "
            "model.resize_token_embeddings(len(tokenizer))."
        )

    def _without_foreign(self, encoded: Encoded) -> Encoded:
        """Leaves out what the tokenizer gives and the model does not take."""
        extra = {name: values for name, values in encoded.extra.items() if takes(self.model, name)}
        return encoded if extra.keys() == encoded.extra.keys() else dataclasses.replace(encoded, extra=extra)

    def _alone(self, encoded: Encoded, end: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The ids (1, L) of one text, up to ``end``, and the model's further inputs."""
        device = device_of(self.model)
        ids = torch.tensor([encoded.input_ids[:end]], device=device)
        extra = {name: torch.tensor([values[:end]], device=device) for name, values in encoded.extra.items()}
        return ids, {"attention_mask": torch.ones_like(ids)} | extra

    @torch.no_grad()
    def reads_padding(self, encoded: Encoded) -> bool:
        """Whether a text with the model's own padding token means something else as ids than as embeddings.

        A decoder that classifies the last token before the padding does so by the ids.
        """
        pad: Any = self.model.config.get_text_config().pad_token_id
        if pad is None or pad not in encoded.input_ids:
            return False
        ids, inputs = self._alone(encoded)
        try:
            x = self.model.get_input_embeddings()(ids)
            ours, theirs = self.raw_logits(inputs_embeds=x, **inputs), self.raw_logits(input_ids=ids, **inputs)
            return not theirs.isnan().any() and not near(ours, theirs)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return False  # whether the model runs at all is for the trial to say

    def layout(self, texts: Sequence[Encoded]) -> Layout | None:
        """Tries the model: where may padding stand, and the mask be missing, without changing what it computes?

        The texts decide nothing but whether the model computes the same from ids as from embeddings.

        Returns:
            None where nothing the model was tried on gave numbers that tell.

        Raises:
            UnsupportedModelError: the model cannot be run on ``inputs_embeds``, or computes something else from them.
        """
        if getattr(self.model.config, "attention_type", None) == "block_sparse":
            raise UnsupportedModelError(
                f"{self.name} changes its attention from block_sparse to full for a short text, and stays so: its scores "
                "depend on the texts before. Load it with attention_type='original_full'."
            )
        sizes = lengths(self.model.config, self.max_length())
        with as_written(self.model):
            layout = None
            if self.found("embeddings", lambda: self._check_embeddings(texts) or None):
                fits = False
                with _if_there_is_room():
                    layout = self.found("layout", lambda: self._layout(sizes))
                    fits = True
                if not fits:  # here, where nothing keeps the failed call's tensors alive
                    layout = self._in_little_room(sizes)
        self.in_place = layout is not None and layout.in_place
        return layout

    def _in_little_room(self, sizes: Sequence[int]) -> Layout | None:
        """Where the trial does not fit into the device's memory: less is tried, on fewer tokens, and rows share less.

        It is not remembered for other explainers, as there may be more room by then.
        """
        for size in sorted(sizes, reverse=True)[1:]:
            with _if_there_is_room():
                found = self._layout([size], _COMPANY[:1])
                return None if found is None else PLAIN._replace(in_place=found.in_place)
        return PLAIN

    @property
    def name(self) -> str:
        """The model's class."""
        return type(unwrapped(self.model)).__name__

    def found(self, what: Any, find: Callable[[], _Found | None]) -> _Found | None:
        """What ``find`` finds of the model as it is; remembered for every explainer of it, unless it is None."""
        its, own = self.state()
        return remembered(unwrapped(self._model), its, (what, own), find)

    def state(self) -> tuple[Any, Any]:
        """What changes where what was found of the model may hold no more, and what it hangs on beside the model.

        Looked at once while explanations are at work. Weights that are written through ``.data`` leave no trace.
        """
        if self._state is not None:
            return self._state
        kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        modes = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds], torch.get_float32_matmul_precision()
        its = described(self._model), hooks_of(self._model), version_of(self._model), modes
        state = its, (type(self), len(self.tokenizer), self.max_length(), *self._extra())
        self._state = state if self._at_work else None
        return state

    def _extra(self) -> list[str]:
        return [name for name in EXTRA if name in self.tokenizer.model_input_names and takes(self.model, name)]

    @torch.no_grad()
    def _check_embeddings(self, texts: Sequence[Encoded]) -> bool:
        """Whether ids and their embeddings gave the same; tried on a text, on the next where that fails, on tokens by chance.

        Raises:
            UnsupportedModelError: they gave different logits, or the model never ran.
        """
        failed: UnsupportedModelError | None = None
        for encoded in [*texts[:_TEXTS], *self._random_text()]:
            ids, inputs = self._alone(encoded)
            try:
                with self._told("does not run on input_ids"):
                    right = self.raw_logits(input_ids=ids, **inputs)
                with self._told("does not run on inputs_embeds", self._by_ids()):
                    x = self.model.get_input_embeddings()(ids)
                    if not isinstance(x, Tensor):
                        raise UnsupportedModelError(
                            f"The input embeddings of {self.name} give a {type(x).__name__}, and not one vector for each token."
                        )
                    ours = self.raw_logits(inputs_embeds=x.clone(), **inputs)
            except UnsupportedModelError as error:
                failed = failed or error
                continue
            if right.isnan().any():
                continue  # of this text nothing can be told
            if not near(ours, right):
                raise self._another_function(float((ours - right).abs().max()), encoded)
            return True
        if failed is not None:
            raise failed
        return False

    def _another_function(self, apart: float, encoded: Encoded) -> UnsupportedModelError:
        pad: Any = self.model.config.get_text_config().pad_token_id
        hint = ""
        if pad in encoded.input_ids:
            hint = " A decoder that classifies may take the end-of-text token for padding: give it a padding token of its own."
        return UnsupportedModelError(
            self._by_ids()
            or f"{self.name} computes something else from inputs_embeds than from input_ids (logits differ by {apart:.3g}), so "
            f"its gradients would explain another function.{hint}"
        )

    def _by_ids(self) -> str | None:
        """Why a model with embeddings per layer cannot be explained."""
        config = self.model.config.get_text_config()
        if not any(getattr(config, name, None) for name in _TABLES):
            return None
        return (
            f"{self.name} cannot be explained, since it looks tokens up by their ids in further tables (embeddings per layer), "
            "and a point between two embeddings has no id. Models of its kind without these tables can be explained."
        )

    @contextlib.contextmanager
    def _told(self, what: str, known: str | None = None) -> Iterator[None]:
        """An error of the model as one of ours: that it does ``what``, or, where it is known, what is behind that."""
        try:
            yield
        except (torch.OutOfMemoryError, FastshapError):
            raise
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            message = f"{self.name} cannot be explained, since it {what}: {type(error).__name__}: {first}"
            if getattr(self.model.config, "is_encoder_decoder", False):
                message = f"{message.rstrip('.')}. Use a classifier that is an encoder or a decoder alone."
            raise UnsupportedModelError(known or message) from error

    def _usable(self) -> list[int]:
        """Ids of ordinary tokens."""
        config: Any = self.model.config.get_text_config()
        named: Any = (getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
        special = {*self.tokenizer.all_special_ids}
        special.update(*(one if isinstance(one, list) else [one] for one in named))
        rows = next(self.model.get_input_embeddings().parameters()).shape[0]
        count = min(rows, len(self.tokenizer))
        return [i for i in range(count) if i not in special] or list(range(count))

    def _random_text(self) -> list[Encoded]:
        usable = self._usable()
        length = min(_RANDOM, self.max_length() or _RANDOM)
        ids = [usable[(7919 * i + 13) % len(usable)] for i in range(length)]
        zeros = {name: [0] * length for name in self._extra()}
        return [
            Encoded(
                text="",
                input_ids=ids,
                special=[False] * length,
                offsets=[(0, 0)] * length,
                tokens=[""] * length,
                words=[None] * length,
                truncated=False,
                prompt_length=length,
                extra=zeros,
            )
        ]

    def _layout(self, sizes: Sequence[int], company: Sequence[float] = _COMPANY) -> Layout | None:
        """How rows may share a call, found with points of so many tokens each, shortest first."""
        extra = self._extra()
        z = points(self.model, [*sizes, *[sizes[-1]] * len(company)], self._usable())
        if not z:
            return None
        # Rows of one length that differ in all that a model could share among rows: the order of tokens, and their size.
        z, others = z[: len(sizes)], [size * point for size, point in zip(company, z[len(sizes) :], strict=True)]
        in_place = False

        def forward(inputs: Mapping[str, Any]) -> Tensor:
            return self.logits_in_company(self.model, own_embeddings(inputs) if in_place else inputs)

        with self._told("gives no gradients of inputs_embeds", self._by_ids()):
            try:
                first = ran(forward, z[0], masked(z[0], extra))
            except RuntimeError as error:
                in_place = "leaf Variable" in str(error) and "in-place" in str(error)
                if not in_place:
                    raise
                first = ran(forward, z[0], masked(z[0], extra))
            rest = [ran(forward, one, masked(one, extra)) for one in (*z[1:], *others)]
        found = [first, *rest]
        if not all(one.tells() for one in found):
            return None
        alone, together = found[: len(z)], found[len(z) - 1 :]
        inputs = masked(z[-1], extra)
        judge = Judge(forward, together, z[-1], inputs)
        self.check_model(forward, z[-1], inputs, alone[-1], judge)
        if not judge.spread:
            return None
        maskless = self._maskless(forward, torch.cat([z[-1], *others]), together, judge)
        return Layout(self._side(forward, z, alone, judge), maskless, in_place)

    def _side(self, forward: ToLogits, z: Sequence[Tensor], alone: Sequence[Ran], judge: Judge) -> str | None:
        for side in ("right", "left"):
            if side == "left" and not takes(self.model, "position_ids"):
                continue
            with _refused():
                if harmless(forward, z, alone, judge, self._extra(), side):
                    return side
        return None

    def _maskless(self, forward: ToLogits, z: Tensor, alone: Sequence[Ran], judge: Judge) -> bool:
        inputs = masked(z, self._extra())
        together = ran(forward, z, inputs)
        apart = max(judge.difference(together.row(i, slice(None)), one) for i, one in enumerate(alone))
        if apart > judge.most:
            raise UnsupportedModelError(
                f"{self.name} gives a text other numbers beside a second one than alone (apart by {apart:.3g} of the "
                "largest): its rows mix, or its outputs hang on chance. Neither can be explained."
            )
        fits = False
        with _refused():
            fits = without_mask(forward, z, alone, judge, inputs)
        return fits  # noqa: RET504

    def given(self, call: Call) -> Call:
        """The call as the model gets it: a model that writes into its embeddings gets its own."""
        return dataclasses.replace(call, inputs=own_embeddings(call.inputs)) if self.in_place else call

    def logits_in_company(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The logits of several rows, of the model or of a copy of it."""
        return self.logits_of(model, inputs)

    @abstractmethod
    def check_model(self, forward: ToLogits, z: Tensor, inputs: Mapping[str, Tensor], plain: Ran, judge: Judge) -> None:
        """Raises UnsupportedModelError where the model is not what its class name promises.

        Args:
            forward: runs it.
            plain: what it computes at z (1, L, D).
        """

    def look_again(self) -> None:
        """Before the first call for a window of texts: finds anew what calls can leave out, where the model has changed."""
        if self._looked_at != self.state():
            self._look()
            self._looked_at = self.state()

    @abstractmethod
    def _look(self) -> None:
        """See :meth:`look_again`."""

    def max_length(self) -> int | None:
        """Tokens the model takes at most; None where neither model nor tokenizer says."""
        named = (self.tokenizer.model_max_length, _positions(self.model))
        return min((limit for limit in named if isinstance(limit, int) and 0 < limit < 10**9), default=None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself where torch.compile wrapped it."""
    return getattr(model, "_orig_mod", model)


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model's forward has an argument of this name, or passes on what it does not name."""
    parameters = inspect.signature(unwrapped(model).forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def near(ours: Tensor, theirs: Tensor) -> bool:
    """The same logits but for rounding, as a share of the largest. NaN agrees with nothing, infinity with itself."""
    if ours.shape != theirs.shape:
        return False
    tolerance = max(1e-5, 4 * torch.finfo(ours.dtype).eps)
    ours, theirs = ours.float(), theirs.float()
    largest = theirs.abs().where(theirs.isfinite(), 0).max()
    return bool(((ours == theirs) | ((ours - theirs).abs() <= tolerance * largest)).all())


def own_embeddings(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs, with embeddings that may be written to."""
    return {**inputs, "inputs_embeds": inputs["inputs_embeds"].clone()}


@contextlib.contextmanager
def _if_there_is_room() -> Iterator[None]:
    """What does not fit into the device's memory is left out."""
    try:
        yield
    except torch.OutOfMemoryError:
        return


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """A way that the model refuses is none."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return


def _positions(model: nn.Module) -> int | None:
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from padding_idx + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(config, "max_position_embeddings", None)
