"""Many outputs in one file: JSON lines, CSV, or a page to look at. Outputs are taken and given one by one.

A file appears under its name when it is whole; where writing fails, what stood there before stays.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

from fastshap.errors import InvalidArgumentError
from fastshap.output.disk import StrPath, replacing
from fastshap.output.output import AttributionOutput, Row
from fastshap.output.record import Record
from fastshap.output.visible import printable

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # how a cell begins that a spreadsheet runs


def write_jsonl(outputs: Iterable[AttributionOutput], path: StrPath) -> int:
    """Writes a line of JSON for each output, and returns how many; ``read_jsonl`` reads them."""
    count = 0
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        for output in outputs:
            file.write(output.to_json() + "\n")
            count += 1
    return count


def read_jsonl(path: StrPath) -> Iterator[AttributionOutput]:
    """The outputs of a file, one after the other.

    Raises:
        InvalidArgumentError: a line is no output; the message names it, and the field.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                output = AttributionOutput.from_json(line)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"{_name(path)}, line {number}: {error}") from None
            yield output


def write_csv(outputs: Iterable[AttributionOutput], path: StrPath) -> int:
    """Writes a row for each output, target and element, for spreadsheets, and returns how many outputs there were.

    Columns: text, the output's number from 1 on, and those of :meth:`AttributionOutput.to_pandas`; NaN is an empty cell. A text
    that was not explained has no rows. Spreadsheets run what begins with ``=``, ``+``, ``-`` or ``@`` as a formula, full-width
    or behind a tab or line break too, so targets and elements that begin with one of these get an apostrophe before it;
    ``write_jsonl`` and ``write_parquet`` keep them as they are. Rows end in CRLF, as RFC 4180 has it.
    """
    count = 0
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # lines end in \r\n: older Pythons quote a cell with \r only where they do
        writer.writerow(("text", *Row._fields))
        for count, output in enumerate(outputs, 1):
            writer.writerows((count, *map(_cell, row)) for row in output.rows())
    return count


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"  # float32 to the bit
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def write_html(
    outputs: Iterable[Record | tuple[Any, Record]],
    path: StrPath,
    title: str = "fastshap",
    captions: Iterable[str | None] | None = None,
    uncertain: bool = False,
) -> int:
    """Writes one page that stands by itself, for one or many outputs, and returns how many.

    It fetches nothing and runs no script; texts are escaped. Scores and standard errors show on hover and on focus.

    Args:
        outputs: outputs, or pairs of an id and an output, as :func:`fastshap.jobs.read` gives them with
            ``ids=True``. The id stands above the output, in place of a number.
        captions: a line for each output, above its text; by default the predicted class where the model chose it.
        uncertain: begin with elements in colour too whose 95 % interval contains zero. Without it they have none, and each
            output has a switch that colours them.
    """
    from fastshap.output.render.page import write_page

    counted = _Counted(outputs)
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        write_page(counted, file, title, captions, uncertain)
    return counted.count


class _Counted:
    """An iterable that knows how much of it was taken."""

    def __init__(self, entries: Iterable[Record | tuple[Any, Record]]) -> None:
        self._entries = entries
        self.count = 0

    def __iter__(self) -> Iterator[Record | tuple[Any, Record]]:
        for entry in self._entries:
            self.count += 1
            yield entry


def _name(path: StrPath) -> str:
    return printable(os.fspath(path))
