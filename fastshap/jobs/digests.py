"""A digest of each row of an output, which tells whether the row still holds what was written.

It detects damage, exchanged rows and edited scores. It has no key, so it does not detect forgery: whoever edits a row can
compute the row's digest too.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import TYPE_CHECKING

import numpy as np

from fastshap.extras import needed
from fastshap.output.parquet import ABOUT

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST = "digest"
_BYTES = 8


def with_digests(table: pa.Table) -> pa.Table:
    """The table with a column of 16 hex digits, of each row's values in all columns."""
    arrow = needed("pyarrow", "tables")
    return table.append_column(DIGEST, arrow.array(_digests(table), arrow.string()))


def wrong(table: pa.Table) -> np.ndarray:
    """(N,) whether a row's digest is gone or that of other values; never in a part of format 1, which has neither metadata nor
    digests.
    """
    then = table.column(DIGEST)
    if then.null_count == len(table) and ABOUT not in (table.schema.metadata or {}):
        return np.zeros(len(table), bool)
    now = _digests(table.drop_columns([DIGEST]))
    return np.array([was != is_ for was, is_ in zip(then.to_pylist(), now, strict=True)], bool)


def _digests(table: pa.Table) -> list[str]:
    """BLAKE2 of the columns' names, and of each row's lengths and bytes."""
    names = json.dumps(table.schema.names).encode()
    found: list[str] = []
    for batch in table.to_batches():
        fixed, ragged = [], []
        for column in batch.columns:
            fixed.append(np.asarray(column.is_valid()).view(np.uint8)[:, None])
            some, more = _parts(column)
            fixed += some
            ragged += more
        fixed += [np.diff(offsets)[:, None].view(np.uint8) for offsets, _ in ragged]
        width = sum(one.shape[1] for one in fixed)
        heads = np.concatenate(fixed, axis=1).tobytes()
        rows = zip(*(_slices(offsets, data) for offsets, data in ragged), strict=True)
        for i, row in enumerate(rows):
            content = b"".join((names, heads[i * width : (i + 1) * width], *row))
            found.append(hashlib.blake2b(content, digest_size=_BYTES).hexdigest())
    return found


def _parts(column: pa.Array, within: bool = False) -> tuple[list[np.ndarray], list[tuple[np.ndarray, bytes]]]:
    """What a column holds: (N, bytes) where all rows are of a size, or else bytes with the (N + 1,) offsets of the rows.

    Args:
        within: whether it is the content of another column's lists, whose own lengths are told too then.
    """
    kind = str(column.type)
    if kind.startswith("list<"):
        offsets = column.offsets.to_numpy().astype(np.int64)
        fixed, ragged = _parts(column.values, within=True)
        inner = [(offsets * one.shape[1], one.tobytes()) for one in fixed]
        lengths = [np.diff(offsets)[:, None].view(np.uint8)] if within else []
        return lengths, inner + [(there[offsets], data) for there, data in ragged]
    if kind == "string":
        _, places, data = column.buffers()
        there = np.frombuffer(places, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
        # Lengths too: the strings of a list are one run of bytes otherwise.
        return [np.diff(there)[:, None].view(np.uint8)], [(there, b"" if data is None else data.to_pybytes())]
    if column.null_count:
        column = column.fill_null(False if kind == "bool" else 0)
    values = column.to_numpy(zero_copy_only=False)
    return [np.ascontiguousarray(values)[:, None].view(np.uint8)], []


def _slices(offsets: np.ndarray, data: bytes) -> list[bytes]:
    return [data[start:end] for start, end in itertools.pairwise(offsets.tolist())]
