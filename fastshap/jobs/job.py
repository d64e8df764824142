"""A job: what is to be explained, what is done already, and how a finished piece of work becomes part of the output.

One process alone commits, whoever computes: so a retry, a lost worker or a straggler of an earlier run can write nothing twice.
A part is written beside its place and moved there when it is whole. What is in a whole part is done, and nothing else is.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastshap.errors import JobError, NoiseWarning, warn
from fastshap.extras import needed
from fastshap.jobs.columns import Columns
from fastshap.jobs.digests import with_digests
from fastshap.jobs.ids import Known, Sorted, keys, missing, short_hashes
from fastshap.jobs.inputs import InputRows
from fastshap.jobs.progress import JobProgress
from fastshap.jobs.recorded import MOST_FAILED, all_failed, count_failed
from fastshap.jobs.store import FORMAT, Store, with_about
from fastshap.jobs.summary import JobSummary
from fastshap.jobs.table import BatchExplainer
from fastshap.models.provenance import Provenance
from fastshap.output.noise import LEAST
from fastshap.types.targets import Contrast

if TYPE_CHECKING:
    import pyarrow as pa

# A part is written when it has so many rows, or so many seconds after the one before: what a killed run loses at most.
_ROWS, _SECONDS = 8192, 10.0
_ABOUT = ("job", "id_type", "identity", "versions")  # what each part says of its job


def identity(batch: BatchExplainer, columns: Columns) -> dict[str, Any]:
    """All that decides a row's numbers, beside its text. Loads the model.

    Raises:
        InvalidArgumentError, InvalidTypeError, UnsupportedModelError: a setting or a model that cannot be used.
    """
    about = model_identity(batch.provenance)
    same: dict[str, Any] = {
        "columns": {name: column for name, column in asdict(columns).items() if column is not None},
        "targets": [batch.targets.target] if isinstance(batch.targets, Contrast) else batch.targets,
        "generation_kwargs": batch.generation_kwargs,
        "settings": batch.explainer.settings.to_plain(),
        "model": about,
    }
    if isinstance(batch.targets, Contrast):
        same["contrast"] = batch.targets.other
    if batch.settings.get("task") is not None:
        same["task"] = batch.explainer.task.name
    there_and_back: dict[str, Any] = json.loads(json.dumps(same, default=repr))  # as a manifest gives it
    return there_and_back


def model_identity(provenance: Provenance) -> dict[str, Any]:
    """What tells one model from another, as plain values; the configuration entry by entry."""
    about = asdict(provenance)
    for name in ("versions", "device", "configuration_fingerprint"):
        del about[name]
    return about | {"configuration": json.loads(about["configuration"])}


class Job:
    """An open job: writes to ``store``, which is the output ``root``, or its directory for what overwrites it."""

    def __init__(
        self,
        root: Store,
        store: Store,
        manifest: dict[str, Any],
        rows: InputRows,
        known: Known,
        summary: JobSummary,
        progress: JobProgress,
        started: float,
    ) -> None:
        self._root, self._store, self._manifest, self._rows, self._known = root, store, manifest, rows, known
        self.summary = summary
        self._waiting: list[pa.Table] = []
        # The last tables that hold a text on which the model failed, and none that was explained.
        self._failing: list[pa.Table] = []
        self._explained = summary.rows > summary.errors.total()
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
        """Takes explained rows, and writes them soon.

        Raises:
            JobError: the model failed on each of the last texts. Such rows are written once it did well on another one.
        """
        errors = table.column("error").to_pylist()
        known = max(
            (i + 1 for i, error in enumerate(errors) if error is None), default=0
        )  # rows up to the last that did well
        if known:
            self._explained = True
            self._admit()
            self._waiting.append(table.slice(0, known))
        if known < len(table):
            (self._failing if count_failed(errors[known:]) else self._waiting).append(table.slice(known))
        if count_failed(self._errors()) >= MOST_FAILED:
            raise all_failed(self._errors())
        self._progress.add(len(table))
        if sum(map(len, self._waiting)) >= _ROWS or time.monotonic() - self._since >= _SECONDS:
            self.flush()

    def _errors(self) -> list[str | None]:
        return [error for table in self._failing for error in table.column("error").to_pylist()]

    def _admit(self) -> None:
        self._waiting += self._failing
        self._failing = []

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            JobError: another run has taken this output over.
        """
        if self._waiting:
            table = with_digests(needed("pyarrow", "tables").concat_tables(self._waiting))
            there = self._store.manifest()
            if there is None or (there["job"], there["run"]) != (self._manifest["job"], self._manifest["run"]):
                raise JobError(f"Another run has taken over {self._store.location}; this one stops.", final=True)
            about = {"format": FORMAT} | {name: self._manifest[name] for name in _ABOUT}
            name = f"part-{self._manifest['job']}-{self._manifest['run']}-{self._written:05d}.parquet"
            table = with_about(table, about)
            self._store.write(name, table)
            # In this order: an interrupt in between has the same part written once more, under the same name.
            self._waiting = []
            self._written += 1
            self._known.add(keys(table.column("id")), short_hashes(table.column("text_hash").to_pylist()))
            self.summary.add(table)
        self._since = time.monotonic()

    def finish(self, padding: tuple[int, int] | None = None) -> JobSummary:
        """Writes the rest, and says that the output is complete if it is. An overwrite takes the place of the old output then.

        Args:
            padding: positions of the model calls that were padding, and all of them.

        Raises:
            JobError: rows are missing, or there twice; the model failed on every text that it was run on.
        """
        if self._failing and not self._explained:
            raise all_failed(self._errors())
        self._admit()
        self.flush()
        end = time.monotonic()
        self.summary.startup = (self.begun or end) - self._started
        self.summary.seconds = end - (self.begun or end)
        if padding is not None and padding[1]:
            self.summary.padding = padding[0] / padding[1]
        lost, twice = missing(self._rows.ids, self._known), len(self._known.twice())
        if lost or twice:
            raise JobError(
                f"{lost:,} rows are missing from {self._store.location}, and {twice:,} are there twice; fastshap verify shows "
                "the state.",
                final=twice > 0,
            )
        self._manifest |= {"state": "complete", "summary": self.summary.plain()}
        self._store.write_manifest(self._manifest)
        self._root.take_next()
        if self.summary.noisy:
            warn(
                f"Scores are mostly noise for {self.summary.noisy:,} of {self.summary.rows:,} rows: reliability below {LEAST}. "
                "With another seed they come out differently. To find out what helps, explain one of these texts by itself.",
                NoiseWarning,
            )
        return self.summary
