"""What the model saw, as outputs hold it, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastshap.output.record import TARGET_POSITIONS, Record
from fastshap.text.encode import EXTRA, Encoded

if TYPE_CHECKING:
    from transformers import BatchEncoding


def model_inputs(encoded: Encoded, positions: Tensor | None = None) -> BatchEncoding:
    """``model_inputs_to_explain``, each entry (1, L) or more; ``positions`` (T,) where the output keeps them."""
    from transformers import BatchEncoding  # here, so that importing fastshap loads no more of it than it must

    data = {
        "input_ids": torch.tensor([encoded.input_ids], device="cpu"),
        "attention_mask": torch.ones(1, len(encoded), dtype=torch.int64, device="cpu"),
        "special_tokens_mask": torch.tensor([encoded.special], device="cpu").long(),
        "offset_mapping": torch.tensor([encoded.offsets], device="cpu"),
    }
    if positions is not None:
        data[TARGET_POSITIONS] = positions[None]
    return BatchEncoding(data | {name: torch.tensor([values], device="cpu") for name, values in encoded.extra.items()})


def encoded_of(record: Record) -> tuple[Encoded, Tensor | None]:
    """The tokenised text of an output, and the positions (T,) that it keeps. Its elements know the tokens' words."""
    inputs = record.model_inputs_to_explain
    given = {name: value[0].tolist() for name, value in inputs.items()}
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
    positions = inputs.get(TARGET_POSITIONS)
    return encoded, None if positions is None else positions[0]
