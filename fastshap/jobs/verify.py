"""Whether an output holds what its input asks for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastshap.batch import text_hash
from fastshap.errors import JobError
from fastshap.jobs.ids import Known, found, keys, short
from fastshap.jobs.job import Rows, rows_of
from fastshap.jobs.progress import Summary
from fastshap.jobs.reading import Columns, Files
from fastshap.jobs.store import Store

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class Verdict:
    """How an output and its input agree; ``good`` if they do.

    Attributes:
        state: "complete", or "running" where a job was broken off (or runs still).
        expected: rows of the input.
        summary: of what is in the output.
        missing, twice, surplus: ids of the input that the output lacks, that it holds more than once, and that it has beyond.
        changed: rows whose text is another now.
        empty: rows with neither attributions nor an error.
        damaged: names of parts that do not read.
    """

    state: str
    expected: int
    summary: Summary
    missing: int = 0
    twice: int = 0
    surplus: int = 0
    changed: int = 0
    empty: int = 0
    damaged: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Every row of the input stands in the output exactly once, with attributions or an error."""
        wrong = self.missing or self.twice or self.surplus or self.changed or self.empty or self.damaged
        return self.state == "complete" and not wrong

    def lines(self) -> list[str]:
        """For a terminal."""
        said = [f"input rows       {self.expected:,}", *self.summary.lines()]
        for what, count in (
            ("missing", self.missing),
            ("there twice", self.twice),
            ("not in the input", self.surplus),
            ("text has changed", self.changed),
            ("without a result", self.empty),
        ):
            if count:
                said.append(f"{what:<16} {count:,}")
        said += [f"damaged          {name}" for name in self.damaged]
        if self.good:
            return [*said, "Every row of the input is there exactly once."]
        if self.state != "complete":
            said.append("The job was broken off, or still runs.")
        how = "--overwrite" if self.twice or self.surplus or self.changed else "--resume"
        return [*said, f"The output is not complete; run it again with {how}."]


def verify(output: str | os.PathLike[str], source: str | os.PathLike[str]) -> Verdict:
    """Compares an output with its input: ids, texts, and whether all parts are whole. Reads both from end to end.

    Args:
        source: the files the output was made from.

    Raises:
        JobError: there is no output, or the input does not read.
        InvalidArgumentError: the input lacks a column.
    """
    store = Store(output)
    manifest = store.manifest()
    if manifest is None:
        raise JobError(f"{store.location} holds no output of fastshap run.")
    files = Files(source, Columns(**manifest["identity"]["columns"]))
    expected = rows_of((table for piece in files.pieces() for table in files.read(piece, texts=False)), {})
    tables = (table for piece in files.pieces() for table in files.read(piece))
    return _compared(store, manifest, expected, tables)


def _compared(store: Store, manifest: dict[str, Any], expected: Rows, tables: Iterable[pa.Table]) -> Verdict:
    verdict = Verdict(manifest["state"], len(expected.ids), Summary())
    there = Known()
    for name in store.parts(manifest["job"]):
        part = store.read(name)
        if part is None:
            verdict.damaged.append(name)
            continue
        verdict.summary.add(part)
        there.add(keys(part.column("id")), short(part.column("text_hash").to_pylist()))
        nothing = np.asarray(part.column("attributions").is_null()) & np.asarray(part.column("error").is_null())
        verdict.empty += int(nothing.sum())
    verdict.twice = len(there.twice())
    if expected.id_type == manifest["id_type"]:
        verdict.surplus = int((~found(there.sorted()[0], expected.ids.sorted())[0]).sum())
    else:
        verdict.surplus = len(there)
        there = Known()
    for table in tables:
        held, then = found(keys(table.column("id")), there.sorted())
        verdict.missing += int((~held).sum())
        now = short(map(text_hash, table.column("text").to_pylist()))
        verdict.changed += int((held & (then != now)).sum())
    return verdict
