"""The front door of batch jobs: what is to be done, and who does it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastshap import checks
from fastshap.errors import InvalidArgumentError, MissingPackageError

if TYPE_CHECKING:
    from fastshap.jobs.summary import JobSummary

# By their places, since runners of other packages' stand above this module in the import chain. They are imported when used.
_RUNNERS = {"local": "fastshap.jobs.local:explain_files", "ray": "fastshap.integrations.ray:explain_dataset"}
_ON_RAY = {"address": None, "workers": None, "cpus_per_worker": 1, "gpus_per_worker": None, "rows_per_batch": 256}


def run(
    source: Any,
    output: str | os.PathLike[str],
    *,
    runner: str = "auto",
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
) -> JobSummary:
    """Explains a table of texts into a directory of Parquet files, each id exactly once.

    The job can be interrupted at any time; the same call with ``resume=True`` continues it, with any runner.

    Args:
        source: a Parquet, CSV or JSON-lines file, or a directory of these; a path, or a URI that pyarrow opens. On Ray also a
            ``ray.data.Dataset``.
        output: a directory. :func:`fastshap.jobs.read` gives the outputs in it.
        runner: "local" explains in this process, "ray" on Ray: on all cores of this machine, or on a cluster. "auto" is "ray"
            where Ray is installed, and "local" elsewhere.
        model: a directory or hub id; None is the model inside the package.
        text_column: the column of texts.
        id_column: the column of ids, whole numbers or strings, all different.
        resume: keep what an earlier run wrote and explain the rest; begin where there is nothing.
        overwrite: explain everything again. An earlier output stays until the new one is complete, and is then removed.
        redo_changed: with ``resume``, explain rows again if their text changed, instead of refusing.
        progress: show on standard error how far it is.
        address, workers, cpus_per_worker, gpus_per_worker, rows_per_batch: of the Ray cluster and its workers; see
            :func:`fastshap.integrations.ray.explain_dataset`.
        settings: ``targets``, ``generation_kwargs`` and parameters of :class:`fastshap.GradientShap`.

    Raises:
        JobError: the output, the input or the cluster is not fit to begin or to end; the message says what to do, and
            ``resumable`` whether ``resume=True`` continues.
        InvalidArgumentError, InvalidTypeError, UnsupportedModelError: a column, a setting or a model that cannot be used.
        MissingPackageError: pyarrow is not installed, or Ray, which the arguments ask for.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     source = pathlib.Path(place, "reviews.jsonl")
        ...     _ = source.write_text('{"id": 1, "text": "A gorgeous film."}\\n{"id": 2, "text": "not good"}')
        ...     summary = fastshap.jobs.run(source, f"{place}/scores", runner="local", n_perturbations=4)
        ...     print(summary.rows, [output.elements for output in fastshap.jobs.read(f"{place}/scores")])
        2 [['A', 'gorgeous', 'film', '.'], ['not', 'good']]
    """
    checks.one_of(runner, "runner", ("auto", *_RUNNERS))
    given = {
        "address": address,
        "workers": workers,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
        "rows_per_batch": rows_per_batch,
    }
    explain, takes_given = _explain(runner, [name for name, value in given.items() if value != _ON_RAY[name]])
    return explain(
        source,
        output,
        model=model,
        text_column=text_column,
        id_column=id_column,
        resume=resume,
        overwrite=overwrite,
        redo_changed=redo_changed,
        progress=progress,
        **given if takes_given else {},
        **settings,
    )


def _explain(runner: str, for_ray: list[str]) -> tuple[Callable[..., JobSummary], bool]:
    """The function that does it, and whether it takes what is for Ray alone; ``for_ray`` are the names that were given."""
    names = ", ".join(for_ray)
    if runner == "local" and for_ray:
        raise InvalidArgumentError(
            f"{names}: these are for Ray, and runner is 'local'. Leave them out, or run the job on Ray."
        )
    if runner == "auto":
        runner = "ray" if find_spec("ray") is not None else "local"
        if runner == "local" and for_ray:
            raise MissingPackageError(f"{names}: these need Ray: pip install 'fastshap-text[ray]'")
    module, name = _RUNNERS[runner].split(":")
    return getattr(importlib.import_module(module), name), runner == "ray"
