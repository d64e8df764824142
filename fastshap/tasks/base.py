"""What every task provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from fastshap.engine import Call, Forward
from fastshap.errors import FastshapError
from fastshap.text import Encoded
from fastshap.types import ModelTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """One text ready to be explained."""

    encoded: Encoded  # all tokens the model sees
    targets: Tensor  # (T,) int64
    target_names: list[str]  # a label each, or a token each


Predict = Callable[[list[Encoded], Forward], list[Tensor]]


class Task(ABC):
    """Turns texts and targets into what the engine works on, and model outputs into scores (R, T)."""

    class_endings: ClassVar[tuple[str, ...]]
    model_task: ClassVar[ModelTask]
    padding_side: ClassVar[str] = "right"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        inference_mode: Callable[[Tensor], Tensor],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.inference_mode = inference_mode

    @property
    def equal_lengths(self) -> bool:
        """Whether padding would change what the model computes."""
        return False

    @abstractmethod
    def prepare(
        self, texts: Sequence[Any], targets: Sequence[Any] | None, predict: Predict
    ) -> list[Prepared | FastshapError]:
        """Tokenised texts with their targets; what is wrong with a text stands in its place.

        Args:
            targets: one entry a text, from :meth:`split_targets`, or None.
            predict: runs the model on unperturbed texts and returns what a forward gives, one row a text.
        """

    @abstractmethod
    def split_targets(self, targets: Any, count: int) -> list[Any] | None:
        """``targets`` as the user gave them, one entry for each of ``count`` texts; None where the task chooses."""

    @abstractmethod
    def scores(self, call: Call) -> Tensor:
        """The targets' scores (R, T) of one model call, after the inference mode."""

    def max_length(self) -> int | None:
        """Tokens the model takes at most; None where neither model nor tokenizer says."""
        named = (self.tokenizer.model_max_length, _positions(self.model))
        return min((limit for limit in named if isinstance(limit, int) and 0 < limit < 10**9), default=None)


def _positions(model: nn.Module) -> int | None:
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from padding_idx + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(config, "max_position_embeddings", None)
