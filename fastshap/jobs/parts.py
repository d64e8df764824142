"""The rows of an output's parts: an id, the hash of the text, and the output in the library's one Parquet form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastshap.extras import needed
from fastshap.jobs.texts import text_hash
from fastshap.output.output import AttributionOutput
from fastshap.output.parquet import columns_of_outputs, to_arrow

if TYPE_CHECKING:
    import pyarrow as pa


def part_schema(id_type: str) -> pa.Schema:
    """Of a part, without the digests that are added when it is written."""
    arrow = needed("pyarrow", "tables")
    return arrow.schema([("id", id_type), ("text_hash", arrow.string()), *columns_of_outputs()])


def part_rows(ids: Any, texts: Sequence[Any], outputs: Sequence[AttributionOutput]) -> pa.Table:
    """A row for each output, with its id and the hash of its text, null where there was none."""
    arrow = needed("pyarrow", "tables")
    hashes = arrow.array([text_hash(text) for text in texts], arrow.string())
    return to_arrow(outputs).add_column(0, "text_hash", hashes).add_column(0, "id", ids)
