"""Two outputs of one text, or the targets of one output, side by side."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fastshap.errors import InvalidArgumentError, InvalidTypeError
from fastshap.output.disk import replacing
from fastshap.output.output import AttributionOutput
from fastshap.output.render import wording

if TYPE_CHECKING:
    from rich.console import Console


class ComparedColumn(NamedTuple):
    """One target of one output."""

    name: str
    output: AttributionOutput
    target: int  #: its number


class ComparedElement(NamedTuple):
    """One element with its score in each column, NaN where a column has no such element or cannot see it."""

    element: str
    scores: tuple[float, ...]
    difference: float  #: the second column's score minus the first's; NaN but for two columns of the same kind of score


class Comparison:
    """Scores of the same text in columns side by side. It shows itself in a notebook.

    Attributes:
        columns: what is compared.
        elements: those of all columns in reading order. Elements of two columns are one where they stand for the same
            characters of the text, white space around them aside; of several for the same characters, each with its like.
        standard_errors: for each element, the standard errors of its scores, one per column; NaN where there is none.
        segments: for each element, the part of the text that it stands in, from 0; empty if it is not known.
        alike: whether the scores are of one kind, so that they share a colour scale and may be subtracted.
    """

    def __init__(self, columns: list[ComparedColumn]) -> None:
        self.columns = columns
        kinds = {(wording.explained(one.output), one.output.reduction, one.output.input_x_gradient) for one in columns}
        self.alike = len(kinds) == 1
        self.elements, self.standard_errors, self.segments = _elements(columns, self.alike)

    def show(self, console: Console | None = None) -> None:
        """Prints a table of the elements with their scores."""
        from fastshap.output.render.comparison import show

        show(self, console)

    def to_html(self, path: str | os.PathLike[str], title: str = "fastshap", uncertain: bool = False) -> None:
        """Writes a page that stands by itself: the texts side by side, and a table of their elements.

        Args:
            uncertain: begin with elements in colour too whose 95 % interval contains zero; the page has a switch for them.
        """
        from fastshap.output.render.comparison import page

        with replacing(path) as beside:
            beside.write_text(page(self, title, uncertain), encoding="utf-8", newline="\n")

    def _repr_html_(self) -> str:
        """What notebooks show."""
        import secrets

        from fastshap.output.render.comparison import fragment

        return fragment(self, f"fs{secrets.token_hex(4)}")

    def __str__(self) -> str:
        from fastshap.output.render.comparison import lines_of

        return lines_of(self)

    def __repr__(self) -> str:
        return f"Comparison({[one.name for one in self.columns]!r}, {len(self.elements)} elements)"


def compare(
    output: AttributionOutput,
    other: AttributionOutput | None = None,
    *,
    targets: int | str | Sequence[int | str] | None = None,
    names: Sequence[str] | None = None,
) -> Comparison:
    """Two outputs of the same text side by side, of two models or settings say; or the targets of one output.

    Args:
        other: another output of the same text; without it, the targets of ``output`` are compared.
        targets: names or numbers of targets. Of one output, which of them, by default all; of two, one for both or one for
            each, by default the first of ``output``, which ``other`` has to have too. Where each has just one, these are
            paired, whatever they are called.
        names: what the columns are called; by default the targets, or the outputs' models, with the targets where they differ.

    Raises:
        InvalidArgumentError: an output is a text's error; the texts differ; there is no such target; less than two columns;
            the outputs have no element in common.
    """
    given: tuple[Any, ...] = (output,) if other is None else (output, other)
    for one in given:
        if not isinstance(one, AttributionOutput):
            only = " Take one of the list: outputs[0]." if isinstance(one, list) else ""
            raise InvalidTypeError(f"compare takes outputs; got {type(one).__name__}.{only}")
        one.number_of(0)  # a text's error has no target
    columns = _of_one(output, targets) if other is None else _of_two(output, other, targets)
    if names is not None:
        if isinstance(names, str) or len(names) != len(columns):
            raise InvalidArgumentError(f"names must hold {len(columns)} names, one a column; got {names!r}.")
        columns = [column._replace(name=name) for column, name in zip(columns, names, strict=True)]
    return Comparison(columns)


def _of_one(output: AttributionOutput, targets: int | str | Sequence[int | str] | None) -> list[ComparedColumn]:
    wanted = range(len(output.target_names)) if targets is None else targets
    numbers = [output.number_of(one) for one in ([wanted] if isinstance(wanted, int | str) else wanted)]
    if len(numbers) < 2:
        raise InvalidArgumentError(
            "A comparison needs two columns or more: an output of several targets (targets='all'), or a second output."
        )
    return [ComparedColumn(output.target_names[t].strip(), output, t) for t in numbers]


def _of_two(
    one: AttributionOutput, other: AttributionOutput, targets: int | str | Sequence[int | str] | None
) -> list[ComparedColumn]:
    if one.text != other.text:
        raise InvalidArgumentError(f"The outputs are of different texts: {one.text[:60]!r} and {other.text[:60]!r}.")
    if targets is None:
        paired = len(one.target_names) == len(other.target_names) == 1 or one.target_names == other.target_names
        targets = 0 if paired else one.target_names[0]
    wanted = [targets, targets] if isinstance(targets, int | str) else list(targets)
    if len(wanted) != 2:
        raise InvalidArgumentError(f"targets must be one target for both outputs, or one for each; got {targets!r}.")
    numbers = [one.number_of(wanted[0])]
    try:
        numbers.append(other.number_of(wanted[1]))
    except InvalidArgumentError as error:
        if not isinstance(targets, str):
            raise
        both = [targets.strip(), other.target_names[0].strip()]
        raise InvalidArgumentError(f"{str(error).removesuffix('.')}; targets={both!r} names one for each.") from None
    models = [output.provenance.model for output in (one, other)]
    names = models if all(models) and models[0] != models[1] else ["first", "second"]
    chosen = [output.target_names[t].strip() for output, t in zip((one, other), numbers, strict=True)]
    if chosen[0] != chosen[1]:
        names = [f"{name}: {target}" for name, target in zip(names, chosen, strict=True)]
    return [ComparedColumn(name, output, t) for name, output, t in zip(names, (one, other), numbers, strict=True)]


_Place = tuple[int | str, int, int]  # where it begins and ends, or its name and 0; and how many such there were with it


def _places(output: AttributionOutput) -> list[tuple[_Place, int]]:
    """For each element what it is known by in every output of the text, and where it stands in reading order."""
    found, at = [], 0
    seen: Counter[tuple[int | str, int]] = Counter()
    for element, (start, end) in zip(output.elements, output.element_spans, strict=True):
        part = output.text[start:end]
        known: tuple[int | str, int] = (element, 0)  # a special token, say
        if part:
            first = start + len(part) - len(part.lstrip()) if part.strip() else start
            known = (first, first + len(part.strip() or part))
            at = max(at, first)
        seen[known] += 1  # the tokens of one character all have its span
        found.append(((*known, seen[known]), at))
    return found


def _elements(
    columns: list[ComparedColumn], alike: bool
) -> tuple[list[ComparedElement], list[tuple[float, ...]], list[int]]:
    """The elements of all columns, the standard errors of their scores, and their parts of the text."""
    named: dict[_Place, str] = {}
    segments: dict[_Place, int] = {}
    order: dict[_Place, int] = {}
    found: list[dict[_Place, tuple[float, float]]] = []
    for column in columns:
        places = _places(column.output)
        for (place, at), element in zip(places, column.output.elements, strict=True):
            named.setdefault(place, element)
            order.setdefault(place, at)
        segments |= zip((place for place, _ in places), column.output.segments, strict=False)
        scores = column.output.attributions[column.target].tolist()
        known = column.output.standard_error
        errors = known[column.target].tolist() if known.numel() else [math.nan] * len(scores)
        each = zip(places, scores, errors, strict=True)
        found.append({place: (score, error) for (place, _), score, error in each})
    if not set.intersection(*map(set, found)):
        raise InvalidArgumentError(
            "The outputs have no element in common; explain both texts with the same granularity, WORD say."
        )
    rows, all_errors = [], []
    in_order = sorted(order, key=lambda place: order[place])
    for place in in_order:
        values, errors_of = zip(*(one.get(place, (math.nan, math.nan)) for one in found), strict=True)
        difference = values[1] - values[0] if alike and len(values) == 2 else math.nan
        rows.append(ComparedElement(named[place], values, difference))
        all_errors.append(errors_of)
    return rows, all_errors, [segments[place] for place in in_order] if len(segments) == len(order) else []
