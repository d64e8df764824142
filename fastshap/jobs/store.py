"""The directory that a job writes: Parquet parts that appear when they are whole, and a manifest beside them."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastshap.batch import schema
from fastshap.errors import JobError
from fastshap.extras import needed
from fastshap.jobs.reading import MANIFEST, place

if TYPE_CHECKING:
    import pyarrow as pa

_OURS = re.compile(rf"\.?(part-[0-9a-f]{{8}}-\d+-\d+\.parquet|{re.escape(MANIFEST)})(\.tmp)?")


class Store:
    """A directory on a disk, or under a URI that pyarrow opens."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        self._fs, self.root = place(location)

    def names(self) -> list[str]:
        """Of everything in the directory, in order; none where there is no directory.

        Raises:
            JobError: it is a file, or cannot be read.
        """
        fs = needed("pyarrow.fs", "tables")
        with self._told("read"):
            if self._fs.get_file_info(self.root).type == fs.FileType.File:
                raise JobError(f"{self.location} is a file; name a directory for the output.")
            inside = self._fs.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
            return sorted(one.base_name for one in inside)

    def foreign(self) -> list[str]:
        """Names of what no job wrote."""
        return [name for name in self.names() if not _OURS.fullmatch(name)]

    def parts(self, job: str) -> list[str]:
        """Names of the committed parts of a job."""
        return [name for name in self.names() if name.startswith(f"part-{job}-") and name.endswith(".parquet")]

    def stray(self, job: str) -> list[str]:
        """Names of parts of other jobs, and of files that were not finished."""
        kept = {*self.parts(job), *self.foreign(), MANIFEST}
        return [name for name in self.names() if name not in kept]

    def manifest(self) -> dict[str, Any] | None:
        """What the manifest says; None where there is none.

        Raises:
            JobError: it does not read.
        """
        if MANIFEST not in self.names():
            return None
        try:
            with self._fs.open_input_stream(self._path(MANIFEST)) as file:
                manifest: dict[str, Any] = json.loads(file.read())
            if manifest["format"] == 1:
                same = manifest["identity"]
                _ = (
                    manifest["job"],
                    manifest["run"],
                    manifest["id_type"],
                    same["columns"]["id"],
                    same["columns"]["text"],
                )
                _ = manifest["state"] == "complete" and manifest["summary"]["rows"]
                return manifest
            what = f"has format {manifest['format']!r}, which this version of fastshap does not know"
        except (ValueError, KeyError, TypeError) as error:
            what = f"does not read ({error})"
        raise JobError(f"{self.location}/{MANIFEST} {what}. Take another directory, or --overwrite this one.")

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        with self._told("written"), self._whole(MANIFEST) as file:
            file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")

    def write(self, name: str, table: pa.Table) -> None:
        """A part, which appears when it is whole; its pages carry checksums."""
        parquet = needed("pyarrow.parquet", "tables")
        with self._told("written"), self._whole(name) as file:
            parquet.write_table(table, file, compression="zstd", write_page_checksum=True)

    def read(self, name: str) -> pa.Table | None:
        """A part, all of it, with its checksums; None where it is damaged."""
        arrow, parquet = needed("pyarrow", "tables"), needed("pyarrow.parquet", "tables")
        try:
            with self._fs.open_input_file(self._path(name)) as file:
                table: pa.Table = parquet.ParquetFile(file, page_checksum_verification=True).read()
        except (OSError, arrow.ArrowException):
            return None
        return table if table.schema.names == ["id", *schema().names] else None

    def remove(self, name: str) -> None:
        with self._told("written"):
            self._fs.delete_file(self._path(name))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process of this machine writes here. Locks end with their process, however it ends.

        Raises:
            JobError: another one does, or nothing can be written.
        """
        fs = needed("pyarrow.fs", "tables")
        if not isinstance(self._fs, fs.LocalFileSystem):
            yield  # an object store has no locks; each commit looks at the manifest instead
            return
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        with self._told("written"):
            os.makedirs(self.root, exist_ok=True)
            directory = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise JobError(f"Another run is writing to {self.location}; wait for it, or stop it.") from None
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def _whole(self, name: str) -> Iterator[Any]:
        self._fs.create_dir(self.root, recursive=True)
        beside = self._path(f".{name}.tmp")
        try:
            with self._fs.open_output_stream(beside) as file:
                yield file
            self._fs.move(beside, self._path(name))
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.delete_file(beside)
            raise

    @contextlib.contextmanager
    def _told(self, done: str) -> Iterator[None]:
        """What the file system refuses, as a :class:`JobError`."""
        arrow = needed("pyarrow", "tables")
        try:
            yield
        except (OSError, arrow.ArrowException) as error:
            why = str(error).strip().split("\n")[0].rstrip(".")
            raise JobError(
                f"{self.location} could not be {done}: {why}. Make room, allow it, or name another directory."
            ) from None

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"
