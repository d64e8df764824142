"""Many outputs in one file: JSON lines, Parquet, or a page to look at. Outputs are taken and given one by one.

A file appears under its name when it is whole; where writing fails, what stood there before stays.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed
from fastshap.output.disk import StrPath, whole
from fastshap.output.output import AttributionOutput, Row
from fastshap.output.plain import encodable, number
from fastshap.output.record import Record
from fastshap.output.visible import printable

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 1024  # of a Parquet row group
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # how a cell begins that a spreadsheet runs
_SECOND = {"predicted_label", "target_probabilities"}  # columns that files of schema version 1 lack


def write_jsonl(outputs: Iterable[AttributionOutput], path: StrPath) -> int:
    """Writes a line of JSON for each output, and returns how many; ``read_jsonl`` reads them."""
    count = 0
    with whole(path) as beside, beside.open("w", encoding="utf-8") as file:
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
    with whole(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
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
    outputs: Iterable[Record],
    path: StrPath,
    title: str = "fastshap",
    captions: Iterable[str | None] | None = None,
) -> int:
    """Writes one page that stands by itself, for one or many outputs, and returns how many.

    It fetches nothing and runs no script; texts are escaped. Scores and standard errors show on hover and on focus.

    Args:
        captions: a line for each output, above its text; by default the predicted class where the model chose it.
    """
    from fastshap.output.render.page import write_page

    counted = _Counted(outputs)
    with whole(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        write_page(counted, file, title, captions)
    return counted.count


class _Counted:
    """An iterable that knows how much of it was taken."""

    def __init__(self, entries: Iterable[Record]) -> None:
        self._entries = entries
        self.count = 0

    def __iter__(self) -> Iterator[Record]:
        for entry in self._entries:
            self.count += 1
            yield entry


def write_parquet(outputs: Iterable[AttributionOutput], path: StrPath) -> int:
    """Writes a row for each output, and returns how many; columns are those of :func:`to_arrow`.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    parquet = needed("pyarrow.parquet", "tables")
    rest, count = iter(outputs), 0
    options = {"compression": "zstd", "write_page_checksum": True}
    with whole(path) as beside, parquet.ParquetWriter(beside, _schema(), **options) as writer:
        while group := list(islice(rest, _ROWS)):
            writer.write_table(to_arrow(group))
            count += len(group)
    return count


def read_parquet(path: StrPath) -> Iterator[AttributionOutput]:
    """The outputs of a file that ``write_parquet`` wrote, one after the other.

    Raises:
        InvalidArgumentError: the file was written by something else, or is damaged; the message names the row and the field.
        MissingPackageError: pyarrow is not installed.
    """
    arrow, parquet = needed("pyarrow", "tables"), needed("pyarrow.parquet", "tables")
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if missing := set(_schema().names) - _SECOND - set(file.schema_arrow.names):
                raise InvalidArgumentError(
                    f"{_name(path)} holds no outputs: it lacks the columns {', '.join(sorted(missing))}."
                )
            batches = file.iter_batches(batch_size=64)
            for count, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield _of_row(row, f"{_name(path)}, row {count}")
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # there is no such file, say
            raise
        raise InvalidArgumentError(f"{_name(path)} is no Parquet that can be read: {error}") from None


def _of_row(row: dict[str, Any], place: str) -> AttributionOutput:
    try:
        return AttributionOutput.from_dict(_from_row(row))
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{place}: {error}") from None


def _name(path: StrPath) -> str:
    return printable(os.fspath(path))


def to_arrow(outputs: Iterable[AttributionOutput]) -> pa.Table:
    """A row for each output.

    ``attributions`` and ``standard_error`` are ``list<float>``, row after row of (t, G), with NaN as it is: ``elements`` has G
    entries and ``target_names`` t. ``settings``, ``provenance`` and ``model_inputs`` are JSON.

    Raises:
        MissingPackageError: pyarrow is not installed.
    """
    arrow = needed("pyarrow", "tables")
    return arrow.Table.from_pylist([_row(output) for output in outputs], schema=_schema())


def _schema() -> pa.Schema:
    arrow = needed("pyarrow", "tables")
    strings, floats, longs = arrow.list_(arrow.string()), arrow.list_(arrow.float32()), arrow.list_(arrow.int64())
    return arrow.schema(
        [
            ("schema_version", arrow.int32()),
            ("task", arrow.string()),
            ("text", arrow.string()),
            ("elements", strings),
            ("element_spans", arrow.list_(longs)),
            ("element_tokens", arrow.list_(longs)),
            ("targets", longs),
            ("target_names", strings),
            ("attributions", floats),
            ("standard_error", floats),
            ("degrees_of_freedom", arrow.int32()),
            ("unassigned", floats),
            ("convergence_delta", floats),
            ("predicted_label", arrow.string()),
            ("probability", arrow.float64()),
            ("target_probabilities", floats),
            ("error", arrow.string()),
            ("truncated", arrow.bool_()),
            ("converged", arrow.bool_()),
            ("n_perturbations", arrow.int64()),
            ("rounds", arrow.int64()),
            ("settings", arrow.string()),
            ("provenance", arrow.string()),
            ("model_inputs", arrow.string()),
        ]
    )


def _row(output: AttributionOutput) -> dict[str, Any]:
    row = output.to_dict()
    settings = row["settings"]
    # What differs from text to text has columns of its own, so that the settings are the same text in every row.
    varying = {name: settings.pop(name) for name in ("n_perturbations", "rounds")}
    delta = output.convergence_delta
    return (
        row
        | varying
        | {
            "text": encodable(row["text"]),
            "attributions": output.attributions.flatten().numpy(),
            "standard_error": output.standard_error.flatten().numpy(),
            "unassigned": output.unassigned.numpy(),
            "convergence_delta": None if delta is None else delta.numpy(),
            **{name: json.dumps(row[name], allow_nan=False) for name in ("settings", "provenance", "model_inputs")},
        }
    )


def _from_row(row: dict[str, Any]) -> dict[str, Any]:
    """What ``from_dict`` takes."""
    plain = {name: _plain(value) for name, value in row.items()}
    for name in ("settings", "provenance", "model_inputs"):
        try:
            plain[name] = json.loads(row[name])
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{name} is no JSON: {error}.") from None
    if isinstance(plain["settings"], dict):
        plain["settings"] |= {name: row[name] for name in ("n_perturbations", "rounds")}
    for name in ("attributions", "standard_error"):
        plain[name] = _matrix(name, plain[name], row["target_names"], row["elements"])
    return plain


def _plain(value: Any) -> Any:
    """NaN and infinities, which Parquet has, as JSON has them."""
    if isinstance(value, list):
        return [number(one) if isinstance(one, float) else one for one in value]
    return number(value) if isinstance(value, float) else value


def _matrix(name: str, values: Any, targets: Any, elements: Any) -> list[Any]:
    """(t, G) as lists."""
    if not all(isinstance(one, list) for one in (values, targets, elements)):
        raise InvalidArgumentError(f"{name}, target_names and elements must be lists.")
    height, width = len(targets), len(elements)
    if len(values) != height * width:
        raise InvalidArgumentError(f"{name} must hold {height} x {width} entries; it holds {len(values)}.")
    return [values[t * width : (t + 1) * width] for t in range(height)]
