"""Rows of Parquet, CSV and JSON-lines files, a few thousand at a time: an id, and a text or what is wrong with it.

Both ways to run a job read through here, so that the same file gives the same rows.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastshap.errors import FastshapError, InvalidArgumentError, JobError, recorded
from fastshap.extras import needed
from fastshap.jobs.columns import Columns
from fastshap.jobs.lines import csv_rows, lines
from fastshap.jobs.listing import checked_path, listed
from fastshap.jobs.recorded import error_of
from fastshap.jobs.texts import Text, checked_text, decoded, strings, text_of, texts_in
from fastshap.output.checked import short
from fastshap.text.inputs import spelled

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 4096  # of a table
_ROWS_OF_SHARD = 65_536  # at least, where a Parquet file is read in several
_SHOWN = 20  # names in a message
_KINDS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
# How a table of text is called, which is one file. A directory of Parquet files is often called after its format.
TEXT_FILES = tuple(kind + packed for kind in (".csv", ".jsonl", ".ndjson", ".json") for packed in ("", *_PACKED))


@dataclass(frozen=True)
class Shard:
    """What one reader reads: a file, or some row groups of it."""

    path: str
    kind: str
    groups: tuple[int, ...] | None = None


def place(location: str | os.PathLike[str]) -> tuple[Any, str]:
    """The file system of a path or URI, and the path there.

    Raises:
        InvalidArgumentError: a URI of no file system that pyarrow knows, or a name that is no UTF-8.
    """
    fs = needed("pyarrow.fs", "tables")
    text = checked_path(os.fspath(location))
    if "://" not in text:
        return fs.LocalFileSystem(), checked_path(os.path.abspath(text))
    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(text)
    except Exception as error:
        raise InvalidArgumentError(f"{text} is no place that pyarrow can open: {error}") from None
    return found


class Files:
    """A file, or all files of a directory, in order of their names; can be pickled."""

    def __init__(self, location: str | os.PathLike[str], columns: Columns) -> None:
        fs = needed("pyarrow.fs", "tables")
        self.columns = columns
        self.location = os.fspath(location)
        self._fs, root = place(location)
        about = self._fs.get_file_info(root)
        if about.type == fs.FileType.NotFound:
            raise InvalidArgumentError(f"There is no file or directory {self.location}.")
        if about.type == fs.FileType.Unknown:
            raise InvalidArgumentError(
                f"{self.location} is neither a file nor a directory; rows are read more than once."
            )
        try:
            self.paths = [root] if about.type == fs.FileType.File else listed(self._fs, root)
        except OSError as error:
            raise _unreadable(self.location, error) from None
        self._kinds = {path: _kind(path) for path in self.paths}
        if not self.paths:
            raise InvalidArgumentError(f"The directory {self.location} holds no files.")

    def about(self) -> dict[str, Any]:
        """For the manifest."""
        return {"location": self.location, "files": [posixpath.basename(path) for path in self.paths]}

    def shards(self) -> list[Shard]:
        """All there is to read; columns are looked at.

        Raises:
            JobError: a file that does not open; the message names it.
            InvalidArgumentError: a column that is not there, or of a type that cannot be used.
        """
        return [shard for path in self.paths for shard in self._shards(path, self._kinds[path])]

    def read(self, shard: Shard, texts: bool = True) -> Iterator[pa.Table]:
        """Tables of id (int64 or string), text, perhaps pair or choices, and problem; all but id only if ``texts``.

        Raises:
            JobError: the file is damaged, or a row has no usable id; the message names the file and, where it can, the line.
        """
        arrow = needed("pyarrow", "tables")
        try:
            yield from getattr(self, f"_{shard.kind}")(shard, texts)
        except FastshapError:
            raise
        except (OSError, arrow.ArrowException, UnicodeDecodeError, EOFError) as error:
            raise _unreadable(shard.path, error) from None

    def tables(self, texts: bool = True) -> Iterator[pa.Table]:
        """All shards, one after the other."""
        for shard in self.shards():
            yield from self.read(shard, texts)

    def _shards(self, path: str, kind: str) -> Iterator[Shard]:
        arrow = needed("pyarrow", "tables")
        if kind != "parquet":
            yield Shard(path, kind)
            return
        try:
            parquet = needed("pyarrow.parquet", "tables")
            with self._fs.open_input_file(path) as file:
                about = parquet.ParquetFile(file)
                schema = about.schema_arrow
                sizes = [about.metadata.row_group(i).num_rows for i in range(about.num_row_groups)]
                if sum(sizes) != about.metadata.num_rows:
                    raise OSError(f"it says {about.metadata.num_rows:,} rows, and its row groups {sum(sizes):,}")
        except (OSError, arrow.ArrowException, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from None
        self._check(path, schema.names)
        for part, name in zip(self.columns.parts, self.columns.of_texts, strict=True):
            fits, wanted = (
                (_are_texts(arrow), "lists of strings") if part == "choices" else (_is_text(arrow), "strings")
            )
            _check_type(path, name, schema.field(name).type, fits, wanted)
        _check_type(
            path, self.columns.id, schema.field(self.columns.id).type, _is_id(arrow), "whole numbers or strings"
        )
        groups: list[int] = []
        for i, _ in enumerate(sizes):
            groups.append(i)
            if sum(sizes[j] for j in groups) >= _ROWS_OF_SHARD:
                yield Shard(path, kind, tuple(groups))
                groups = []
        if groups:
            yield Shard(path, kind, tuple(groups))

    def _check(self, path: str, names: list[str]) -> None:
        its = self.columns
        for option, name in {"id_column": its.id, **its.options}.items():
            if name not in names:
                raise InvalidArgumentError(
                    f"{posixpath.basename(path)} has no column {name!r}; it has {_few(names)}. Name "
                    f"the right one as {option} (--{option.replace('_', '-')})."
                )
            if names.count(name) > 1:
                raise InvalidArgumentError(
                    f"{posixpath.basename(path)} has {names.count(name)} columns named {name!r}; rename all but one."
                )

    def _parquet(self, shard: Shard, texts: bool) -> Iterator[pa.Table]:
        parquet = needed("pyarrow.parquet", "tables")
        names = [self.columns.id, *(self.columns.of_texts if texts else ())]
        with self._fs.open_input_file(shard.path) as file:
            opened = parquet.ParquetFile(file, page_checksum_verification=True)
            left = sum(opened.metadata.row_group(i).num_rows for i in shard.groups or ())
            for batch in opened.iter_batches(_ROWS, row_groups=shard.groups, columns=names):
                left -= len(batch)
                columns = [strings(batch.column(name)) for name in self.columns.of_texts] if texts else None
                yield checked_rows(shard.path, batch.column(self.columns.id), self.columns.named(columns))
            if left:
                raise OSError(f"{abs(left):,} rows are {'missing' if left > 0 else 'too many'}")

    def _csv(self, shard: Shard, texts: bool) -> Iterator[pa.Table]:
        """Every value as it is written: "NA" is a text, and 007 an id. Other columns are not looked at."""
        with self._open(shard.path) as stream:
            found = csv_rows(stream, shard.path)
            _, names = next(found, (0, []))
            self._check(shard.path, names)
            id_, places = names.index(self.columns.id), [names.index(name) for name in self.columns.of_texts]
            ids: list[Any] = []
            values: list[list[Any]] = [[] for _ in places]
            for number, row in found:
                if len(row) != len(names):
                    raise JobError(
                        f"{shard.path}, line {number}, has {len(row)} values, and the first line names {len(names)} columns. "
                        "Repair the file; nothing was skipped."
                    )
                ids.append(row[id_])
                for column, at in zip(values, places, strict=True):
                    column.append(_of_csv(row[at]))
                if len(ids) == _ROWS:
                    yield self._rows(shard, ids, values if texts else None)
                    ids, values = [], [[] for _ in places]
            if ids:
                yield self._rows(shard, ids, values if texts else None)

    def _rows(self, shard: Shard, ids: list[Any], columns: list[list[Any]] | None) -> pa.Table:
        return checked_rows(shard.path, _json_ids(shard.path, ids), self.columns.named(columns))

    def _open(self, path: str) -> Any:
        """A stream of the file, unpacked as its name says."""
        return self._fs.open_input_stream(path, compression=_PACKED.get(posixpath.splitext(path.lower())[1]))

    def _jsonl(self, shard: Shard, texts: bool) -> Iterator[pa.Table]:
        with self._open(shard.path) as stream:
            ids: list[Any] = []
            found: list[list[Any]] = [[] for _ in self.columns.of_texts]
            checked = False
            for number, line in enumerate(lines(stream, shard.path), 1):
                if not line.strip():
                    continue
                row = _json_row(shard.path, number, line)
                if not checked:
                    self._check(shard.path, list(row))
                    checked = True
                ids.append(_json_id(shard.path, number, row.get(self.columns.id)))
                for name, column in zip(self.columns.of_texts, found, strict=True):
                    column.append(row[name] if name in row else InvalidArgumentError(f"The row has no {name!r}."))
                if len(ids) == _ROWS:
                    yield self._rows(shard, ids, found if texts else None)
                    ids, found = [], [[] for _ in found]
            if ids:
                yield self._rows(shard, ids, found if texts else None)


def checked_rows(path: str, ids: Any, columns: Mapping[str, list[Any]] | None) -> pa.Table:
    """A table as :meth:`Files.read` gives it, from an Arrow array of ids and, where wanted, the parts of texts by their names.

    Raises:
        JobError: ids that are null, or of a type that cannot be used.
    """
    arrow = needed("pyarrow", "tables")
    _check_type(path, "id", ids.type, _is_id(arrow), "whole numbers or strings")
    if ids.null_count:
        raise JobError(f"{posixpath.basename(path)} has a row without an id; give every row one, all different.")
    try:
        ids = ids.cast(arrow.int64() if arrow.types.is_integer(ids.type) else arrow.string())
        if not arrow.types.is_integer(ids.type):
            ids.validate(full=True)
    except arrow.ArrowException as error:
        raise JobError(f"{posixpath.basename(path)} has an id that cannot be used: {error}") from None
    if columns is None:
        return arrow.table({"id": ids})
    rows = [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]
    checked = [_encodable_text(checked_text(text_of(row))) for row in rows]
    problems = [recorded(one) if isinstance(one, FastshapError) else None for one in checked]
    good = [None if isinstance(one, FastshapError) else (one,) if isinstance(one, str) else one for one in checked]
    texts = {
        name: arrow.array([None if one is None else one[i] for one in good], _type_of(arrow, name))
        for i, name in enumerate(columns)
    }
    return arrow.table({"id": ids, **texts, "problem": arrow.array(problems, arrow.string())})


def _type_of(arrow: Any, part: str) -> Any:
    return arrow.list_(arrow.string()) if part == "choices" else arrow.string()


def plain_ids(column: Any) -> Any:
    """A column of ids that another engine keeps as Python objects, as an Arrow array."""
    arrow = needed("pyarrow", "tables")
    if not isinstance(column.type, arrow.BaseExtensionType):
        return column
    return _json_ids("the Dataset", [_json_id("the Dataset", i, one) for i, one in enumerate(column.to_pylist())])


def texts_of(table: pa.Table) -> list[Text | FastshapError]:
    """The texts of a table of :func:`checked_rows`, with the error in the place of each that is none."""
    rows = zip(texts_in(table), table.column("problem").to_pylist(), strict=True)
    return [text if problem is None else error_of(problem) for text, problem in rows]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return (", ".join(repr(name) if len(name) < 100 else short(name) for name in names[:_SHOWN]) or "none") + more


def _encodable_text(text: Text | FastshapError) -> Text | FastshapError:
    if not isinstance(text, FastshapError):
        try:
            spelled(text).encode()
        except UnicodeEncodeError:
            return InvalidArgumentError("The text holds half of a surrogate pair, which is no character.")
    return text


def _kind(path: str) -> str:
    name = posixpath.basename(path).lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    kind = _KINDS.get(os.path.splitext(name)[1])
    if kind is None or (kind == "parquet" and name != posixpath.basename(path).lower()):
        raise InvalidArgumentError(
            f"{path} is none of {', '.join(_KINDS)} (the latter four also with {', '.join(_PACKED)}), by its name. Rename "
            "it, or move it out of the directory."
        )
    return kind


def _unreadable(path: str, error: Exception) -> JobError:
    first = str(error).strip().split("\n")[0]
    return JobError(
        f"{path} could not be read: {first.rstrip('.')}. Repair the file or take it away; nothing was skipped."
    )


def _is_text(arrow: Any) -> Any:
    types = arrow.types

    def fits(one: Any) -> bool:
        one = one.value_type if types.is_dictionary(one) else one
        return bool(
            types.is_string(one) or types.is_large_string(one) or types.is_string_view(one) or types.is_null(one)
        )

    return fits


def _are_texts(arrow: Any) -> Any:
    types = arrow.types
    text = _is_text(arrow)

    def fits(one: Any) -> bool:
        listed = types.is_list(one) or types.is_large_list(one) or types.is_fixed_size_list(one)
        return bool(types.is_null(one) or (listed and text(one.value_type)))

    return fits


def _is_id(arrow: Any) -> Any:
    types = arrow.types
    text = _is_text(arrow)
    return lambda one: bool(types.is_integer(one) or (text(one) and not types.is_null(one)))


def _check_type(path: str, column: str, kind: Any, fits: Any, wanted: str) -> None:
    if not fits(kind):
        raise InvalidArgumentError(
            f"The column {column!r} of {posixpath.basename(path)} holds {kind}; it takes {wanted}. Name another column, or "
            "convert this one."
        )


def _of_csv(text: str) -> str | FastshapError | None:
    """The text, or what is wrong with the bytes that it was read from."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return decoded(text.encode("utf-8", "surrogateescape"))


def _json_row(path: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path}, line {number}, is no JSON: {error}. Repair the file; nothing was skipped.") from None
    if not isinstance(row, dict):
        raise JobError(f'{path}, line {number}, holds no object; a line looks like {{"id": 1, "text": "…"}}.')
    return row


def _json_id(path: str, number: int, one: Any) -> int | str:
    whole = isinstance(one, int) and not isinstance(one, bool) and -(2**63) <= one < 2**63
    if not whole and not isinstance(one, str):
        raise JobError(f"{path}, line {number}: an id is a whole number of 64 bits or a string; got {short(one)}.")
    return one


def _json_ids(path: str, ids: list[Any]) -> Any:
    arrow = needed("pyarrow", "tables")
    if len({isinstance(one, str) for one in ids}) > 1:
        raise JobError(f"{path} has ids that are numbers and ids that are strings; make them one or the other.")
    try:
        return arrow.array(ids)
    except UnicodeEncodeError:
        raise JobError(f"{path} has an id that is no UTF-8, or holds half of a surrogate pair.") from None
