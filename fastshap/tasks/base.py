"""What every task provides."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastshap.batches import Call
from fastshap.engine import Forward, device_of
from fastshap.errors import FastshapError, InvalidArgumentError, UnsupportedModelError
from fastshap.inputs import Tokens
from fastshap.text import Encoded, encode
from fastshap.types import ModelTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """One text ready to be explained."""

    encoded: Encoded  # all tokens the model sees
    targets: Tensor  # (T,) int64
    target_names: list[str]  # a label each, or a token each
    probability: float | None = None  # of the predicted class


Predict = Callable[[list[Encoded], Forward], list[Tensor]]


class Layout(NamedTuple):
    """How rows of several texts may share a model call."""

    padding_side: str | None  # None: only rows of one length may
    maskless: bool  # rows of one length need no attention mask


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
        self.model = model
        self.tokenizer = tokenizer
        self.inference_mode = inference_mode
        self.seed = seed

    @abstractmethod
    def tokenised(self, sources: Sequence[Any], targets: Sequence[Any] | None, options: Mapping[str, Any]) -> Any:
        """What :meth:`prepare` goes on with. This much does not run the model, and may be done in another thread.

        Args:
            sources: one entry a text, from :func:`fastshap.inputs.sources`.
            targets: one entry a text, from :meth:`split_targets`, or None.
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
            predict: runs the model on unperturbed texts and returns what a forward gives, one row a text.
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
            return not near(self.raw_logits(inputs_embeds=x, **inputs), self.raw_logits(input_ids=ids, **inputs))
        except (TypeError, ValueError, RuntimeError):
            return False  # whether the model runs at all is for the trial to say

    @torch.no_grad()
    def layout(self, encoded: Encoded) -> Layout:
        """Tries the model on one text: where may padding stand, and the mask be missing, without changing what it computes?

        Raises:
            UnsupportedModelError: the model cannot be run on ``inputs_embeds``, or computes something else from them.
        """
        limit = self.max_length()
        ids, inputs = self._alone(encoded, None if limit is None else max(1, limit - 3))  # the padding has to fit too
        name = type(self.model).__name__
        if getattr(self.model.config, "attention_type", None) == "block_sparse":
            raise UnsupportedModelError(
                f"{name} changes its attention from block_sparse to full for a short text, and stays so: its scores depend on "
                "the texts before. Load it with attention_type='original_full'."
            )
        try:
            right = self.raw_logits(input_ids=ids, **inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{name} cannot be explained, since it does not run on the first text: {type(error).__name__}: {error}"
            ) from error
        try:
            x = self.model.get_input_embeddings()(ids)
            ours = self.raw_logits(inputs_embeds=x, **inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{name} cannot be explained, since it does not run on inputs_embeds: {type(error).__name__}: {error}"
            ) from error
        if not near(ours, right):
            raise UnsupportedModelError(
                f"{name} computes something else from inputs_embeds than from input_ids (logits differ by "
                f"{float((ours - right).abs().max()):.3g}), so its gradients would explain another function. A decoder that "
                "classifies may take the end-of-text token for padding: give it a padding token of its own."
            )
        self.check_model(x, inputs, ours)
        return Layout(self._padding(x, inputs, ours), self._maskless(x, inputs, ours))

    def _maskless(self, x: Tensor, inputs: dict[str, Tensor], ours: Tensor) -> bool:
        bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
        try:
            return near(self.raw_logits(inputs_embeds=x, **bare), ours)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return False

    def _padding(self, x: Tensor, inputs: dict[str, Tensor], ours: Tensor) -> str | None:
        for side in ("right", "left"):
            if side == "left" and not takes(self.model, "position_ids"):
                continue
            room = (0, 3) if side == "right" else (3, 0)
            padded = {key: F.pad(value, room) for key, value in inputs.items()}
            if side == "left":
                padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp_min(0)
            theirs = self.raw_logits(inputs_embeds=F.pad(x, (0, 0, *room)), **padded)
            if theirs.ndim == 3:
                theirs = theirs[:, room[0] : theirs.shape[1] - room[1]]
            if near(theirs, ours):
                return side
        return None

    @abstractmethod
    def check_model(self, x: Tensor, inputs: dict[str, Tensor], logits: Tensor) -> None:
        """Raises UnsupportedModelError where the model is not what its class name promises."""

    @abstractmethod
    def look_again(self) -> None:
        """Before each window of texts: finds anew what calls can leave out, where the model has changed."""

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


def near(ours: Tensor, theirs: Tensor, closely: bool = False) -> bool:
    """Equal but for rounding, as a share of the largest; NaN of theirs is left for the explanation itself to report."""
    if ours.shape != theirs.shape:
        return False
    tolerance = 1e-3 if ours.dtype in (torch.float32, torch.float64) else 5e-2
    if closely:
        tolerance /= 10
    ours, theirs = ours.float(), theirs.float()
    same = (ours == theirs) | theirs.isnan()  # infinities have no difference
    largest = theirs.abs().where(theirs.isfinite(), 0).max()
    return bool((same | ((ours - theirs).abs() <= tolerance * largest + 1e-7)).all())


def _positions(model: nn.Module) -> int | None:
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from padding_idx + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(config, "max_position_embeddings", None)
