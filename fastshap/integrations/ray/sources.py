"""Datasets of Ray's with the rows of an input: ids, texts and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed
from fastshap.jobs.columns import Columns
from fastshap.jobs.ids import Known
from fastshap.jobs.inputs import InputRows, refuse_duplicates, rest, rows_of
from fastshap.jobs.reading import Files, checked_rows, plain_ids
from fastshap.jobs.texts import strings

if TYPE_CHECKING:
    import pyarrow as pa


def from_files(ray: Any, files: Files, done: Any) -> Any:
    """A Dataset of the rows that are not done."""
    shards = files.shards()

    def read(numbers: pa.Table) -> Iterator[pa.Table]:
        for number in numbers.column("shard").to_pylist():
            for table in files.read(shards[number]):
                yield rest(table, ray.get(done))

    numbers = ray.data.from_items([{"shard": i} for i in range(len(shards))], override_num_blocks=len(shards))
    return numbers.map_batches(read, batch_size=1, batch_format="pyarrow")


def from_dataset(source: Any, columns: Columns, done: Any) -> Any:
    """Likewise, of a Dataset."""
    ray = needed("ray", "ray")

    def normal(table: pa.Table) -> pa.Table:
        texts = [strings(table.column(name)) for name in columns.of_texts]
        ids = plain_ids(table.column(columns.id))
        return rest(checked_rows("the Dataset", ids, columns.named(texts)), ray.get(done))

    return source.select_columns([columns.id, *columns.of_texts]).map_batches(
        normal, batch_size=None, batch_format="pyarrow"
    )


def texts_of_dataset(ray: Any, source: Any, columns: Columns) -> Iterator[pa.Table]:
    """All rows of a Dataset, here."""
    every = from_dataset(source, columns, ray.put(Known().sorted()))
    found: Iterator[pa.Table] = every.iter_batches(batch_size=None, batch_format="pyarrow")
    return found


def rows_of_dataset(source: Any, columns: Columns) -> InputRows:
    """The ids of a Dataset.

    Raises:
        InvalidArgumentError: it is none, or lacks a column.
        JobError: ids that cannot be used.
    """
    if not hasattr(source, "map_batches"):
        raise InvalidArgumentError(f"The input is a path, or a ray.data.Dataset; got {type(source).__name__}.")
    names = source.columns() or []
    for name in (columns.id, *columns.of_texts):
        if name not in names:
            raise InvalidArgumentError(
                f"The Dataset has no column {name!r}; it has {', '.join(map(repr, names))}. Name the right ones as id_column "
                "and text_column."
            )

    def tables() -> Iterator[pa.Table]:
        for table in source.select_columns([columns.id]).iter_batches(batch_size=None, batch_format="pyarrow"):
            yield checked_rows("the Dataset", plain_ids(table.column(columns.id)), None)

    found = rows_of(tables(), {"location": "a Ray Dataset"})
    refuse_duplicates(found, tables())
    return found
