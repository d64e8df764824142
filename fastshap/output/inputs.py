"""What the model saw, as outputs hold it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastshap.output.record import OF_TARGETS, SEQUENCES, Record
from fastshap.tasks import Prediction, Prepared, Scope
from fastshap.tasks.base import POSITIONS
from fastshap.text.encode import EXTRA, Encoded

if TYPE_CHECKING:
    from transformers import BatchEncoding


def model_inputs(encoded: Encoded, kept: Mapping[str, Tensor]) -> BatchEncoding:
    """``model_inputs_to_explain``, each entry (1, L) or more; ``kept``: those of the targets, without the first dimension."""
    from transformers import BatchEncoding  # here, so that importing fastshap loads no more of it than it must

    data = {
        "input_ids": torch.tensor([encoded.input_ids], device="cpu"),
        "attention_mask": torch.ones(1, len(encoded), dtype=torch.int64, device="cpu"),
        "special_tokens_mask": torch.tensor([encoded.special], device="cpu").long(),
        "offset_mapping": torch.tensor([encoded.offsets], device="cpu"),
    }
    data |= {name: values[None] for name, values in kept.items()}
    if encoded.sequences:
        mask = torch.zeros(1, len(encoded), len(encoded.sequences), dtype=torch.int64, device="cpu")
        for s, places in enumerate(encoded.sequences):
            mask[0, places, s] = 1
        data[SEQUENCES] = mask
    return BatchEncoding(data | {name: torch.tensor([values], device="cpu") for name, values in encoded.extra.items()})


def saved_in(record: Record) -> tuple[Prepared, dict[str, Tensor]]:
    """What an output holds of a text that was ready to be explained, and what it keeps of the targets beside it."""
    kept = {name: value[0] for name, value in record.model_inputs_to_explain.items() if name.startswith(OF_TARGETS)}
    prediction = Prediction(record.predicted_label, record.probability, record.target_probabilities)
    scope = Scope(kept.get(POSITIONS), joined=record.target_weights)
    return Prepared(_encoded_of(record), record.targets, record.target_names, prediction, scope), kept


def _encoded_of(record: Record) -> Encoded:
    """The tokenised text. The record's elements know the tokens' words and parts."""
    inputs = record.model_inputs_to_explain
    given = {name: value[0].tolist() for name, value in inputs.items()}
    ids = given["input_ids"]
    return Encoded(
        text=record.text,
        input_ids=ids,
        special=[bool(flag) for flag in given["special_tokens_mask"]],
        offsets=[(start, end) for start, end in given["offset_mapping"]],
        tokens=[""] * len(ids),
        words=[None] * len(ids),
        truncated=record.truncated,
        parts=_parts(record),
        sequences=_sequences(inputs.get(SEQUENCES)),
        extra={name: given[name] for name in EXTRA if name in given},
    )


def _parts(record: Record) -> tuple[int, ...]:
    """The first token of each further part. Special tokens may lie in another one than they did: they are in no element."""
    first: dict[int, int] = {}
    for member, segment in zip(record.element_tokens, record.segments, strict=False):
        first[segment] = min(first.get(segment, member[0]), member[0])
    return tuple(first[segment] for segment in sorted(first)[1:])


def _sequences(mask: Tensor | None) -> tuple[list[int], ...]:
    return () if mask is None else tuple(one.nonzero().flatten().tolist() for one in mask[0].unbind(1))
