"""What a model leans on, as a table in a terminal, a picture, and a page.

Takes a :class:`fastshap.output.summary.Summary`, which stands behind this module in the import chain.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastshap.output.render import plot as pictures
from fastshap.output.render import style, wording
from fastshap.output.render.markup import marked
from fastshap.output.render.page import with_minus
from fastshap.output.visible import named, printable


def show(summary: Any, top: int, console: Console | None) -> None:
    """A table for each target."""
    console = console or Console(highlight=False)
    for target in summary.targets:
        table = Table(title=Text(f"target {printable(named(target))}"), title_justify="left", box=None, pad_edge=False)
        table.add_column("element")
        for name in ("count", "mean", "95 % interval", "mean absolute"):
            table.add_column(name, justify="right")
        for row in summary.of(target)[:top]:
            colour = "blue" if row.mean >= 0 else "dark_orange3"
            table.add_row(
                Text(pictures.label(row.element)),
                str(row.count),
                Text(f"{row.mean:+.3f}", style=colour),
                _interval(row).replace("−", "-"),
                f"{row.mean_abs:.3f}",
            )
        console.print(table)
    console.print(Text(printable(_about(summary)), style="dim"))


def plot(summary: Any, target: str | None, top: int, ax: Any) -> Any:
    """The mean scores of a target's strongest elements, with their intervals."""
    target = summary.targets[0] if target is None and summary.targets else target or ""
    rows = summary.of(target)[: max(1, top)]
    means = torch.tensor([row.mean for row in rows])
    low = torch.tensor([row.low for row in rows]).where(torch.tensor([row.count > 1 for row in rows]), means)
    high = 2 * means - low
    ax = pictures.bars(
        [f"{pictures.label(row.element)} ({row.count})" for row in rows], means, means - low, high - means, ax
    )
    ax.set_title(f"target {pictures.label(target)}", parse_math=False, loc="left")
    ax.set_xlabel("mean attribution, with its 95 % interval")
    return ax


def page(summary: Any, top: int, title: str) -> str:
    """A page that stands by itself."""
    return f"{style.head(title, style.ARTICLE + style.TABLE)}{_content(summary, top)}\n{style.END}"


def fragment(summary: Any, top: int) -> str:
    """A table for each target, with bars."""
    rules = style.style(style.ARTICLE + style.TABLE)
    return f'<div class="fastshap"><style>{rules}</style>{_content(summary, top)}</div>\n'


def _content(summary: Any, top: int) -> str:
    tables = "".join(_table(target, summary.of(target)[:top]) for target in summary.targets)
    note = "95 % intervals over the occurrences; blue (+) supports the target, hatched orange (−) opposes it."
    return f'{tables}<p class="k">{marked(_about(summary))} {note}</p>'


def _table(target: str, rows: list[Any]) -> str:
    # Bars share the scale of the whole table, intervals included.
    ends = (abs(end) for row in rows for end in (row.mean, row.low, row.high) if math.isfinite(end))
    largest = max(ends, default=0.0) or 1.0
    lines = "".join(
        f'<tr><th scope="row"><bdi>{marked(named(row.element))}</bdi></th><td>{row.count}</td>'
        f'<td>{with_minus(row.mean, "+.3f")}</td><td class="more">{_interval(row)}</td>'
        f"<td>{with_minus(row.mean_abs, '.3f')}</td>"
        f'<td class="bars">{_bar(row, largest)}</td></tr>\n'
        for row in rows
    )
    return (
        f'<div class="o"><table>'
        f"<caption>target <bdi>{marked(named(target))}</bdi></caption><thead><tr>"
        '<th scope="col">element</th><th scope="col">count</th><th scope="col">mean</th>'
        '<th scope="col" class="more">95 % interval</th><th scope="col">mean absolute</th>'
        f'<th class="bars" aria-hidden="true"></th></tr></thead><tbody>\n{lines}</tbody></table></div>'
    )


def _bar(row: Any, largest: float) -> str:
    """The mean from the middle, and its interval as a line; decoration, as the numbers stand beside it."""
    mean = wording.share(row.mean, largest)
    side = "p" if row.mean >= 0 else "n"
    parts = f'<i class="{side}" style="left:{50 + 50 * min(0.0, mean):.1f}%;width:{50 * abs(mean):.1f}%"></i>'
    if math.isfinite(row.low) and math.isfinite(row.high):
        low, wide = 50 * row.low / largest + 50, 50 * (row.high - row.low) / largest
        parts += f'<u style="left:{low:.1f}%;width:{wide:.1f}%"></u>'
    return f'<span aria-hidden="true">{parts}</span>'


def _interval(row: Any) -> str:
    return "–" if math.isnan(row.low) else f"{with_minus(row.low, '+.3f')} to {with_minus(row.high, '+.3f')}"


def _about(summary: Any) -> str:
    count = f"{summary.outputs:,} text" + ("s" if summary.outputs != 1 else "")
    lost = f", {summary.errors} of them not explained" if summary.errors else ""
    times = {1: "all elements", 2: "elements that occur at least twice"}
    least = times.get(summary.min_count, f"elements that occur at least {summary.min_count} times")
    what = f"parts of the {' or the '.join(summary.explained)}; " if summary.explained else ""
    return f"{count}{lost}; {what}{least}."
