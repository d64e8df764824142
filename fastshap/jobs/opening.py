"""Whether a job may write to an output, and what of it is done already."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastshap.errors import InvalidArgumentError, JobError
from fastshap.jobs.digests import wrong
from fastshap.jobs.ids import Known, found, keys, missing, short_hashes
from fastshap.jobs.inputs import InputRows
from fastshap.jobs.job import Job
from fastshap.jobs.progress import JobProgress
from fastshap.jobs.reading import TEXT_FILES
from fastshap.jobs.stopping import stoppable
from fastshap.jobs.store import FORMAT, Store, in_use
from fastshap.jobs.summary import JobSummary
from fastshap.jobs.texts import text_hash, texts_in
from fastshap.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 5  # examples in a message
_LATER = ("configuration", "labels_fingerprint")  # what manifests of format 1 do not know of a model


@contextlib.contextmanager
def opened(
    output: Any,
    rows: InputRows,
    same: dict[str, Any],
    versions: dict[str, str],
    *,
    resume: bool,
    overwrite: bool,
    redo: Callable[[], Iterable[pa.Table]] | None,
    shown: bool,
    started: float,
) -> Iterator[Job]:
    """A new job, or one to resume; alone with its output, as far as that can be made sure.

    An overwrite writes into a directory of its own inside the output, which takes the old one's place when it is complete.

    Args:
        same: what must be the same when a job is resumed (:func:`fastshap.jobs.job.identity`).
        versions: of the libraries; each part records them.
        redo: gives the input's rows with their texts; those that are done and have another text now are explained again. None
            leaves the output as it is.
        shown: whether to show how far it is.
        started: when the run was, by ``time.monotonic``.

    Raises:
        JobError: the output holds a job already, another job, or something else; another run writes there.
    """
    root = Store(output)
    refuse_unfit(root, same, resume=resume, overwrite=overwrite, redo=redo is not None)
    with root.alone(), stoppable():
        root.take_next()  # where a run was killed over it
        _refuse(root, same, resume, overwrite)  # again: until now another run could write
        store = _place(root, overwrite)
        manifest = store.manifest()
        if manifest is None:
            manifest = {"format": FORMAT, "job": secrets.token_hex(4), "run": 0, "id_type": rows.id_type}
        elif manifest["id_type"] != rows.id_type:
            raise JobError(
                f"{root.location} has ids that are {manifest['id_type']}, and the input has {rows.id_type}: it comes from "
                "another input. Resume with that one, name another output, or --overwrite this one."
            )
        known, summary, damaged = _done(store, manifest["job"])
        if surplus := missing(known, rows.ids):
            raise JobError(
                f"{root.location} holds {surplus:,} rows that the input does not have, so it comes from another input. Resume "
                "with that one, name another output, or --overwrite this one."
            )
        changed = _changed(known, redo()) if redo is not None else np.zeros(0, bool)
        left = len(known) - len(changed) < len(rows.ids)
        if left or manifest.get("state") != "complete":
            manifest |= {"format": FORMAT, "state": "running", "run": manifest["run"] + 1, "identity": same}
            manifest |= {"versions": versions, "input": rows.about}
            manifest.pop("summary", None)
            store.write_manifest(manifest)
        for name in [*store.stray(manifest["job"]), *damaged]:
            store.remove(name)
        if len(changed):
            _take_out(store, manifest["job"], changed)
            known, summary, _ = _done(store, manifest["job"])
        summary.damaged, summary.redone = len(damaged), len(changed)
        progress = JobProgress(len(rows.ids), summary.before, shown)
        job = Job(root, store, manifest, rows, known, summary, progress, started)
        try:
            yield job
        except BaseException as error:
            if isinstance(error, JobError):
                error.begun = left
            with contextlib.suppress(Exception):
                job.flush()  # what is computed is kept
            if isinstance(error, KeyboardInterrupt):
                error.args = (f"{job.summary.rows:,} of {len(rows.ids):,} rows",)  # for the person who stopped it
            raise
        finally:
            progress.close()


def refuse_unfit(root: Store, same: dict[str, Any], *, resume: bool, overwrite: bool, redo: bool) -> None:
    """Whether a job may begin, or be resumed, as far as can be told by a look at the output.

    Raises:
        JobError: the output holds a job already, another job, or something else; another run writes there.
        InvalidArgumentError: options that do not go together.
    """
    if resume and overwrite:
        raise InvalidArgumentError(
            "resume keeps what an earlier run wrote and overwrite replaces it; pass one of the two."
        )
    if redo and not resume:
        raise InvalidArgumentError("redo_changed says what resume does with changed texts; pass resume too.")
    if root.busy():
        raise in_use(root.location)
    _refuse(root, same, resume, overwrite)


def _refuse(root: Store, same: dict[str, Any], resume: bool, overwrite: bool) -> None:
    if foreign := [*root.foreign(), *root.next().foreign()]:
        raise JobError(
            f"{root.location} holds files that no job wrote ({', '.join(foreign[:_SHOWN])}); name a directory that is new, "
            "empty, or a job's own."
        )
    if root.location.lower().endswith(TEXT_FILES) and not root.holds_job():
        raise JobError(
            f"{root.location} is named like a file, but the output is a directory of Parquet files: leave out the ending, or "
            "name another directory. fastshap.write_csv and write_jsonl make such a file of fastshap.jobs.read's outputs."
        )
    if overwrite:
        return
    replacing = root.next().manifest()
    manifest = root.manifest() if replacing is None else replacing
    if manifest is None:
        if root.parts():
            raise JobError(
                f"{root.location} holds parts of a job whose manifest is gone, and the parts do not say enough. Name another "
                "directory, or --overwrite this one."
            )
        return
    if not resume:
        raise JobError(_in_the_way(root, manifest, replacing is not None))
    then = manifest["identity"]
    unknown = {name: same["model"][name] for name in _LATER if name not in then["model"]}
    settings = then["settings"]
    if isinstance(settings, dict):  # an older job had the defaults of what it did not know
        settings = Settings().to_plain() | settings
    if differing := differences(then | {"model": then["model"] | unknown, "settings": settings}, same):
        raise JobError(
            f"{root.location} was begun with another model or other settings: {'; '.join(differing)}. Rows of both would stand "
            "side by side: resume with the same, name another output, or --overwrite this one."
        )


def _place(root: Store, overwrite: bool) -> Store:
    """Where to write: in the output itself, or in its directory for what overwrites it."""
    inner = root.next()
    if overwrite:
        inner.clear()
        return inner if root.holds_job() else root
    return root if inner.manifest() is None else inner


def _done(store: Store, job: str) -> tuple[Known, JobSummary, list[str]]:
    """What earlier runs wrote, and the names of parts that do not read or hold other scores than were written."""
    known, summary, damaged = Known(), JobSummary(), []
    for name in store.parts(job):
        table = store.read(name)
        if table is None or wrong(table).any():
            damaged.append(name)
            continue
        known.add(keys(table.column("id")), short_hashes(table.column("text_hash").to_pylist()))
        summary.add(table)
    if twice := len(known.twice()):
        raise JobError(
            f"{store.location} holds {twice:,} ids twice; two runs must have written there. --overwrite this output."
        )
    summary.before = summary.rows
    return known, summary, damaged


def _changed(known: Known, tables: Iterable[pa.Table]) -> np.ndarray:
    """(C,) keys of rows that are done and whose text is another now, in order."""
    done, some = known.sorted(), []
    for table in tables:
        of_rows = keys(table.column("id"))
        there, then = found(of_rows, done)
        some.append(of_rows[there & (then != short_hashes(map(text_hash, texts_in(table))))])
    return np.unique(np.concatenate(some)) if some else np.zeros(0, np.int64)


def _take_out(store: Store, job: str, changed: np.ndarray) -> None:
    """Writes the parts without these rows. A kill in between leaves rows that are missing, never doubled ones."""
    gone = (changed, np.zeros(len(changed), np.uint64))
    for name in store.parts(job):
        table = store.read(name)
        if table is None:
            continue
        kept = table.filter(~found(keys(table.column("id")), gone)[0])
        if not len(kept):
            store.remove(name)
        elif len(kept) < len(table):
            store.write(name, kept)


def _in_the_way(root: Store, manifest: dict[str, Any], replacing: bool) -> str:
    if replacing and manifest["state"] != "complete":
        return (
            f"{root.location} holds the output of an earlier job, and an overwrite of it that was interrupted. --resume "
            "continues the overwrite, --overwrite starts it again."
        )
    if manifest["state"] == "running":
        return f"{root.location} holds a job that was interrupted. --resume continues it, --overwrite starts again."
    count = manifest["summary"]["rows"]
    return (
        f"{root.location} holds a finished job of {count:,} rows. --overwrite computes it again; --resume computes rows added "
        "to the input; or name another directory."
    )


def differences(then: Any, now: Any, name: str = "") -> list[str]:
    """What two plain values differ in, by the names where they do."""
    if isinstance(then, dict) and isinstance(now, dict):
        both = {**then, **now}
        return [one for key in both for one in differences(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [] if then == now else [f"{name} was {json.dumps(then)[:60]} and is {json.dumps(now)[:60]}"]
