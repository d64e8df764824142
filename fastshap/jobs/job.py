"""A job: what is to be explained, what is done already, and how a finished piece of work becomes part of the output.

One process alone commits, whoever computes: so a retry, a lost worker or a straggler of an earlier run can write nothing twice.
A part is written beside its place and moved there when it is whole; what is in a whole part is done, and nothing else is.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastshap.batch import BatchExplainer, schema, text_hash
from fastshap.errors import InvalidArgumentError, JobError
from fastshap.extras import needed
from fastshap.jobs.ids import Known, Sorted, found, keys, missing, short
from fastshap.jobs.progress import Progress, Summary
from fastshap.jobs.reading import Columns, Files
from fastshap.jobs.store import Store
from fastshap.plain import to_plain

if TYPE_CHECKING:
    import pyarrow as pa

# A part is written when it has so many rows, or so many seconds after the one before: what a killed run loses at most.
_ROWS, _SECONDS = 8192, 10.0
_SHOWN = 5  # examples in a message


@dataclass(frozen=True)
class Rows:
    """The rows of an input: how many, their ids, and what these are."""

    ids: Known
    id_type: str  # "int64" or "string"
    described: dict[str, Any]


def rows_of(tables: Iterable[pa.Table], described: Mapping[str, Any]) -> Rows:
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
    return Rows(ids, kind, {**described, "rows": len(ids)})


def rows_of_files(files: Files) -> Rows:
    """Likewise, of files; duplicate ids are named.

    Raises:
        JobError: as for :func:`rows_of`, and a file that does not read.
        InvalidArgumentError: a column that is not there.
    """

    def tables() -> Iterator[pa.Table]:
        for piece in pieces:
            yield from files.read(piece, texts=False)

    pieces = files.pieces()
    rows = rows_of(tables(), files.described())
    refuse_duplicates(rows, tables())
    return rows


def refuse_duplicates(rows: Rows, tables: Iterable[pa.Table]) -> None:
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


def part_schema(id_type: str) -> pa.Schema:
    """Of the output's files."""
    arrow = needed("pyarrow", "tables")
    return arrow.schema([("id", id_type), *schema()])


def identity(batch: BatchExplainer, columns: Columns) -> dict[str, Any]:
    """All that decides a row's numbers, beside its text. Loads the model.

    Raises:
        InvalidArgumentError, InvalidTypeError, UnsupportedModelError: a setting or a model that cannot be used.
    """
    explainer = batch.explainer
    plain = to_plain(explainer._failed(InvalidArgumentError(""), ""))
    del plain["settings"]["rounds"]
    about = asdict(batch.provenance)
    same = {
        "columns": asdict(columns),
        "targets": batch.targets,
        "generation_kwargs": batch.generation_kwargs,
        "settings": plain["settings"],
        "model": {name: about[name] for name in about if name not in ("versions", "device")},
    }
    there_and_back: dict[str, Any] = json.loads(json.dumps(same, default=repr))  # as a manifest gives it
    return there_and_back


class Job:
    """An open job. ``known`` is what is done, for readers to leave out."""

    def __init__(
        self,
        store: Store,
        manifest: dict[str, Any],
        rows: Rows,
        known: Known,
        summary: Summary,
        progress: Progress,
        started: float,
    ) -> None:
        self._store, self._manifest, self._rows, self._known = store, manifest, rows, known
        self.summary = summary
        self._waiting: list[pa.Table] = []
        self._since = time.monotonic()
        self._written = 0
        self._started = started
        self.begun: float | None = None
        self._progress = progress

    @property
    def done(self) -> Sorted:
        """Sorted keys of the rows that earlier runs wrote, and hashes of their texts."""
        return self._known.sorted()

    @property
    def left(self) -> int:
        """Rows to explain."""
        return len(self._rows.ids) - len(self._known)

    def begin(self, when: float) -> None:
        """The first text could be explained at this time (of ``time.monotonic``): what came before was start-up."""
        self.begun = self._since = when
        self._progress.begin(when)

    def add(self, table: pa.Table) -> None:
        """Takes explained rows, and writes them soon."""
        self._waiting.append(table)
        self._progress.add(len(table))
        if sum(map(len, self._waiting)) >= _ROWS or time.monotonic() - self._since >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            JobError: another run has taken this output over.
        """
        if self._waiting:
            table = needed("pyarrow", "tables").concat_tables(self._waiting)
            there = self._store.manifest()
            if there is None or (there["job"], there["run"]) != (self._manifest["job"], self._manifest["run"]):
                raise JobError(f"Another run has taken {self._store.location} over; this one stops.")
            self._store.write(
                f"part-{self._manifest['job']}-{self._manifest['run']}-{self._written:05d}.parquet", table
            )
            self._written += 1
            self._waiting = []
            self._known.add(keys(table.column("id")), short(table.column("text_hash").to_pylist()))
            self.summary.add(table)
        self._since = time.monotonic()

    def finish(self, padding: tuple[int, int] | None = None) -> Summary:
        """Writes the rest, and says that the output is complete if it is.

        Args:
            padding: positions of the model calls that were padding, and all of them.

        Raises:
            JobError: rows are missing, or there twice.
        """
        self.flush()
        end = time.monotonic()
        self.summary.startup = (self.begun or end) - self._started
        self.summary.seconds = end - (self.begun or end)
        if padding is not None and padding[1]:
            self.summary.padding = padding[0] / padding[1]
        lost, twice = missing(self._rows.ids, self._known), len(self._known.twice())
        if lost or twice:
            raise JobError(
                f"{lost:,} rows are missing from {self._store.location}, and {twice:,} are there twice. Run it again with "
                "--resume, which computes what is missing; verify shows the state."
            )
        self._manifest |= {"state": "complete", "summary": self.summary.plain()}
        self._store.write_manifest(self._manifest)
        return self.summary


@contextlib.contextmanager
def opened(
    output: Any,
    rows: Rows,
    same: dict[str, Any],
    versions: dict[str, str],
    resume: bool,
    overwrite: bool,
    shown: bool,
    started: float,
) -> Iterator[Job]:
    """A new job, or one to go on with; alone with its output, as far as that can be made sure.

    Args:
        same: what must be the same when it is gone on with (:func:`identity`).
        versions: of the libraries, for the manifest.
        shown: whether to show how far it is.
        started: when the run was, by ``time.monotonic``.

    Raises:
        JobError: the output holds a job already, another job, or something else; another run writes there.
    """
    refuse_unfit(output, same, resume, overwrite)
    store = Store(output)
    with store.alone():
        manifest = None if overwrite else store.manifest()
        if manifest is None:
            manifest = {"format": 1, "job": secrets.token_hex(4), "run": 0, "identity": same, "id_type": rows.id_type}
        elif manifest["id_type"] != rows.id_type:
            raise JobError(
                f"{store.location} has ids that are {manifest['id_type']}, and the input has {rows.id_type}: it comes from "
                "another input. Resume with that one, take another output, or --overwrite this one."
            )
        known, summary = _done(store, manifest["job"])
        if surplus := missing(known, rows.ids):
            raise JobError(
                f"{store.location} holds {surplus:,} rows that the input has not, so it comes from another input. Resume with "
                "that one, take another output, or --overwrite this one."
            )
        left = len(known) < len(rows.ids)
        if left or manifest.get("state") != "complete":
            manifest |= {"state": "running", "run": manifest["run"] + 1, "versions": versions, "input": rows.described}
            manifest.pop("summary", None)
            store.write_manifest(manifest)
        for name in store.stray(manifest["job"]):
            store.remove(name)
        progress = Progress(len(rows.ids), summary.before, shown)
        job = Job(store, manifest, rows, known, summary, progress, started)
        try:
            yield job
        except BaseException as error:
            if isinstance(error, JobError):
                error.begun = left
            with contextlib.suppress(Exception):
                job.flush()  # what is computed is kept
            raise
        finally:
            progress.close()


def refuse_unfit(output: Any, same: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Whether a job may begin, or go on, as far as can be told by a look at the output's manifest.

    Raises:
        JobError: the output holds a job already, another job, or something else.
        InvalidArgumentError: both resume and overwrite.
    """
    if resume and overwrite:
        raise InvalidArgumentError(
            "resume keeps what an earlier run wrote and overwrite throws it away; pass one of the two."
        )
    store = Store(output)
    if foreign := store.foreign():
        raise JobError(
            f"{store.location} holds files that no job wrote ({', '.join(foreign[:_SHOWN])}); name a directory that is new, "
            "empty, or a job's own."
        )
    if overwrite:
        return
    manifest = store.manifest()
    if manifest is None:
        if any(name.startswith("part-") for name in store.names()):
            raise JobError(
                f"{store.location} holds parts of a job whose manifest is gone, so nothing says what they are. Name another "
                "directory, or --overwrite this one."
            )
        return
    if not resume:
        raise JobError(_in_the_way(store.location, manifest))
    if differing := _differing(manifest["identity"], same):
        raise JobError(
            f"{store.location} was begun with other settings: {'; '.join(differing)}. Rows of both would stand side by side: "
            "resume with the same, take another output, or --overwrite this one."
        )


def rest(table: pa.Table, done: Sorted) -> pa.Table:
    """The rows of a table of id, text and problem that are not done yet.

    Raises:
        JobError: the text of a row that is done has changed.
    """
    there, then = found(keys(table.column("id")), done)
    if not there.any():
        return table
    now = short(map(text_hash, table.column("text").to_pylist()))
    changed = there & (then != now)
    if changed.any():
        few = ", ".join(map(repr, table.column("id").filter(changed).to_pylist()[:_SHOWN]))
        raise JobError(
            f"The texts of rows that are done have changed since ({few}): their scores in the output are of other texts. "
            "--overwrite begins anew."
        )
    return table.filter(~there)


def _done(store: Store, job: str) -> tuple[Known, Summary]:
    """What earlier runs wrote; parts that do not read are taken away, and their rows are to be computed again."""
    known, summary = Known(), Summary()
    for name in store.parts(job):
        table = store.read(name)
        if table is None:
            store.remove(name)
            summary.damaged += 1
            continue
        known.add(keys(table.column("id")), short(table.column("text_hash").to_pylist()))
        summary.add(table)
    if twice := len(known.twice()):
        raise JobError(f"{store.location} holds {twice:,} ids twice; two runs must have written there. --overwrite it.")
    summary.before = summary.rows
    return known, summary


def _in_the_way(location: str, manifest: dict[str, Any]) -> str:
    if manifest["state"] == "complete":
        count = manifest["summary"]["rows"]
        return (
            f"{location} holds a finished job of {count:,} rows. --overwrite computes it anew; --resume computes what the "
            "input has more; or name another directory."
        )
    return f"{location} holds a job that was broken off. --resume goes on with it, --overwrite begins anew."


def _differing(then: Any, now: Any, name: str = "") -> list[str]:
    """What two plain values differ in, by the names where they do."""
    if isinstance(then, dict) and isinstance(now, dict):
        both = {**then, **now}
        return [one for key in both for one in _differing(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [] if then == now else [f"{name} was {json.dumps(then)[:60]} and is {json.dumps(now)[:60]}"]
