"""Scores of one text in columns: a table in a terminal, and a page.

Takes a :class:`fastshap.output.comparison.Comparison`, which stands behind this module in the import chain.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastshap.output.render import page as pages
from fastshap.output.render import plot, style, wording
from fastshap.output.render.markup import marked
from fastshap.output.render.parts import parted
from fastshap.output.render.settings import Recipes
from fastshap.output.visible import named, printable


def show(comparison: Any, console: Console | None) -> None:
    """A table of the elements."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("element")
    for heading in _headings(comparison):
        table.add_column(Text(printable(heading)), justify="right")
    form = _form(comparison)
    headings = _parts(comparison)
    for number, (row, cells) in enumerate(_rows(comparison)):
        if number in headings:
            table.add_row(Text(printable(headings[number]), style="dim"))
        numbers = (" ".join(filter(None, _written(*cell, form))).replace("−", "-") for cell in cells)
        table.add_row(Text(plot.label(row.element)), *numbers)
    console.print(table)
    for meaning in _meanings(comparison):
        console.print(Text(printable(meaning), style="dim"))
    for column in comparison.columns:
        console.print(Text(printable(f"{named(column.name)}: {_about(column)}"), style="dim"))


def lines_of(comparison: Any) -> str:
    """What :func:`show` prints, without colour."""
    file = io.StringIO()
    show(comparison, Console(file=file, color_system=None, force_jupyter=False, highlight=False))
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n"))


def page(comparison: Any, title: str, uncertain: bool = False) -> str:
    """A page that stands by itself."""
    settings = Recipes()
    for column in comparison.columns:
        settings.add(column.output)
    head = style.head(title, style.ARTICLE + style.TABLE + style.WIDE)
    return f"{head}{_content(comparison, 't1', uncertain)}\n{''.join(settings.html())}{style.END}"


def fragment(comparison: Any, name: str) -> str:
    """With its style, to stand within another page, in which nothing else has this name."""
    rules = style.style(style.ARTICLE + style.TABLE)
    return f'<div class="fastshap"><style>{rules}</style>{_content(comparison, name, uncertain=False)}</div>'


def _content(comparison: Any, name: str, uncertain: bool) -> str:
    largest = None
    if comparison.alike:
        largest = max(wording.largest_of(_scores(column)) for column in comparison.columns)
    columns = "".join(_column(column, largest) for column in comparison.columns)
    headings = "".join(f'<th scope="col"><bdi>{marked(heading)}</bdi></th>' for heading in _headings(comparison))
    form = _form(comparison)
    parts, wide = _parts(comparison), len(_headings(comparison)) + 1
    rows = "".join(
        (f'<tr><th scope="rowgroup" colspan="{wide}">{marked(parts[i])}</th></tr>\n' if i in parts else "")
        + f'<tr><th scope="row"><bdi>{marked(named(row.element))}</bdi></th>'
        + "".join(_cell(*cell, form, unsure) for cell, unsure in zip(cells, _unsure(comparison, cells), strict=True))
        + "</tr>\n"
        for i, (row, cells) in enumerate(_rows(comparison))
    )
    toggle, label = "", ""
    if any(any(_unsure(comparison, cells)) for _, cells in _rows(comparison)):
        unit = wording.unit_name(comparison.columns[0].output)
        toggle, label = pages.colour_switch(name, unit, uncertain)
    meanings = "; ".join(_meanings(comparison))
    meaning = f'<p class="e">{marked(meanings)}</p>' if meanings else ""
    return (
        f'<article>{toggle}<div class="w">{columns}</div>\n<div class="o"><table>'
        f'<thead><tr><th scope="col">element</th>{headings}</tr></thead>'
        f"<tbody>\n{rows}</tbody></table></div>{meaning}{label}</article>"
    )


def _column(column: Any, largest: float | None) -> str:
    record, target = column.output, named(column.output.target_names[column.target])
    about = _of_target(column)
    beside = f'<p class="e">{marked(about)}</p>' if about else ""
    shown = pages.view(record, column.target, pages.stretches_of(record), target, largest)
    return f'<section><p class="h" dir="auto">{marked(named(column.name))}</p>{beside}{shown}</section>'


def _of_target(column: Any) -> str:
    """The target, unless the column's name says it; its probability; and the prediction, if it is another class."""
    record, t = column.output, column.target
    target = record.target_names[t]
    known = wording.probability(record, t)
    predicted = target == record.predicted_label
    if known is None and predicted:
        known = record.probability
    parts = [
        "" if column.name.endswith(target.strip()) else f"target {named(target)}",
        "predicted" if predicted else "",
        "" if known is None else f"probability {known:.3f}",
    ]
    own = ", ".join(filter(None, parts))
    return "; ".join(filter(None, [own, None if predicted else wording.prediction(record)]))


def _scores(column: Any) -> list[float]:
    return column.output.attributions[column.target].tolist()


def _headings(comparison: Any) -> list[str]:
    headings = [named(column.name) for column in comparison.columns]
    return [*headings, "difference"] if _subtracted(comparison) else headings


_Cell = tuple[float, float]  # a score, and its standard error or NaN


def _rows(comparison: Any) -> Iterator[tuple[Any, list[_Cell]]]:
    """The elements with what stands in their columns."""
    for row, errors in zip(comparison.elements, comparison.standard_errors, strict=True):
        cells = list(zip(row.scores, errors, strict=True))
        yield row, [*cells, (row.difference, math.nan)] if _subtracted(comparison) else cells


def _parts(comparison: Any) -> dict[int, str]:
    """The names of the text's parts, by the rows that they begin with; none where the text has one."""
    parts = parted(comparison.segments, len(comparison.elements), comparison.columns[0].output)
    return {part.first: part.name for part in parts}


def _subtracted(comparison: Any) -> bool:
    return comparison.alike and len(comparison.columns) == 2


def _meanings(comparison: Any) -> Iterator[str]:
    """What the table's signs and its last column mean."""
    if not all(math.isnan(error) for errors in comparison.standard_errors for error in errors):
        yield "± standard error"
    if _subtracted(comparison):
        first, second = (named(column.name) for column in comparison.columns)
        yield f"difference: {second} minus {first}"


def _about(column: Any) -> str:
    record = column.output
    explains = f"explains the {wording.explained(record)}, one score per {wording.unit(record)}"
    return "; ".join(filter(None, [_of_target(column), explains]))


def _form(comparison: Any) -> str:
    """One for all columns, so that they can be compared by eye."""
    return wording.form_of(max(wording.largest_of(_scores(column)) for column in comparison.columns))


def _unsure(comparison: Any, cells: list[_Cell]) -> list[bool]:
    """Of a row's cells, whether the 95 % interval of the score contains zero; of a difference nobody asks."""
    freedoms = [column.output.degrees_of_freedom for column in comparison.columns]
    known = zip(cells, [*freedoms, 0], strict=False)
    return [freedom > 0 and wording.may_be_zero(score, error, freedom) for (score, error), freedom in known]


def _cell(value: float, error: float, form: str, unsure: bool) -> str:
    score, beside = _written(value, error, form)
    quiet = f' <span class="e">{beside}</span>' if beside else ""
    return f'<td class="{_side(value)}{" y" if unsure else ""}">{score}{quiet}</td>'


def _written(value: float, error: float, form: str) -> tuple[str, str]:
    """A score, and its standard error where there is one."""
    if math.isnan(value):
        return "–", ""
    return pages.with_minus(value, form), "" if math.isnan(error) else f"±{pages.with_minus(error, form[1:])}"


def _side(value: float) -> str:
    return "p" if value > 0 else "n" if value < 0 else "z"
