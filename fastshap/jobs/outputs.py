"""The outputs in a job's directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal, overload

from fastshap.errors import InvalidArgumentError, JobError
from fastshap.jobs.store import Store
from fastshap.output.output import AttributionOutput
from fastshap.output.parquet import rows_in


@overload
def read(output: str | os.PathLike[str], *, ids: Literal[False] = False) -> Iterator[AttributionOutput]: ...


@overload
def read(output: str | os.PathLike[str], *, ids: Literal[True]) -> Iterator[tuple[int | str, AttributionOutput]]: ...


def read(
    output: str | os.PathLike[str], *, ids: bool = False
) -> Iterator[AttributionOutput] | Iterator[tuple[int | str, AttributionOutput]]:
    """The outputs in a job's directory, one after the other, in the order in which they were written.

    A job in one process writes rows in the order of its input. Rows that it explained again come last. On Ray, the order is
    that in which workers finish. A few rows are in memory at a time. If the job is incomplete, you get the outputs that are
    there; :func:`fastshap.jobs.verify` tells whether there are more to come.

    The outputs are those that an explainer would have returned for the texts. If a row could not be explained, ``error`` is
    set. Rows of earlier versions (manifest formats 1 and 2) have no texts, spans and model inputs, because these versions did
    not store them.

    Args:
        output: the directory that :func:`fastshap.jobs.run` or ``fastshap run`` wrote.
        ids: give pairs of each row's id and its output.

    Raises:
        JobError: there is no output, or a part is damaged; the message names the part.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     source = pathlib.Path(place, "reviews.csv")
        ...     _ = source.write_text("id,text\\nfirst,A gorgeous film.\\nsecond,\\n")
        ...     summary = fastshap.jobs.run(source, f"{place}/scores", runner="local", n_perturbations=4)
        ...     for name, found in fastshap.jobs.read(f"{place}/scores", ids=True):
        ...         print(name, found.elements, found.error)
        first ['A', 'gorgeous', 'film', '.'] None
        second [] InvalidArgumentError: The text is empty or only white space; there is nothing to explain.
    """
    store = Store(output)
    manifest = store.manifest()
    if manifest is None:
        raise JobError(f"{store.location} holds no output of a job.")
    return _read(store, manifest, ids)


def _read(store: Store, manifest: dict[str, Any], ids: bool) -> Iterator[Any]:
    for where, name in store.places(manifest):
        with where.part_file(name) as file:
            try:
                for row, output in rows_in(file, f"{store.location}/{name}", manifest):
                    yield (row["id"], output) if ids else output
            except InvalidArgumentError as error:
                raise JobError(
                    f"A part is damaged: {error} Run the job with resume=True to compute its rows again."
                ) from None
