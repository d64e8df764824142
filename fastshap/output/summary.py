"""What a model leans on: the scores of each element over many outputs."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastshap import checks
from fastshap.engine.estimate import student_quantile
from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed
from fastshap.output.disk import replacing
from fastshap.output.record import Record
from fastshap.output.render import wording

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


@dataclass(frozen=True)
class Lean:
    """One element and target over all outputs.

    Attributes:
        element, target: the element, in lower case unless ``casefold=False``, and the target's name; without spaces around.
        count: how often the element stood in a text explained for the target; ``texts`` in how many of them.
        mean: of its attributions; ``low`` and ``high`` are the ends of a 95 % interval (Student's t over the occurrences, which
            takes them as independent; NaN for one).
        mean_abs: of their absolute values.
    """

    element: str
    target: str
    count: int
    texts: int
    mean: float
    low: float
    high: float
    mean_abs: float


@dataclass
class _Tally:
    """Welford's running mean and sum of squares."""

    count: int = 0
    texts: int = 0
    mean: float = 0.0
    squares: float = 0.0
    absolute: float = 0.0
    last: int = -1  # the number of the last text it was seen in

    def add(self, value: float, text: int) -> None:
        self.count += 1
        self.texts += self.last != text
        self.last = text
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)
        self.absolute += abs(value)

    def half(self) -> float:
        """Of the interval."""
        if self.count < 2:
            return math.nan
        return student_quantile(0.975, self.count - 1) * math.sqrt(self.squares / (self.count - 1) / self.count)


class Summary:
    """The elements of many outputs with their mean scores, a target's largest mean absolute scores first."""

    def __init__(
        self, rows: list[Lean], outputs: int, errors: int, min_count: int, explained: tuple[str, ...] = ()
    ) -> None:
        self.rows = rows
        self.outputs = outputs
        self.errors = errors
        self.min_count = min_count
        self.explained = explained  # what the scores are parts of: "logit", say

    def __iter__(self) -> Iterator[Lean]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(row.target for row in self.rows))

    def of(self, target: str) -> list[Lean]:
        """A target's rows."""
        if target not in self.targets:
            raise InvalidArgumentError(
                f"There is no target {target!r}; there are {', '.join(map(repr, self.targets))}."
            )
        return [row for row in self.rows if row.target == target]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each element and target; columns are the fields of :class:`Lean`.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        columns = [one.name for one in dataclasses.fields(Lean)]
        return needed("pandas", "tables").DataFrame([dataclasses.astuple(row) for row in self.rows], columns=columns)

    def show(self, top: int = 15, console: Console | None = None) -> None:
        """Prints a table for each target, with its ``top`` elements."""
        from fastshap.output.render.summary import show

        show(self, top, console)

    def plot(self, target: str | None = None, top: int = 20, ax: Any = None) -> Any:
        """Draws the elements of the largest mean absolute scores, with their intervals, and returns the Axes.

        Args:
            target: its name; by default the first.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        from fastshap.output.render.summary import plot

        return plot(self, target, top, ax)

    def to_html(self, path: str | os.PathLike[str], top: int = 50, title: str = "What the model leans on") -> None:
        """Writes a page with a table for each target, which fetches nothing and runs no script."""
        from fastshap.output.render.summary import page

        with replacing(path) as beside:
            beside.write_text(page(self, top, title), encoding="utf-8")

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from fastshap.output.render.summary import fragment

        return fragment(self, 15)


def summarize(outputs: Iterable[Record], *, min_count: int = 2, casefold: bool = True) -> Summary:
    """The mean signed and absolute score of each element and target over many outputs, with counts and intervals.

    Memory grows with the number of different elements, not with that of outputs.

    Args:
        outputs: any iterable, of outputs with comparable scores; errors are counted and left out.
        min_count: elements that stand in the texts less often are left out.
        casefold: count "The" and "the" as one.
    """
    least = checks.whole(min_count, "min_count", least=1)
    tallies: dict[tuple[str, str], _Tally] = {}
    count = errors = 0
    explained: dict[str, None] = {}
    for number, output in enumerate(outputs):
        count += 1
        if output.error is not None:
            errors += 1
            continue
        explained[wording.explained(output)] = None
        names = [_bare(element.casefold() if casefold else element) for element in output.elements]
        for target, row in zip(map(_bare, output.target_names), output.attributions.tolist(), strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isnan(value):
                    tallies.setdefault((target, name), _Tally()).add(value, number)
    order = {target: i for i, target in enumerate(dict.fromkeys(target for target, _ in tallies))}
    rows = [_lean(target, name, tally) for (target, name), tally in tallies.items() if tally.count >= least]
    rows.sort(key=lambda row: (order[row.target], -row.mean_abs, row.element))
    return Summary(rows, count, errors, least, tuple(explained))


def _bare(text: str) -> str:
    """Without the space that some tokenizers' elements begin with."""
    return text.strip() or text


def _lean(target: str, name: str, tally: _Tally) -> Lean:
    half = tally.half()
    return Lean(
        name,
        target,
        tally.count,
        tally.texts,
        tally.mean,
        tally.mean - half,
        tally.mean + half,
        tally.absolute / tally.count,
    )
