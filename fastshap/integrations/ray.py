"""A job on Ray Data: on the cores of this machine, or on a cluster.

Ray reads, explains and retries; this process alone writes (fastshap.jobs.job). So whatever is lost or done twice on the way, a
row is in the output once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import socket
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fastshap import checks
from fastshap.errors import FastshapError, InvalidArgumentError, JobError, WorkerDiedError
from fastshap.extras import needed
from fastshap.jobs.batch import BatchExplainer, strings, to_table
from fastshap.jobs.ids import Known
from fastshap.jobs.job import (
    Rows,
    identity,
    model_identity,
    part_schema,
    refuse_duplicates,
    rest,
    rows_of,
    rows_of_files,
)
from fastshap.jobs.opening import differences, opened, refuse_unfit
from fastshap.jobs.progress import Summary
from fastshap.jobs.reading import Columns, Files, plain, rows, texts_of
from fastshap.jobs.store import Store
from fastshap.models.provenance import library_versions

if TYPE_CHECKING:
    import pyarrow as pa

# Of a worker, and of a batch: finite, since a text that kills its process would be tried for ever.
_RESTARTS = _RETRIES = 20
# A batch that killed its worker so often is explained row by row; a row that did so by itself is recorded as an error.
_DEATHS = 2
_BLOCK = 16 << 20  # bytes that a reader hands on at once
_ANSWER = 10.0  # seconds that a cluster has to answer
_SPARE_CPUS = 2  # of a Ray that is started here, for what reads and cuts while the workers hold theirs


def explain_dataset(
    source: Any,
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    text_column: str = "text",
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
) -> Summary:
    """Explains the rows of files or of a Ray Dataset on Ray, into a directory of Parquet files.

    Where this process has joined a Ray cluster already, that one is used. Otherwise Ray is started for the time of the job, on
    this machine and its loopback address, or joined at ``address``.

    Args:
        source: a ``ray.data.Dataset``, or a Parquet, CSV or JSON-lines file or a directory of these, which every node can
            read. Of a Dataset the ids are read beforehand, so that it is computed twice unless it is materialised.
        output: a directory that this process writes.
        model: a directory or hub id that every node, and this process, can load; None is the model inside the package.
        text_column: the column of texts.
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
        settings: ``targets``, ``generation_kwargs`` and parameters of :class:`fastshap.GradientShap`.

    Raises:
        JobError: the output, the input or the cluster is not fit to begin or to end; the message says what to do.
        WorkerDiedError: workers died over and over; what they had done is written.
        InvalidArgumentError, InvalidTypeError, UnsupportedModelError: a column, a setting or a model that cannot be used.
        MissingPackageError: Ray is not installed.
    """
    ray = _imported(address)
    started = time.monotonic()
    columns = Columns(id_column, text_column)
    batch = BatchExplainer(model, text_column=text_column, keep=(), **settings)
    whole_rows = checks.whole(rows_per_batch, "rows_per_batch", least=1)
    files = Files(source, columns) if isinstance(source, str | os.PathLike) else None
    found = None if files is None else rows_of_files(files)
    # What cannot work is said before Ray starts. The model is looked at on the CPU and forgotten: the workers have their own.
    here = BatchExplainer(model, text_column=text_column, keep=(), **settings | {"device": "cpu"})
    same, versions = identity(here, columns), here.provenance.versions
    del here
    refuse_unfit(Store(output), same, resume=resume, overwrite=overwrite, redo=redo_changed)
    with _running(ray, address, workers, cpus_per_worker) as is_ours, _quiet(ray, source):
        with _translated(ray):
            pool = _pool(ray, is_ours, workers, cpus_per_worker, gpus_per_worker)
            if found is None:
                found = _rows_of_dataset(source, columns)

        def tables() -> Iterator[pa.Table]:
            with _translated(ray):
                yield from _texts_of_dataset(ray, source, columns) if files is None else files.tables()

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
        with opening as job, _translated(ray):
            done = ray.put(job.done)
            read = _from_dataset(source, columns, done) if files is None else _from_files(ray, files, done)
            if not job.left:
                for _ in read.iter_batches(batch_size=None):
                    pass  # texts that have changed are found by reading them
                return job.finish()
            ledger = ray.remote(_Ledger).options(num_cpus=0, **_on_this_node(ray)).remote()
            explained = read.repartition(target_num_rows_per_block=whole_rows).map_batches(
                _Worker,
                fn_constructor_kwargs={
                    "batch": batch,
                    "model": same["model"],
                    "ledger": ledger,
                    "threads": pool["num_cpus"],
                    "versions": versions,
                },
                batch_size=None,
                batch_format="pyarrow",
                max_restarts=_RESTARTS,
                max_task_retries=_RETRIES,
                **pool,
            )
            for table in explained.iter_batches(batch_size=None, batch_format="pyarrow"):
                if job.begun is None:
                    job.begin(time.monotonic() - time.time() + ray.get(ledger.first.remote()))
                if len(table):
                    job.add(table.cast(part_schema(found.id_type)))
            return job.finish(ray.get(ledger.padding.remote()))


class _Ledger:
    """What workers have begun and not ended: which batch, or which row, was at hand when one died."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._first: float | None = None
        self._padding = [0, 0]

    def begin(self, key: str) -> int:
        """Notes that this is begun, and returns how often it was before, without an end."""
        self._first = self._first or time.time()
        self._begun[key] += 1
        return self._begun[key] - 1

    def end(self, keys: list[str], padding: int = 0, positions: int = 0) -> None:
        """Notes that these ended, and the positions of the model calls that it took."""
        for key in keys:
            self._begun.pop(key, None)
        self._padding = [self._padding[0] + padding, self._padding[1] + positions]

    def first(self) -> float:
        """When the first batch was begun, in seconds since the epoch."""
        return self._first or time.time()

    def padding(self) -> tuple[int, int]:
        """Positions that were padding, and all of them."""
        return self._padding[0], self._padding[1]


class _Worker:
    """Explains blocks of rows in a process of its own.

    A block whose worker died over it is explained row by row, and a row that its worker died over is not tried for ever.
    """

    def __init__(
        self, batch: BatchExplainer, model: dict[str, Any], ledger: Any, threads: float, versions: dict[str, str]
    ) -> None:
        torch.set_num_threads(max(1, int(threads)))
        self._batch, self._model, self._ledger, self._versions = batch, model, ledger, versions
        self._loaded = False

    def __call__(self, table: pa.Table) -> pa.Table:
        ray = needed("ray", "ray")
        if not self._loaded:
            self._check()
        ids, texts = table.column("id"), texts_of(table)
        before = self._batch.explainer.padding
        key = hashlib.blake2b(repr(ids.to_pylist()).encode(), digest_size=16).hexdigest()
        deaths = ray.get(self._ledger.begin.remote(key))
        if deaths > _RETRIES:
            raise WorkerDiedError(_often(f"{deaths} times over the same {len(ids)} rows, from id {ids[0].as_py()!r}"))
        ended = [key]
        if deaths < _DEATHS:
            outputs = self._batch.outputs(texts)
        else:
            outputs = []
            for i, text in enumerate(texts):
                ended.append(f"{key} {i}")
                if ray.get(self._ledger.begin.remote(ended[-1])) >= _DEATHS:
                    text = WorkerDiedError(f"The process that explained this text died {_DEATHS} times over it alone.")
                outputs += self._batch.outputs([text])
                ray.get(self._ledger.end.remote([ended.pop()]))
        after = self._batch.explainer.padding
        ray.get(self._ledger.end.remote(ended, after[0] - before[0], after[1] - before[1]))
        return to_table(texts, outputs).add_column(0, "id", ids)

    def _check(self) -> None:
        """Loads the model, and compares it and the libraries with the driver's."""
        here = library_versions()
        for name in self._versions:
            if name != "python" and here.get(name) != self._versions[name]:
                raise JobError(
                    f"A worker has {name} {here.get(name)}, and the driver {self._versions[name]}; install one everywhere."
                )
        about = model_identity(self._batch.provenance)
        for name in ("model_fingerprint", "tokenizer_fingerprint", "configuration", "labels_fingerprint"):
            if differing := differences(self._model[name], about[name], name):
                raise JobError(
                    f"A worker's model is another than the driver's ({'; '.join(differing)}): the same name led to another "
                    "model there. Put the same files on every node."
                )
        self._loaded = True


def _imported(address: str | None) -> Any:
    """ray, with ray.data."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and "ray" not in sys.modules:
        # By this name, which counts on Linux too, Ray is told that it has one node: it takes the loopback address then, instead
        # of looking for the one that other machines see and listening on all.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = needed("ray", "ray")
    needed("ray.data", "ray")
    return ray


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _running(ray: Any, address: str | None, workers: int | None, cpus: float) -> Iterator[bool]:
    """Ray, started or joined for the time being; yields whether it was started here."""
    if ray.is_initialized():
        if address is not None:
            raise InvalidArgumentError("This process has joined a Ray cluster already; leave the address out.")
        yield False
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "fastshap"}
    if address is None:
        wanted = (workers or max(1, int(_cores() // cpus))) * cpus
        if wanted > _cores():
            raise JobError(
                f"{workers or 1} workers of {cpus:g} CPUs each are more than the {_cores()} cores of this machine; take fewer "
                "workers (--workers), or a cluster (--address)."
            )
        # Ray's C++ side writes to the terminal, whatever Python's logging is told.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with _hushed():
            ray.init(
                address="local",
                num_cpus=math.ceil(wanted) + _SPARE_CPUS,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    else:
        try:
            _knock(address)
            ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise JobError(f"There is no Ray cluster at {address}: {_first_line(error)}") from None
    try:
        yield address is None
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Whether anybody listens at host:port, since Ray itself would go on asking for many minutes."""
    if found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), _ANSWER).close()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what native code writes to standard error; exceptions say what goes wrong."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _quiet(ray: Any, source: Any) -> Iterator[None]:
    """Ray Data without bars, messages and exceptions of its own, in small blocks; its settings are put back.

    A Dataset has settings of its own, those of when it was made.
    """
    contexts = [ray.data.DataContext.get_current(), *([source.context] if hasattr(source, "context") else [])]
    ours = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": _BLOCK,
        "raise_original_map_exception": True,  # one that Ray Data wraps loses its cause on the way here
    }
    theirs = [{name: getattr(context, name) for name in ours} for context in contexts]
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        with warnings.catch_warnings():
            # Restarts and retries have no other place yet than the one that is to go.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            # An input smaller than the workers could take is no fault.
            warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
            logger.setLevel(logging.CRITICAL)
            for context in contexts:
                _set(context, ours)
            yield
    finally:
        for context, values in zip(contexts, theirs, strict=True):
            _set(context, values)
        logger.setLevel(level)


def _set(context: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(context, name, value)


@contextlib.contextmanager
def _translated(ray: Any) -> Iterator[None]:
    """Errors of fastshap's come out of Ray as themselves, and lost workers as :class:`WorkerDiedError`."""
    try:
        yield
    except Exception as error:
        chain: list[BaseException] = [error]
        while (below := getattr(chain[-1], "cause", None) or chain[-1].__cause__) and below not in chain:
            chain.append(below)
        for one in reversed(chain):
            # Ray makes classes that are its own and the cause's at once, with a traceback for a message.
            if isinstance(one, FastshapError) and not isinstance(one, ray.exceptions.RayError):
                one.args = (str(one).split("\nFailed to ")[0],)  # what Ray Data adds about retries
                raise one from None
        lost = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
        if any(isinstance(one, lost) for one in chain):
            raise WorkerDiedError(_often(f"more often than {_RESTARTS} times ({_first_line(chain[-1])})")) from error
        raise JobError(f"Ray could not continue: {type(chain[-1]).__name__}: {_first_line(chain[-1])}") from error


def _often(how: str) -> str:
    return (
        f"Workers died {how}. Memory that runs out, or a library that crashes, are the usual reasons; Ray's logs are in "
        "/tmp/ray/session_latest/logs. Fewer rows at a time (--rows-per-batch) or a smaller --batch-size need less memory."
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _pool(ray: Any, is_ours: bool, workers: int | None, cpus: float, gpus: float | None) -> dict[str, Any]:
    """What the workers take of the cluster, as ``map_batches`` wants it.

    Raises:
        JobError: they do not fit, or leave no CPU for what reads, which would wait for ever.
    """
    total = ray.cluster_resources()
    gpus = (1 if total.get("GPU", 0) >= 1 else 0) if gpus is None else gpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else math.inf)) for node in nodes
    )
    if workers is None:
        workers = places if gpus else int(_cores() // cpus) if is_ours else int((total.get("CPU", 0) - 1) // cpus)
        workers = max(1, workers)
    for name, each, beside in (("CPU", cpus, 1), ("GPU", gpus, 0)):
        there, needs = total.get(name, 0), workers * each + beside
        now = min(there, _free(ray, name, needs if needs <= there else 0))
        if needs > now:
            raise JobError(
                f"{workers} workers of {each:g} {name}s each{' and a CPU for what reads' * beside} take {needs:g} "
                f"{name}s; the cluster has {there:g}, of which {now:g} are free. They would wait for ever: take fewer workers "
                f"(--workers), or less for each (--{name.lower()}s-per-worker), or a larger cluster."
            )
    if workers > places:
        raise JobError(
            f"No node has room for a worker of {cpus:g} CPUs and {gpus:g} GPUs, or not for all: there is room for {places} of "
            f"{workers}. Take fewer workers (--workers), or less for each (--cpus-per-worker, --gpus-per-worker)."
        )
    return {"compute": ray.data.ActorPoolStrategy(size=workers), "num_cpus": cpus, "num_gpus": gpus or None}


def _free(ray: Any, name: str, needs: float) -> float:
    """How much of a resource nobody holds; what was let go of just now is given a little time to be told."""
    limit = time.monotonic() + _ANSWER
    while (free := float(ray.available_resources().get(name, 0))) < needs and time.monotonic() < limit:
        time.sleep(0.1)
    return free


def _on_this_node(ray: Any) -> dict[str, Any]:
    strategies = needed("ray.util.scheduling_strategies", "ray")
    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)}


def _from_files(ray: Any, files: Files, done: Any) -> Any:
    """A Dataset of the rows that are not done."""
    pieces = files.pieces()

    def read(numbers: pa.Table) -> Iterator[pa.Table]:
        for number in numbers.column("piece").to_pylist():
            for table in files.read(pieces[number]):
                yield rest(table, ray.get(done))

    numbers = ray.data.from_items([{"piece": i} for i in range(len(pieces))], override_num_blocks=len(pieces))
    return numbers.map_batches(read, batch_size=1, batch_format="pyarrow")


def _from_dataset(source: Any, columns: Columns, done: Any) -> Any:
    """Likewise, of a Dataset."""
    ray = needed("ray", "ray")

    def normal(table: pa.Table) -> pa.Table:
        found = rows("the Dataset", plain(table.column(columns.id)), strings(table.column(columns.text)))
        return rest(found, ray.get(done))

    return source.select_columns([columns.id, columns.text]).map_batches(
        normal, batch_size=None, batch_format="pyarrow"
    )


def _texts_of_dataset(ray: Any, source: Any, columns: Columns) -> Iterator[pa.Table]:
    """All rows of a Dataset, here."""
    every = _from_dataset(source, columns, ray.put(Known().sorted()))
    found: Iterator[pa.Table] = every.iter_batches(batch_size=None, batch_format="pyarrow")
    return found


def _rows_of_dataset(source: Any, columns: Columns) -> Rows:
    """The ids of a Dataset.

    Raises:
        InvalidArgumentError: it is none, or lacks a column.
        JobError: ids that cannot be used.
    """
    if not hasattr(source, "map_batches"):
        raise InvalidArgumentError(f"The input is a path, or a ray.data.Dataset; got {type(source).__name__}.")
    names = source.columns() or []
    for name in (columns.id, columns.text):
        if name not in names:
            raise InvalidArgumentError(
                f"The Dataset has no column {name!r}; it has {', '.join(map(repr, names))}. Name the right ones as id_column "
                "and text_column."
            )

    def tables() -> Iterator[pa.Table]:
        for table in source.select_columns([columns.id]).iter_batches(batch_size=None, batch_format="pyarrow"):
            yield rows("the Dataset", plain(table.column(columns.id)), None)

    found = rows_of(tables(), {"location": "a Ray Dataset"})
    refuse_duplicates(found, tables())
    return found
