"""Many results at a glance: a line for each, and the first of them as a page's fragment."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence

from fastshap.output.noise import LEAST
from fastshap.output.record import Record
from fastshap.output.render import page, style, wording
from fastshap.output.render.parts import texts_of
from fastshap.output.visible import named, printable

_LINES = 100  # of a list that is printed
_SHOWN = 20  # outputs of a list in a notebook
_WIDE = 40  # characters of a text
_TOP = 3  # elements of a line
_PARTS = 3  # of a text


def lines_of(records: Sequence[Record]) -> str:
    """A line for each output: its text, target and strongest elements."""
    lines = [f"{i}. {_line(record)}" for i, record in enumerate(records[:_LINES], 1)]
    if len(records) > _LINES:
        lines.append(f"… and {len(records) - _LINES:,} more")
    return "\n".join(lines) or "no outputs"


def name_of(record: Record) -> str:
    """A few words that tell an output from others."""
    what = _cut(record.error) if record.error is not None else f"{len(record.elements)} elements"
    targets = reprlib.repr([named(name) for name in record.target_names]) if record.target_names else "no targets"
    return printable(f"{_text(record)}, {targets}, {what}")


def fragment(records: Sequence[Record], name: str) -> str:
    """The first outputs, with their style, to stand within another page."""
    shown = "".join(page.article(record, f"{name}-{i}") for i, record in enumerate(records[:_SHOWN]))
    left = len(records) - _SHOWN
    more = f'<p class="e">… and {left:,} more, which to_html writes to a page.</p>' if left > 0 else ""
    return f'<div class="fastshap"><style>{style.style(style.ARTICLE)}</style>{shown}{more}</div>'


def _line(record: Record) -> str:
    if record.error is not None:
        return printable(f"{_cut(record.text)!r}: not explained: {record.error}")
    what = wording.prediction(record) or f"target {named(record.target_names[0])}"
    first = 0
    if record.predicted_label in record.target_names:
        first = record.target_names.index(record.predicted_label)
    elif wording.prediction(record) is not None:
        what += f", target {named(record.target_names[0])}"
    share = float(record.reliability[first])
    noise = f"; mostly noise: {wording.reliability(record, first)}" if share < LEAST else ""
    return printable(f"{_text(record)}: {what}: {_strongest(record, first)}{noise}")


def _strongest(record: Record, t: int) -> str:
    scores = [(score, i) for i, score in enumerate(record.attributions[t].tolist()) if not math.isnan(score)]
    strongest = sorted(scores, key=lambda one: -abs(one[0]))[:_TOP]
    return ", ".join(f"{_cut(named(record.elements[i]))} {score:+.3g}" for score, i in strongest)


def _text(record: Record) -> str:
    """The text in quotes; several, where it is made of them."""
    texts = texts_of(record)
    wide = _WIDE if len(texts) == 1 else _WIDE * 3 // 4
    shown = [repr(_cut(text, wide)) for text in texts[:_PARTS]]
    return " | ".join(shown + ["…"] * (len(texts) > _PARTS))


def _cut(text: str, wide: int = _WIDE) -> str:
    line = " ".join(text.split())
    return line if len(line) <= wide else line[: wide - 1] + "…"
