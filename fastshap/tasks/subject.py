"""The model that a task explains: what runs, what is known of it, and when that holds no more."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fastshap.engine.packing import Call
from fastshap.engine.run import device_of
from fastshap.errors import UnsupportedModelError
from fastshap.models.provenance import version_of
from fastshap.models.replicas import hooks_of
from fastshap.models.tree import modules_of
from fastshap.settings import Settings
from fastshap.tasks.first_token import configuration, structure_of
from fastshap.tasks.trial import Judge, Ran, ToLogits, remembered
from fastshap.tasks.twice_read import outputs_of, start_of
from fastshap.text.encode import EXTRA, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_Found = TypeVar("_Found")


class Subject:
    """A model with its tokenizer and the settings, as a task runs it."""

    takes_pairs: ClassVar[bool] = False  # whether a text may be a pair of texts
    takes_words: ClassVar[bool] = False  # whether it may be words that are already split
    takes_chats: ClassVar[bool] = False  # whether it may be a conversation
    takes_choices: ClassVar[bool] = False  # whether it is a text with choices
    takes_contrasts: ClassVar[bool] = False  # whether a target may be a contrast of two
    takes_windows: ClassVar[bool] = False  # whether a long text can be read in windows
    writes_targets: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
        self._model = self._running = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.in_place = False  # until the model has been tried
        self._at_work = False
        self._state: tuple[Any, Any] | None = None  # of the model, while explanations are at work
        self._counted: tuple[Any, int | None] = None, None  # a view, and its embeddings of positions

    @property
    def model(self) -> Any:
        """What runs: the model, or a view of it while explanations are at work."""
        return self._running

    @property
    def model_name(self) -> str:
        """The model's class."""
        return type(unwrapped(self.model)).__name__

    @contextlib.contextmanager
    def running_on(self, model: Any) -> Iterator[None]:
        """While explanations are at work."""
        self._running, self._at_work, self._state = model, True, None
        try:
            yield
        finally:
            self._running, self._at_work, self._state = self._model, False, None

    # What a task says of its models

    def logits_of(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The logits of ``model`` for its keyword arguments: (R, classes), or (R, L, classes) for a row at each token.

        Args:
            model: the model, a view of it, or a copy on another device.
            inputs: input_ids or inputs_embeds (R, L, D), or both where the model :meth:`reads_twice`; attention_mask (R, L)
                where there is padding, and further ones.
        """
        logits: Tensor = self.outputs_of(model, inputs).logits
        return logits

    def logits_in_company(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """:meth:`logits_of` where ``inputs`` may have several rows; for models that then need to be told more."""
        return self.logits_of(model, inputs)

    def check_model(self, forward: ToLogits, z: Tensor, inputs: Mapping[str, Tensor], plain: Ran, judge: Judge) -> None:
        """Called while the model is tried: raises UnsupportedModelError where it is not what its class name promises.

        Args:
            forward: runs it.
            z: a point (1, L, D), with the further ``inputs`` of the model.
            plain: what it computes there.
            judge: tells rounding from another function.
        """

    def reads_twice(self) -> bool:
        """Whether the model is an encoder with a decoder of which this task gives the decoder no text of its own."""
        own = unwrapped(self.model)
        has_both = bool(getattr(own.config, "is_encoder_decoder", False))
        return has_both and "decoder_input_ids" in _arguments(own.forward)[0]

    # What follows from these

    def outputs_of(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """What ``model`` gives for its keyword arguments, as :meth:`logits_of` gets them."""
        if "inputs_embeds" not in inputs or not self.reads_twice():
            return model(**inputs)
        (start,) = self.found("decoder start", lambda: (start_of(self.model, self.ordinary_tokens()),)) or (None,)
        return outputs_of(model, inputs, start)

    def embedded(self, ids: Tensor) -> dict[str, Any]:
        """The inputs that stand for ids (R, L) where the model reads embeddings."""
        further = {"input_ids": ids} if self.reads_twice() else {}
        return {"inputs_embeds": self.model.get_input_embeddings()(ids)} | further

    def raw_logits(self, **inputs: Tensor) -> Tensor:
        """The logits of the model that runs now."""
        return self.logits_of(self.model, inputs)

    def given(self, call: Call) -> Call:
        """The call as the model gets it: a model that writes into its embeddings gets its own."""
        return dataclasses.replace(call, inputs=own_embeddings(call.inputs)) if self.in_place else call

    def alone(self, encoded: Encoded) -> tuple[Tensor, dict[str, Tensor]]:
        """The ids (1, L) of one text, or of the first sequence in it, and the model's further inputs."""
        device = device_of(self.model)
        places = encoded.sequences[0] if encoded.sequences else range(len(encoded))
        ids = torch.tensor([[encoded.input_ids[i] for i in places]], device=device)
        extra = {
            name: torch.tensor([[values[i] for i in places]], device=device) for name, values in encoded.extra.items()
        }
        return ids, {"attention_mask": torch.ones_like(ids)} | extra

    def extra(self) -> list[str]:
        """Further inputs with a value for each token that tokenizer and model both have."""
        return [name for name in EXTRA if name in self.tokenizer.model_input_names and takes(self.model, name)]

    def ordinary_tokens(self) -> list[int]:
        """Ids of tokens that are not special."""
        config: Any = self.model.config.get_text_config()
        named: Any = (getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
        special = {*self.tokenizer.all_special_ids}
        special.update(*(one if isinstance(one, list) else [one] for one in named))
        rows = next(self.model.get_input_embeddings().parameters()).shape[0]
        count = min(rows, len(self.tokenizer))
        return [i for i in range(count) if i not in special] or list(range(count))

    def max_length(self) -> int | None:
        """Tokens the model takes at most; None where neither model nor tokenizer says."""
        named = (self.tokenizer.model_max_length, self._positions())
        return min((limit for limit in named if isinstance(limit, int) and 0 < limit < 10**9), default=None)

    def _positions(self) -> int | None:
        running, (view, known) = self._running, self._counted
        if running is self._model:
            known = _embedded_positions(running)
        elif running is not view:
            known = _embedded_positions(running)
            self._counted = running, known
        if known is not None:
            return known
        config: Any = running.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(config, "max_position_embeddings", None)

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
        # A view is another one where the model's modules, or what they hold, have changed.
        made = (structure_of(self._model), hooks_of(self._model)) if self._running is self._model else self._running
        its = made, configuration(self._model), version_of(self._model), modes
        state = its, (type(self), len(self.tokenizer), self.max_length(), *self.extra())
        self._state = state if self._at_work else None
        return state


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself where torch.compile wrapped it."""
    return getattr(model, "_orig_mod", model)


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model's forward has an argument of this name, or passes on what it does not name."""
    names, others = _arguments(unwrapped(model).forward)
    return others or name in names


def _arguments(function: Any) -> tuple[frozenset[str], bool]:
    """The names of a function's arguments, and whether it takes others too."""
    function = getattr(function, "__func__", function)
    try:
        return _arguments_of[function]
    except (KeyError, TypeError):
        parameters = inspect.signature(function).parameters
    found = frozenset(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    with contextlib.suppress(TypeError):  # no weak reference to it can be made
        _arguments_of[function] = found
    return found


_arguments_of: weakref.WeakKeyDictionary[Any, tuple[frozenset[str], bool]] = weakref.WeakKeyDictionary()


def own_embeddings(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs, with embeddings that may be written to."""
    return {**inputs, "inputs_embeds": inputs["inputs_embeds"].clone()}


def _embedded_positions(model: nn.Module) -> int | None:
    """RoBERTa and its kin count positions from padding_idx + 1."""
    for parent in modules_of(model):
        for name in parent._modules:
            if name.endswith("position_embeddings"):
                module = parent._modules[name]
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    return module.num_embeddings - module.padding_idx - 1
    return None


def table_shape(model: Any) -> tuple[int, int]:
    """(tokens, D) of the model's input embeddings.

    Raises:
        UnsupportedModelError: it takes none, or has no table of them.
    """
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
