"""The front door of batch jobs: what to do, and who does it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastshap import checks
from fastshap.errors import InvalidArgumentError, MissingPackageError
from fastshap.extras import installing

if TYPE_CHECKING:
    from fastshap.jobs.summary import JobSummary

# Named by their paths and imported when used, because runners on other packages come later in the import chain.
_RUNNERS = {"local": "fastshap.jobs.local:explain_files", "ray": "fastshap.integrations.ray:explain_dataset"}
_ON_RAY = {"address": None, "workers": None, "cpus_per_worker": 1, "gpus_per_worker": None, "rows_per_batch": 256}


def run(
    source: Any,
    output: str | os.PathLike[str],
    *,
    runner: str = "auto",
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
    """Explains a table of texts and writes a directory of Parquet files, with each id exactly once.

    You can interrupt the job at any time. The same call with ``resume=True`` resumes it, with any runner.

    Args:
        source: a Parquet, CSV or JSON-lines file, or a directory of these, as a path or as a URI that pyarrow opens. On Ray
            also a ``ray.data.Dataset``.
        output: a directory. :func:`fastshap.jobs.read` gives the outputs in it.
        runner: "local" explains in this process. "ray" explains on Ray: on all cores of this machine, or on a cluster. "auto"
            is "ray" if Ray is installed, and "local" otherwise.
        model: a directory or hub id; None is the model inside the package.
        text_column: the column of texts.
        pair_column: for a model that reads pairs of texts: the column of the second texts.
        choices_column: for a model that chooses among texts: the column of the lists of choices.
        id_column: the column of ids, whole numbers or strings, all different.
        resume: keep what an earlier run wrote, and explain the rest. If there is no earlier run, begin.
        overwrite: explain everything again. An earlier output stays until the new one is complete, and is then removed.
        redo_changed: with ``resume``, explain rows again if their text changed, instead of refusing.
        progress: show on standard error how far the job is.
        address, workers, cpus_per_worker, gpus_per_worker, rows_per_batch: for the Ray cluster and its workers; see
            :func:`fastshap.integrations.ray.explain_dataset`.
        settings: ``targets`` and ``generation_kwargs`` as for :class:`fastshap.BatchExplainer`, and parameters of
            :class:`fastshap.GradientShap`.

    Raises:
        JobError: because of the output, the input or the cluster, the job cannot begin or cannot end. The message says what to
            do, and ``resumable`` says whether ``resume=True`` continues.
        InvalidArgumentError, InvalidTypeError, UnsupportedModelError: a column, a setting or the model cannot be used.
        MissingPackageError: pyarrow is not installed, or the arguments need Ray and it is not installed.

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
        pair_column=pair_column,
        choices_column=choices_column,
        id_column=id_column,
        resume=resume,
        overwrite=overwrite,
        redo_changed=redo_changed,
        progress=progress,
        **given if takes_given else {},
        **settings,
    )


def _explain(runner: str, for_ray: list[str]) -> tuple[Callable[..., JobSummary], bool]:
    """The function that explains, and whether it takes arguments for Ray; ``for_ray`` names those that were given."""
    names = ", ".join(for_ray)
    if runner == "local" and for_ray:
        raise InvalidArgumentError(
            f"{names}: these are for Ray, and runner is 'local'. Leave them out, or run the job on Ray."
        )
    if runner == "auto":
        runner = "ray" if find_spec("ray") is not None else "local"
        if runner == "local" and for_ray:
            raise MissingPackageError(f"{names}: these need Ray: {installing('ray')}")
    module, name = _RUNNERS[runner].split(":")
    return getattr(importlib.import_module(module), name), runner == "ray"
