"""A job in this process, without Ray."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastshap.errors import FastshapError, InvalidTypeError
from fastshap.extras import needed
from fastshap.jobs.columns import Columns
from fastshap.jobs.inputs import rest, rows_of_files
from fastshap.jobs.job import Job, identity
from fastshap.jobs.opening import opened
from fastshap.jobs.parts import part_rows
from fastshap.jobs.reading import Files, texts_of
from fastshap.jobs.summary import JobSummary
from fastshap.jobs.table import SAID_BY_ROWS, BatchExplainer

if TYPE_CHECKING:
    import pyarrow as pa

    from fastshap.output.output import AttributionOutput

_SECONDS = 10.0  # of work between two looks at the clock, about
_FEWEST, _MOST = 64, 8192  # texts
_HAND_ON = 1.0  # seconds of work between two times that rows are handed on, about


def explain_files(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    text_column: str = "text",
    pair_column: str | None = None,
    choices_column: str | None = None,
    id_column: str = "id",
    resume: bool = False,
    overwrite: bool = False,
    redo_changed: bool = False,
    progress: bool = False,
    **settings: Any,
) -> JobSummary:
    """Explains the rows of files, in this process, into a directory of Parquet files.

    Args:
        source: a Parquet, CSV or JSON-lines file, or a directory of these; a path, or a URI that pyarrow opens.
        output: a directory; a row's columns are ``id``, ``text_hash``, those of :func:`fastshap.to_arrow`, and ``digest``.
        model: a directory or hub id; None is the model inside the package.
        text_column: the column of texts.
        pair_column: for a model that reads pairs of texts: the column of the second texts.
        choices_column: for a model that chooses among texts: the column of the lists of choices.
        id_column: the column of ids, whole numbers or strings, all different.
        resume: keep what an earlier run wrote and explain the rest; begin where there is nothing.
        overwrite: explain everything again. An earlier output stays until the new one is complete, and is then removed.
        redo_changed: with ``resume``, explain rows again if their text changed, instead of refusing.
        progress: show how far it is, on standard error.
        settings: ``targets`` and ``generation_kwargs`` as for :class:`fastshap.BatchExplainer`, and parameters of
            :class:`fastshap.GradientShap`.

    Raises:
        JobError: the output or the input is not fit to begin or to end; the message says what to do.
        InvalidArgumentError, InvalidTypeError, UnsupportedModelError: a column, a setting or a model that cannot be used.
    """
    started = time.monotonic()
    if not isinstance(source, str | os.PathLike):
        raise InvalidTypeError(f"A job in this process reads files, by their path; got {type(source).__name__}.")
    columns = Columns(id_column, text_column, pair_column, choices_column)
    rows_explainer = BatchExplainer(model, **columns.options, keep=(), **settings)
    files = Files(source, columns)
    rows = rows_of_files(files)
    same = identity(rows_explainer, columns)
    with opened(
        output,
        rows,
        same,
        rows_explainer.provenance.versions,
        resume=resume,
        overwrite=overwrite,
        redo=files.tables if redo_changed else None,
        shown=progress,
        started=started,
    ) as job:
        if job.left:
            job.begin(time.monotonic())
        size = [_FEWEST]
        for table in _of_size(files, job, size):
            start = time.monotonic()
            _explain(rows_explainer, table, job)
            fitting = round(len(table) * _SECONDS / max(time.monotonic() - start, 1e-3))
            size[0] = min(max(fitting, _FEWEST), _MOST)
        return job.finish(rows_explainer.explainer.padding)


def _of_size(files: Files, job: Job, size: list[int]) -> Iterator[pa.Table]:
    """The rows that are not done, in tables of ``size[0]``, which the caller may change between two."""
    concat = needed("pyarrow", "tables").concat_tables
    held: list[pa.Table] = []
    done = job.done  # once: what this run writes it does not read again
    for shard in files.shards():
        for table in files.read(shard):
            held.append(rest(table, done))
            while sum(map(len, held)) >= size[0]:
                together, count = concat(held), size[0]
                held = [together.slice(count)]
                yield together.slice(0, count)
    if sum(map(len, held)):
        yield concat(held)


def _explain(rows_explainer: BatchExplainer, table: pa.Table, job: Job) -> None:
    """Explains a table, handing rows on as they come; what breaks the stream is found row by row."""
    texts, ids = texts_of(table), table.column("id")
    start = time.monotonic()
    # Rows handed on, and those that wait; one name, so that an interrupt sees both as they belong together.
    state: tuple[int, list[AttributionOutput]] = (0, [])

    def together() -> int:
        """Rows to hand on at a time: about those of a second."""
        done, waiting = state
        rate = (done + len(waiting)) / max(time.monotonic() - start, 1e-9)
        return min(max(1, int(rate * _HAND_ON)), _FEWEST)

    def hand_on() -> None:
        nonlocal state
        done, waiting = state
        if not waiting:
            return
        rows = slice(done, done + len(waiting))
        made = part_rows(ids[rows], texts[rows], waiting)
        # First: what the job has taken must not be given to it again, whatever goes wrong there.
        state = (done + len(waiting), [])
        job.add(made)

    try:
        try:
            with warnings.catch_warnings():
                for category in SAID_BY_ROWS:
                    warnings.simplefilter("ignore", category)
                for output in rows_explainer.stream(texts):
                    state[1].append(output)
                    if len(state[1]) >= together():
                        hand_on()
        except FastshapError:
            raise
        except Exception:
            hand_on()
            while state[0] < len(texts):
                state[1].extend(rows_explainer.outputs(texts[state[0] : state[0] + together()]))
                hand_on()
        hand_on()
    except KeyboardInterrupt:
        with contextlib.suppress(FastshapError):
            hand_on()
        raise
