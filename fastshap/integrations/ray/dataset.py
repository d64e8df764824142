"""A job on Ray Data: on the cores of this machine, or on a cluster.

Ray reads, explains and retries; this process alone writes (fastshap.jobs.job). So whatever is lost or done twice on the way, a
row is in the output once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastshap import checks
from fastshap.integrations.ray import ledger
from fastshap.integrations.ray.cluster import imported, on_this_node, pool_of, quiet, running
from fastshap.integrations.ray.lost import RESTARTS, RETRIES, translated
from fastshap.integrations.ray.sources import from_dataset, from_files, rows_of_dataset, texts_of_dataset
from fastshap.integrations.ray.workers import Worker
from fastshap.jobs.columns import Columns
from fastshap.jobs.inputs import rows_of_files
from fastshap.jobs.job import identity
from fastshap.jobs.opening import opened, refuse_unfit
from fastshap.jobs.parts import part_schema
from fastshap.jobs.reading import Files
from fastshap.jobs.store import Store
from fastshap.jobs.summary import JobSummary
from fastshap.jobs.table import BatchExplainer

if TYPE_CHECKING:
    import pyarrow as pa


def explain_dataset(
    source: Any,
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
    address: str | None = None,
    workers: int | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float | None = None,
    rows_per_batch: int = 256,
    **settings: Any,
) -> JobSummary:
    """Explains the rows of files or of a Ray Dataset on Ray, into a directory of Parquet files.

    Where this process has joined a Ray cluster already, that one is used. Otherwise Ray is started for the time of the job, on
    this machine and its loopback address, or joined at ``address``.

    Args:
        source: a ``ray.data.Dataset``, or a Parquet, CSV or JSON-lines file or a directory of these, which every node can
            read. Of a Dataset the ids are read beforehand, so that it is computed twice unless it is materialised.
        output: a directory that this process writes.
        model: a directory or hub id that every node, and this process, can load; None is the model inside the package.
        text_column: the column of texts.
        pair_column: for a model that reads pairs of texts: the column of the second texts.
        choices_column: for a model that chooses among texts: the column of the lists of choices.
        id_column: the column of ids, whole numbers or strings, all different.
        resume: keep what an earlier run wrote and explain the rest; begin where there is nothing.
        overwrite: explain everything again. An earlier output stays until the new one is complete, and is then removed.
        redo_changed: with ``resume``, explain rows again if their text changed, instead of refusing.
        progress: show how far it is, on standard error.
        address: of a cluster, as ``ray.init`` takes it ("auto" on one of its nodes).
        workers: processes that explain, each with the model; by default one for each GPU, or else for each core of this
            machine, or for each CPU of a cluster but one.
        cpus_per_worker: CPUs that each holds, also one that has a GPU; it computes with so many threads.
        gpus_per_worker: GPUs of each; by default 1 where the cluster has GPUs.
        rows_per_batch: texts that a worker takes at a time: what is computed again when it dies.
        settings: ``targets`` and ``generation_kwargs`` as for :class:`fastshap.BatchExplainer`, and parameters of
            :class:`fastshap.GradientShap`.

    Raises:
        JobError: the output, the input or the cluster is not fit to begin or to end; the message says what to do.
        WorkerDiedError: workers died over and over; what they had done is written.
        InvalidArgumentError, InvalidTypeError, UnsupportedModelError: a column, a setting or a model that cannot be used.
        MissingPackageError: Ray is not installed.
    """
    ray = imported(address)
    started = time.monotonic()
    columns = Columns(id_column, text_column, pair_column, choices_column)
    about: dict[str, Any] = columns.options | {"keep": ()}
    rows_explainer = BatchExplainer(model, **about, **settings)
    block_rows = checks.whole(rows_per_batch, "rows_per_batch", least=1)
    files = Files(source, columns) if isinstance(source, str | os.PathLike) else None
    found = None if files is None else rows_of_files(files)
    # What cannot work is said before Ray starts. The model is looked at on the CPU and forgotten: the workers have their own.
    here = BatchExplainer(model, **about, **settings | {"device": "cpu"})
    same, versions = identity(here, columns), here.provenance.versions
    del here
    refuse_unfit(Store(output), same, resume=resume, overwrite=overwrite, redo=redo_changed)
    with running(ray, address, workers, cpus_per_worker) as is_ours, quiet(ray, source):
        with translated(ray):
            pool = pool_of(ray, is_ours, workers, cpus_per_worker, gpus_per_worker)
            if found is None:
                found = rows_of_dataset(source, columns)

        def tables() -> Iterator[pa.Table]:
            with translated(ray):
                yield from texts_of_dataset(ray, source, columns) if files is None else files.tables()

        opening = opened(
            output,
            found,
            same,
            versions,
            resume=resume,
            overwrite=overwrite,
            redo=tables if redo_changed else None,
            shown=progress,
            started=started,
        )
        with opening as job, translated(ray):
            done = ray.put(job.done)
            read = from_dataset(source, columns, done) if files is None else from_files(ray, files, done)
            if not job.left:
                for _ in read.iter_batches(batch_size=None):
                    pass  # texts that have changed are found by reading them
                return job.finish()
            noted = ledger.started(ray, **on_this_node(ray))
            explained = read.repartition(target_num_rows_per_block=block_rows).map_batches(
                Worker,
                fn_constructor_kwargs={
                    "explainer": rows_explainer,
                    "model": same["model"],
                    "ledger": noted,
                    "threads": pool["num_cpus"],
                    "versions": versions,
                },
                batch_size=None,
                batch_format="pyarrow",
                max_restarts=RESTARTS,
                max_task_retries=RETRIES,
                **pool,
            )
            for table in explained.iter_batches(batch_size=None, batch_format="pyarrow"):
                if job.begun is None:
                    job.begin(time.monotonic() - time.time() + ray.get(noted.first.remote()))
                if len(table):
                    job.add(table.cast(part_schema(found.id_type)))
            return job.finish(ray.get(noted.padding.remote()))
