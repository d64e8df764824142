"""The columns of a table that a job reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold ids and texts; of pair and choices one at most."""

    id: str
    text: str
    pair: str | None = None  # the second texts of pairs
    choices: str | None = None  # lists of choices

    @property
    def parts(self) -> list[str]:
        """What makes up a text, as tables call it: text, and perhaps pair or choices."""
        return [name for name in ("text", "pair", "choices") if getattr(self, name) is not None]

    @property
    def options(self) -> dict[str, Any]:
        """Their columns by the options that name them."""
        return {f"{name}_column": getattr(self, name) for name in self.parts}

    @property
    def of_texts(self) -> list[str]:
        """The columns of these."""
        return [*self.options.values()]

    def named(self, columns: Sequence[list[Any]] | None) -> dict[str, list[Any]] | None:
        """Their values by their names in tables."""
        return None if columns is None else dict(zip(self.parts, columns, strict=True))
