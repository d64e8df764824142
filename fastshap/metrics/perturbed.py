"""Rows of perturbed texts: elements' tokens left out, replaced by another token, or by a baseline embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastshap.checks import baseline as checked_baseline
from fastshap.engine.packing import Item
from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.metrics.measures import Skip
from fastshap.types.baselines import BaselineSet

DELETE = "delete"
_TOKENS = ("mask", "pad")
NOTHING_LEFT = "nothing is left of the text where its elements are deleted"


class Replacement:
    """What stands in the place of an element.

    Args:
        given: "delete": nothing, its tokens are left out. "mask", "pad": the tokenizer's mask or padding token for each of
            its tokens; a padding token is read like any other. Otherwise a baseline embedding as an explainer takes it: a
            number, a tensor (D,), "mean", or the name of a token.

    Attributes:
        baseline: what an explainer takes as its baseline; None where tokens are left out or replaced by a token.
    """

    def __init__(self, given: Any, tokenizer: Any) -> None:
        self.given = given
        self.baseline: Any = None
        self._token: int | None = None
        if isinstance(given, BaselineSet) or (isinstance(given, Tensor) and given.ndim != 1):
            raise InvalidTypeError(
                "As a baseline, replacement is one embedding (D,), a number, 'mean' or a token's name."
            )
        if isinstance(given, str) and given in _TOKENS:
            self._token = getattr(tokenizer, f"{given}_token_id")
            if self._token is None:
                raise InvalidArgumentError(
                    f"The tokenizer has no {given} token; choose replacement='delete', a number, 'mean', or a token by name."
                )
        elif not isinstance(given, str) or given != DELETE:
            self.baseline = checked_baseline(given, "replacement")

    def apply(self, item: Item, tokens: np.ndarray) -> Item:
        """A row whose ``tokens`` (L,) bool are replaced.

        Raises:
            Skip: nothing is left.
        """
        if self.baseline is not None:
            return item._replace(special=(~tokens).tolist())
        if self._token is not None:
            ids = np.array(item.input_ids)
            ids[tokens] = self._token
            return item._replace(input_ids=ids.tolist())
        return without(item, tokens) if tokens.any() else item

    def __str__(self) -> str:
        return f"a baseline of shape {tuple(self.given.shape)}" if isinstance(self.given, Tensor) else f"{self.given}"


def without(item: Item, tokens: np.ndarray) -> Item:
    """A row without some of its tokens. A score at a place that is left out moves to the place before.

    Raises:
        Skip: nothing is left, or nothing before a score.
    """
    kept = np.flatnonzero(~tokens).tolist()
    now = np.cumsum(~tokens) - 1  # (L,): each token's place, or that of the last one before it that is kept
    positions = item.positions
    if positions is not None:
        positions = torch.from_numpy(now[positions.numpy()])
    sequences = [now[[place for place in one if not tokens[place]]].tolist() for one in item.sequences]
    if not kept or not all(sequences) or (positions is not None and int(positions.min()) < 0):
        raise Skip(NOTHING_LEFT)
    return item._replace(
        input_ids=[item.input_ids[i] for i in kept],
        special=[item.special[i] for i in kept],
        extra={name: [values[i] for i in kept] for name, values in item.extra.items()},
        positions=positions,
        sequences=sequences,
    )
