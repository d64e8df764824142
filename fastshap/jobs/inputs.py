"""The rows of an input: their ids, which are read before a job begins, and those that are not done yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastshap.errors import JobError
from fastshap.jobs.ids import Known, Sorted, found, keys, short_hashes
from fastshap.jobs.reading import Files
from fastshap.jobs.texts import text_hash, texts_in

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 5  # examples in a message


@dataclass(frozen=True)
class InputRows:
    """The rows of an input: how many, their ids, and what these are."""

    ids: Known
    id_type: str  # "int64" or "string"
    about: dict[str, Any]  # for the manifest


def rows_of(tables: Iterable[pa.Table], about: Mapping[str, Any]) -> InputRows:
    """Reads all ids.

    Raises:
        JobError: an id is there twice, ids are of two types, or there are no rows.
    """
    ids, kind = Known(), ""
    for table in tables:
        column = table.column("id")
        kind = kind or str(column.type)
        if str(column.type) != kind:
            raise JobError(f"Ids are {kind} in one file and {column.type} in another; make them one or the other.")
        ids.add(keys(column))
    if not len(ids):
        raise JobError("The input has no rows; there is nothing to explain.")
    return InputRows(ids, kind, {**about, "rows": len(ids)})


def rows_of_files(files: Files) -> InputRows:
    """Likewise, of files; duplicate ids are named.

    Raises:
        JobError: as for :func:`rows_of`, and a file that does not read.
        InvalidArgumentError: a column that is not there.
    """
    rows = rows_of(files.tables(texts=False), files.about())
    refuse_duplicates(rows, files.tables(texts=False))
    return rows


def refuse_duplicates(rows: InputRows, tables: Iterable[pa.Table]) -> None:
    """Reads the ids once more where some are duplicates, to name them.

    Raises:
        JobError: there are duplicates.
    """
    twice = rows.ids.twice()
    if not len(twice):
        return
    named: dict[Any, None] = {}
    for table in tables:
        there, _ = found(keys(table.column("id")), (twice, np.zeros(len(twice), np.uint64)))
        named |= dict.fromkeys(table.column("id").filter(there).to_pylist())
        if len(named) >= _SHOWN:
            break
    few = ", ".join(map(repr, list(named)[:_SHOWN])) + (", …" if len(twice) > _SHOWN else "")
    raise JobError(
        f"{len(twice):,} {'id is' if len(twice) == 1 else 'ids are'} in the input more than once: {few}. Every row needs an id "
        "of its own, since a row is known to be done by its id; drop the duplicates, or name another id column."
    )


def rest(table: pa.Table, done: Sorted) -> pa.Table:
    """The rows of a table of id, text and problem that are not done yet.

    Raises:
        JobError: the text of a row that is done has changed.
    """
    there, then = found(keys(table.column("id")), done)
    if not there.any():
        return table
    now = short_hashes(map(text_hash, texts_in(table)))
    changed = there & (then != now)
    if changed.any():
        few = ", ".join(map(repr, table.column("id").filter(changed).to_pylist()[:_SHOWN]))
        raise JobError(
            f"The texts of rows that are done have changed ({few}): their scores in the output are of other texts. Resume with "
            "--redo-changed to explain these rows again, or --overwrite the output.",
            final=True,
        )
    return table.filter(~there)
