"""Rows that hold several sequences for the model: a question's choices, hypotheses about a text, two texts.

A text's tokens stand in its row once. Each sequence is some of them, in order: what two sequences share has one embedding, one
noise and one score. ``Encoded.sequences`` says which tokens, and ``Call.sequences`` in which columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastshap.engine.packing import Call
from fastshap.errors import FastshapError, InvalidArgumentError
from fastshap.text.encode import Encoded, join

_OVERLAP = 0.25  # of a window, that the one before holds too
_LEAST = 4  # tokens of the text in a window

ToOutput = Callable[[Mapping[str, Any]], Tensor]


def of_each(forward: ToOutput, call: Call) -> Tensor:
    """(R, S, ...): what ``forward`` gives for each sequence of each row.

    Args:
        forward: takes a model's keyword arguments with rows (R S), and gives (R S, ...).
    """
    assert call.sequences is not None
    rows, count, _ = call.sequences.shape
    if not call.apart or min(call.widths) == max(call.widths):
        return forward(_unrolled(call, call.sequences)).unflatten(0, (rows, count))
    # Padding is not harmless: one sequence after the other.
    return torch.stack([forward(one_of(call, s)) for s in range(count)], 1)


def mean_of(each: Tensor) -> Tensor:
    """(R, classes), of these or of (R, S, classes)."""
    return each if each.ndim == 2 else each.mean(1)


def one_of(call: Call, s: int) -> dict[str, Tensor]:
    """A model's keyword arguments for one of the sequences: rows (R), as wide as the longest."""
    assert call.sequences is not None
    part = slice(-call.widths[s], None) if call.padding_side == "left" else slice(call.widths[s])
    return _unrolled(call, call.sequences[:, s : s + 1, part])


def _unrolled(call: Call, columns: Tensor) -> dict[str, Tensor]:
    """A row (W columns) for each sequence: (R S, W, D) and (R S, W)."""
    row = torch.arange(len(columns), device=columns.device)[:, None, None]
    there = columns >= 0
    at = columns.clamp_min(0)
    inputs = {name: tensor[row, at].flatten(0, 1) for name, tensor in call.inputs.items()}
    mask = there.flatten(0, 1).long()
    inputs["attention_mask"] = mask
    if call.padding_side == "left":
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    return inputs


def joined(parts: Sequence[Encoded], sequences: Sequence[Sequence[int]]) -> Encoded:
    """Texts one after the other, a line each, as one text of as many parts.

    Args:
        sequences: for each sequence the numbers of the parts that it is made of.
    """
    whole, starts = parts[0], [0]
    for part in parts[1:]:
        starts.append(len(whole))
        whole = join(whole, part, "\n")
    places = [range(start, start + len(part)) for start, part in zip(starts, parts, strict=True)]
    each = tuple([place for number in numbers for place in places[number]] for numbers in sequences)
    return whole.with_sequences(each)


def in_windows(encoded: Encoded | FastshapError, limit: int) -> Encoded | FastshapError:
    """A text of more than ``limit`` tokens as overlapping windows of equal size, each with the template's tokens around it.

    They are as few as hold all of the text, if each shares a quarter with the one before.
    """
    if isinstance(encoded, FastshapError) or len(encoded) <= limit:
        return encoded
    if encoded.parts:
        return InvalidArgumentError(
            "Only a single text can be read in windows; cut the pair or the conversation yourself."
        )
    special, length = encoded.special, len(encoded)
    first = next(i for i in range(length) if not special[i])
    last = next(i for i in range(length, 0, -1) if not special[i - 1])
    size = limit - first - (length - last)
    if size < _LEAST:
        return InvalidArgumentError(f"The model takes {limit} tokens, which leaves no room for windows.")
    count = math.ceil((last - first - size) / (size * (1 - _OVERLAP))) + 1
    starts = [first + round(i * (last - first - size) / (count - 1)) for i in range(count)]
    around = [*range(first)], [*range(last, length)]
    return encoded.with_sequences(tuple([*around[0], *range(at, at + size), *around[1]] for at in starts))
