"""A table of measures as a page that stands by itself."""

from __future__ import annotations

from collections.abc import Mapping

from fastshap.metrics.result import FaithfulnessTable, MetricResult
from fastshap.output.render import style
from fastshap.output.render.markup import marked
from fastshap.output.render.page import with_minus

_BETTER = {True: "higher is better", False: "lower is better", None: ""}
_CLEARLY = 2.0  # standard errors


def page(table: FaithfulnessTable, title: str, about: Mapping[str, str]) -> str:
    """The measures, and the differences from the first method; clear ones are underlined.

    Args:
        about: what was measured, line by line.
    """
    head = style.head(title, style.ARTICLE + style.TABLE + style.WIDE)
    lines = "".join(f"<dt>{marked(name)}</dt><dd>{marked(value)}</dd>" for name, value in about.items())
    first = table.methods[0]
    means = _table(table, "mean ± standard error over the texts", {m: _means(table, m) for m in table.methods})
    differences = {m: _differences(table, m, first) for m in table.methods[1:]}
    beside = _table(table, f"difference from {first}, text by text", differences) if differences else ""
    note = (
        f"Underlined: better than {first} by more than two standard errors; underlined with dashes: worse."
        if beside
        else ""
    )
    return (
        f'{head}<article>{means}{beside}<p class="k">{marked(note)}</p></article>'
        f'<div class="g"><dl>{lines}{_counts(table)}</dl></div>\n{style.END}'
    )


def _table(table: FaithfulnessTable, caption: str, rows: Mapping[str, list[str]]) -> str:
    first = table.methods[0]
    heads = "".join(
        f'<th scope="col">{marked(label)}<br>{_BETTER[table[first, label].higher_is_better]}</th>'
        for label in table.measures
    )
    lines = "".join(
        f'<tr><th scope="row"><bdi>{marked(method)}</bdi></th>{"".join(cells)}</tr>\n' for method, cells in rows.items()
    )
    return (
        f'<div class="o"><table><caption>{marked(caption)}</caption><thead><tr><th scope="col">method</th>{heads}</tr></thead>'
        f"<tbody>\n{lines}</tbody></table></div>"
    )


def _means(table: FaithfulnessTable, method: str) -> list[str]:
    return [f"<td>{_figure(table[method, label], '.3f')}</td>" for label in table.measures]


def _differences(table: FaithfulnessTable, method: str, first: str) -> list[str]:
    return [_difference(table.difference(method, first, label)) for label in table.measures]


def _difference(one: MetricResult) -> str:
    """In the colour of its side, where it is clear."""
    side = ""
    if one.higher_is_better is not None and abs(one.mean) > _CLEARLY * one.standard_error:
        side = ' class="p"' if (one.mean > 0) == one.higher_is_better else ' class="n"'
    return f"<td{side}>{_figure(one, '+.3f')}</td>"


def _figure(one: MetricResult, form: str) -> str:
    return "–" if one.count == 0 else f"{with_minus(one.mean, form)} ± {with_minus(one.standard_error, '.3f')}"


def _counts(table: FaithfulnessTable) -> str:
    """How many texts each measure has, and why others were skipped."""
    said: dict[str, list[str]] = {}
    for label in table.measures:
        one = table[table.methods[0], label]
        lost = "".join(f"; skipped {count} ({reason})" for reason, count in one.skipped.items())
        noted = "".join(f"; {count} ({note})" for note, count in one.notes.items())
        said.setdefault(f"{one.count}{lost}{noted}", []).append(label)
    return "".join(
        f"<dt>measured{'' if len(said) == 1 else marked(' of ' + ', '.join(labels))}</dt><dd>{marked(what)}</dd>"
        for what, labels in said.items()
    )
