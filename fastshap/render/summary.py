"""What a model leans on, as a table in a terminal, a picture, and a page.

Takes a :class:`fastshap.summary.Summary`, which stands behind this module in the import chain.
"""

from __future__ import annotations

import html
import math
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastshap.render import plot as pictures
from fastshap.render.terminal import printable

_NOTE = "95 % intervals over the occurrences; blue (+) speaks for the target, orange (-) against it."


def show(summary: Any, top: int, console: Console | None) -> None:
    """A table for each target."""
    console = console or Console(highlight=False)
    for target in summary.targets:
        table = Table(title=Text(f"target {printable(target)}"), title_justify="left", box=None, pad_edge=False)
        table.add_column("element")
        for name in ("count", "mean", "95 % interval", "mean absolute"):
            table.add_column(name, justify="right")
        for row in summary.of(target)[:top]:
            style = "blue" if row.mean >= 0 else "dark_orange3"
            table.add_row(
                Text(pictures.label(row.element)),
                str(row.count),
                Text(f"{row.mean:+.3f}", style=style),
                _interval(row),
                f"{row.mean_abs:.3f}",
            )
        console.print(table)
    console.print(Text(_about(summary), style="dim"))


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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>body{{margin:0;padding:1rem;background:Canvas}}"
        ":root{color-scheme:light dark}</style></head>"
        f"<body><h1 style='font:600 1.3rem system-ui,sans-serif'>{_text(title)}</h1>\n{fragment(summary, top)}</body></html>\n"
    )


def fragment(summary: Any, top: int) -> str:
    """A table for each target, with bars."""
    tables = "".join(_table(target, summary.of(target)[:top]) for target in summary.targets)
    return f"<div class=fastshap-summary><style>{_STYLE}</style>{tables}<p>{_text(_about(summary))} {_NOTE}</p></div>\n"


def _table(target: str, rows: list[Any]) -> str:
    # Bars share the scale of the whole table, intervals included.
    ends = (abs(end) for row in rows for end in (row.mean, row.low, row.high) if not math.isnan(end))
    largest = max(ends, default=0.0) or 1.0
    lines = "".join(
        f"<tr><th scope=row><bdi>{_text(row.element)}</bdi><td>{row.count}<td>{row.mean:+.3f}<td>{_interval(row)}"
        f"<td>{row.mean_abs:.3f}<td>{_bar(row, largest)}\n"
        for row in rows
    )
    return (
        f"<table><caption>target <bdi>{_text(target)}</bdi></caption><thead><tr><th scope=col>element<th scope=col>count"
        "<th scope=col>mean<th scope=col>95 % interval<th scope=col>mean absolute<th scope=col aria-hidden=true></thead>"
        f"<tbody>\n{lines}</tbody></table>"
    )


def _bar(row: Any, largest: float) -> str:
    """The mean from the middle, and its interval as a line; decoration, as the numbers stand beside it."""
    start, size = 50 * min(0.0, row.mean) / largest + 50, 50 * abs(row.mean) / largest
    parts = f"<i class={'f' if row.mean >= 0 else 'a'} style='left:{start:.1f}%;width:{size:.1f}%'></i>"
    if not math.isnan(row.low):
        low, wide = 50 * row.low / largest + 50, 50 * (row.high - row.low) / largest
        parts += f"<u style='left:{low:.1f}%;width:{wide:.1f}%'></u>"
    return f"<span aria-hidden=true>{parts}</span>"


def _interval(row: Any) -> str:
    return "–" if math.isnan(row.low) else f"{row.low:+.3f} to {row.high:+.3f}"


def _about(summary: Any) -> str:
    lost = f", {summary.errors} of them not explained" if summary.errors else ""
    return f"{summary.outputs} outputs{lost}; elements that stand there at least {summary.min_count} times."


def _text(text: str) -> str:
    """Escaped, with control and invisible formatting characters made visible."""
    return html.escape(printable(text))


_STYLE = """
.fastshap-summary{color-scheme:light dark;color:CanvasText;font:.95rem/1.4 system-ui,sans-serif;max-width:60rem;
--for:light-dark(#2166de,#6ea0f0);--against:light-dark(#d6600a,#f0923f)}
.fastshap-summary table{border-collapse:collapse;width:100%;margin:0 0 1.5rem;font-variant-numeric:tabular-nums}
.fastshap-summary caption{text-align:start;font-weight:600;padding:.3rem 0}
.fastshap-summary th,.fastshap-summary td{padding:.15rem .5rem;text-align:end;border-bottom:1px solid #8884;white-space:nowrap}
.fastshap-summary th:first-child{text-align:start;white-space:normal;overflow-wrap:anywhere;font-weight:400}
.fastshap-summary thead th{font-weight:600;white-space:normal}
.fastshap-summary td:last-child{width:40%;min-width:8rem}
.fastshap-summary span{display:block;position:relative;height:1em;
background:linear-gradient(#8888,#8888) 50%/1px 100% no-repeat}
.fastshap-summary i,.fastshap-summary u{position:absolute;top:0;height:100%;print-color-adjust:exact}
.fastshap-summary i.f{background:var(--for)}
.fastshap-summary i.a{background:repeating-linear-gradient(135deg,var(--against) 0 5px,transparent 5px 7px),#d6600a55}
.fastshap-summary u{top:45%;height:10%;background:currentColor;text-decoration:none}
.fastshap-summary p{color:GrayText;font-size:.85rem}
@media(max-width:600px){.fastshap-summary td:last-child,.fastshap-summary th:last-child,
.fastshap-summary :is(td,th):nth-child(4){display:none}}
"""
