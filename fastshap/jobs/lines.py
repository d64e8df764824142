"""Lines of JSON and rows of CSV, read once from front to back, with a bound on the longest."""

from __future__ import annotations

import contextlib
import csv
import io
import threading
from collections.abc import Iterator
from typing import Any

from fastshap.errors import JobError

LONGEST = 16 << 20  # of a line, or of a value of CSV
_ROWS = 4096  # that are parsed at once
_limit = threading.Lock()  # the limit of Python's csv is one for the whole process


def lines(stream: Any, path: str) -> Iterator[bytes]:
    """Lines of a binary stream, with their line breaks.

    Raises:
        JobError: a line is longer than ``LONGEST`` bytes.
    """
    file = io.BufferedReader(stream)
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        _refuse_long(path, number, line)
        yield line


def csv_rows(stream: Any, path: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of CSV with the number of the line that each ends on; blank lines are left out. Bytes that are no UTF-8 become
    surrogates, as in names of files.

    Raises:
        JobError: a quote that is not closed, or a value behind the quote that closes one; a line or a value that is too long.
    """
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")

    def bounded() -> Iterator[str]:
        number = 0
        while line := text.readline(LONGEST + 1):
            number += 1
            _refuse_long(path, number, line)
            yield line

    reader = csv.reader(bounded(), strict=True)
    going = True
    while going:
        rows: list[tuple[int, list[str]]] = []
        size = 0
        try:
            with _long_values():
                while going and len(rows) < _ROWS and size < LONGEST:
                    row = next(reader, None)
                    going = row is not None
                    if row:
                        rows.append((reader.line_num, row))
                        size += sum(map(len, row))
        except csv.Error as error:
            raise JobError(
                f"{path}, line {reader.line_num}: {error}. There or before, a quote is not closed, or not doubled inside a "
                "quoted value. Repair the file; nothing was skipped."
            ) from None
        yield from rows


@contextlib.contextmanager
def _long_values() -> Iterator[None]:
    with _limit:
        before = csv.field_size_limit(LONGEST)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _refuse_long(path: str, number: int, line: bytes | str) -> None:
    if len(line) > LONGEST:
        raise JobError(
            f"{path}, line {number}, is longer than {LONGEST >> 20} MiB, as no row is. Is it a file with a row on each line? "
            "Repair it, or take it away; nothing was skipped."
        )
