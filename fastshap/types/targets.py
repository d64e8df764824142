"""Targets that are more than a class or a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastshap.errors import InvalidArgumentError


@dataclass(frozen=True)
class Contrast:
    """Why ``target`` rather than ``other``: the difference of their scores, as one target.

    For a classifier both are classes, by number or label. For a language model both are texts that may follow the input: the
    first token in which they differ is explained, behind what they have in common (Yin and Neubig 2022, "Interpreting
    Language Models with Contrastive Explanations").

    Raises:
        InvalidArgumentError: the two are the same.

    Example:
        >>> (output,) = fastshap.explain("Weak but witty.", targets=fastshap.Contrast("positive", "negative"))
        >>> output.target_names
        ['positive rather than negative']
    """

    target: Any
    other: Any

    def __post_init__(self) -> None:
        if isinstance(self.target, Contrast) or isinstance(self.other, Contrast):
            raise InvalidArgumentError("A contrast is of two targets, neither of which is a contrast.")
        if self.target is None or self.other is None:
            raise InvalidArgumentError("A contrast names both of its targets; neither may be None.")
        try:
            same = type(self.target) is type(self.other) and bool(self.target == self.other)
        except (RuntimeError, ValueError):  # arrays of numbers
            same = [*self.target] == [*self.other]
        if same:
            raise InvalidArgumentError(
                f"A contrast of {self.target!r} with itself is zero everywhere; name two targets that differ."
            )


def contrasted(target: str, other: str) -> str:
    """What a contrast is called."""
    return f"{target} rather than {other}"
