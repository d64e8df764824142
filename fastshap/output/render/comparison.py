"""Scores of one text in columns: a table in a terminal, and a page.

Takes a :class:`fastshap.output.comparison.Comparison`, which stands behind this module in the import chain.
"""

from __future__ import annotations

import io
import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastshap.output.render import page as pages
from fastshap.output.render import plot, style, wording
from fastshap.output.render.markup import marked
from fastshap.output.visible import named, printable


def show(comparison: Any, console: Console | None) -> None:
    """A table of the elements."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("element")
    for heading in _headings(comparison):
        table.add_column(Text(printable(heading)), justify="right")
    form = _form(comparison)
    for row in comparison.elements:
        numbers = (_number(value, form).replace("−", "-") for value in _values(comparison, row))
        table.add_row(Text(plot.label(row.element)), *numbers)
    console.print(table)
    if difference := _difference(comparison):
        console.print(Text(printable(difference), style="dim"))
    for column in comparison.columns:
        console.print(Text(printable(f"{named(column.name)}: {_about(column)}"), style="dim"))


def lines_of(comparison: Any) -> str:
    """What :func:`show` prints, without colour."""
    file = io.StringIO()
    show(comparison, Console(file=file, color_system=None, force_jupyter=False, highlight=False))
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n"))


def page(comparison: Any, title: str) -> str:
    """A page that stands by itself."""
    return f"{style.head(title, style.ARTICLE + style.TABLE + style.WIDE)}{_content(comparison)}\n{style.END}"


def fragment(comparison: Any) -> str:
    """With its style, to stand within another page."""
    rules = style.style(style.ARTICLE + style.TABLE)
    return f'<div class="fastshap"><style>{rules}</style>{_content(comparison)}</div>'


def _content(comparison: Any) -> str:
    largest = None
    if comparison.alike:
        largest = max(wording.largest_of(_scores(column)) for column in comparison.columns)
    columns = "".join(_column(column, largest) for column in comparison.columns)
    headings = "".join(f'<th scope="col"><bdi>{marked(heading)}</bdi></th>' for heading in _headings(comparison))
    form = _form(comparison)
    rows = "".join(
        f'<tr><th scope="row"><bdi>{marked(named(row.element))}</bdi></th>'
        + "".join(f'<td class="{_side(value)}">{_number(value, form)}</td>' for value in _values(comparison, row))
        + "</tr>\n"
        for row in comparison.elements
    )
    difference = _difference(comparison)
    meaning = f'<p class="e">{marked(difference)}</p>' if difference else ""
    return (
        f'<article><div class="w">{columns}</div>\n<div class="o"><table>'
        f'<thead><tr><th scope="col">element</th>{headings}</tr></thead>'
        f"<tbody>\n{rows}</tbody></table></div>{meaning}</article>"
    )


def _column(column: Any, largest: float | None) -> str:
    record, target = column.output, named(column.output.target_names[column.target])
    about = wording.prediction(record)
    beside = "" if about is None else f'<p class="e">{marked(about)}</p>'
    shown = pages.view(record, column.target, pages.stretches_of(record), target, largest)
    return f'<section><p class="h" dir="auto">{marked(named(column.name))}</p>{beside}{shown}</section>'


def _scores(column: Any) -> list[float]:
    return column.output.attributions[column.target].tolist()


def _headings(comparison: Any) -> list[str]:
    headings = [named(column.name) for column in comparison.columns]
    return [*headings, "difference"] if _subtracted(comparison) else headings


def _values(comparison: Any, row: Any) -> tuple[float, ...]:
    return (*row.scores, row.difference) if _subtracted(comparison) else row.scores


def _subtracted(comparison: Any) -> bool:
    return comparison.alike and len(comparison.columns) == 2


def _difference(comparison: Any) -> str:
    """What the column of that name says; nothing where there is none."""
    if not _subtracted(comparison):
        return ""
    first, second = (named(column.name) for column in comparison.columns)
    return f"difference: {second} less {first}"


def _about(column: Any) -> str:
    record = column.output
    parts = [f"target {named(record.target_names[column.target])}", wording.prediction(record)]
    parts += [f"explains the {wording.explained(record)}, one score per {wording.unit(record)}"]
    return "; ".join(filter(None, parts))


def _form(comparison: Any) -> str:
    """One for all columns, so that they can be compared by eye."""
    return wording.form_of(max(wording.largest_of(_scores(column)) for column in comparison.columns))


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else pages.with_minus(value, form)


def _side(value: float) -> str:
    return "p" if value > 0 else "n" if value < 0 else "z"
