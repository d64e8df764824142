"""A SentenceTransformer as a model that takes ``inputs_embeds``: its encoder, and the modules that make a vector of a text."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from fastshap.errors import UnsupportedModelError


class SentenceEmbedder(nn.Module):
    """The modules of a ``sentence_transformers.SentenceTransformer``, which are its own: nothing is copied.

    Attributes:
        encoder: the model of transformers in its first module.
        further: its other modules, in order: pooling, and what follows.
        max_seq_length: tokens that it takes at most; None if it does not say.
    """

    def __init__(self, encoder: nn.Module, further: list[nn.Module], max_seq_length: int | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.further = nn.ModuleList(further)
        self.max_seq_length = max_seq_length
        self.config: Any = encoder.config
        self.training = encoder.training

    def get_input_embeddings(self) -> Any:
        """Those of the encoder."""
        return self.encoder.get_input_embeddings()  # type: ignore[operator]

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **further: Any,
    ) -> Tensor:
        """(R, E): a vector for each text."""
        known = inspect.signature(self.encoder.forward).parameters
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        given = {name: value for name, value in (given | further).items() if value is not None and name in known}
        features: dict[str, Any] = {"token_embeddings": self.encoder(**given).last_hidden_state}
        if attention_mask is None:
            attention_mask = features["token_embeddings"].new_ones(features["token_embeddings"].shape[:2]).long()
        features["attention_mask"] = attention_mask
        for module in self.further:
            features = module(features)
        found: Tensor = features["sentence_embedding"]
        return found


def opened(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """A SentenceTransformer as its embedder and tokenizer; anything else as it is.

    Raises:
        UnsupportedModelError: its first module is no model of transformers.
    """
    if not isinstance(model, nn.Sequential) or "SentenceTransformer" not in (k.__name__ for k in type(model).__mro__):
        return model, tokenizer
    first, *further = model
    encoder = getattr(first, "auto_model", None)
    if not isinstance(encoder, nn.Module):
        raise UnsupportedModelError(
            f"The first module of this {type(model).__name__} is a {type(first).__name__}, which runs no model of transformers "
            "with token embeddings; fastshap explains those that do."
        )
    found = SentenceEmbedder(encoder, further, getattr(first, "max_seq_length", None))
    return found, model.tokenizer if tokenizer is None else tokenizer
