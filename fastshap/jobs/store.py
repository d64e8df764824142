"""The directory that a job writes: Parquet parts that appear when they are whole, and a manifest beside them.

Each part says in its own metadata which job it belongs to, so that a manifest that is lost or damaged can be made anew.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastshap.errors import JobError
from fastshap.extras import needed
from fastshap.jobs.digests import DIGEST
from fastshap.jobs.listing import MANIFEST
from fastshap.jobs.reading import place
from fastshap.output.parquet import ABOUT, OPTIONS, columns_of_outputs

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 3  # of the manifest; 1 had parts without digests and metadata, and up to 2 they held less of each output
NEXT = "_fastshap_next"  # a directory in the output: what an overwrite has written so far
_KNOWN = range(1, FORMAT + 1)
_OURS = re.compile(rf"\.?(part-([0-9a-f]{{8}})-(\d+)-(\d+)\.parquet|{re.escape(MANIFEST)})(\.tmp)?")
_JOB = re.compile("[0-9a-f]{8}")
_STATES = ("running", "complete", "switching")
_NEEDED = {"id", "text_hash", "attributions", "n_perturbations", "truncated", "error"}  # columns of a part
_TRIES, _PAUSE = 4, 0.05  # for the lock: who only looks whether there is a run holds it for a moment too


class Store:
    """A directory on a disk, or under a URI that pyarrow opens."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        self._fs, self.root = place(location)

    def next(self) -> Store:
        """The directory inside this one where an overwrite writes."""
        inner = copy.copy(self)
        inner.root = f"{self.root}/{NEXT}"
        return inner

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
        return [name for name in self.names() if not _OURS.fullmatch(name) and name != NEXT]

    def parts(self, job: str = "") -> list[str]:
        """Names of the committed parts, of a job or of all."""
        return [name for name in self.names() if name.startswith(f"part-{job}") and name.endswith(".parquet")]

    def places(self, manifest: dict[str, Any]) -> list[tuple[Store, str]]:
        """The parts of this output, in the order in which they were written, each with the directory where it is."""
        stores = [self, self.next()] if manifest["state"] == "switching" else [self]
        return [(store, name) for store in stores for name in sorted(store.parts(manifest["job"]), key=_written)]

    def holds_job(self) -> bool:
        """Whether there is anything of a job here, also where nothing says of which."""
        return MANIFEST in self.names() or bool(self.parts())

    def stray(self, job: str) -> list[str]:
        """Names of parts of other jobs, and of files that were not finished."""
        kept = {*self.parts(job), *self.foreign(), MANIFEST, NEXT}
        return [name for name in self.names() if name not in kept]

    def manifest(self) -> dict[str, Any] | None:
        """What the manifest says, or the parts where it is lost or does not read; None where there is neither.

        Raises:
            JobError: it does not read, and the parts do not say; or a later version wrote it.
        """
        if MANIFEST not in self.names():
            return self._from_parts()
        try:
            with self._fs.open_input_stream(self._path(MANIFEST)) as file:
                manifest: dict[str, Any] = json.loads(file.read())
            if manifest["format"] in _KNOWN:
                _check(manifest)
                return manifest
            what = f"has format {manifest['format']!r}, which this version of fastshap does not know"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if (found := self._from_parts()) is not None:
                return found
            what = f"does not read ({error})"
        raise JobError(f"{self.location}/{MANIFEST} {what}. Take another directory, or --overwrite this one.")

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        with self._told("written"), self._appearing(MANIFEST) as file:
            file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")

    def _from_parts(self) -> dict[str, Any] | None:
        """A manifest from the metadata of the parts, if they are of one job; an interrupted one, since nothing says more."""
        parts = self.parts()
        matches = [match for match in map(_OURS.fullmatch, parts) if match]
        if len({match[2] for match in matches}) != 1:
            return None
        for name in parts:
            table = self.read(name)
            if table is not None and (about := about_of(table)) is not None:
                return {**about, "state": "running", "run": max(int(match[3]) for match in matches)}
        return None

    def write(self, name: str, table: pa.Table) -> None:
        """A part, which appears when it is whole; its pages carry checksums."""
        parquet = needed("pyarrow.parquet", "tables")
        with self._told("written"), self._appearing(name) as file:
            parquet.write_table(table, file, **OPTIONS)

    def read(self, name: str) -> pa.Table | None:
        """A part, all of it, with its checksums; None where it is damaged. One of format 1 has digests that are null."""
        arrow, parquet = needed("pyarrow", "tables"), needed("pyarrow.parquet", "tables")
        try:
            with self._fs.open_input_file(self._path(name)) as file:
                table: pa.Table = parquet.ParquetFile(file, page_checksum_verification=True).read()
            if not set(table.schema.names) >= _NEEDED:
                return None
            if DIGEST not in table.schema.names:
                table = table.append_column(DIGEST, arrow.nulls(len(table), arrow.string()))
            ours = {one.name: one for one in columns_of_outputs()}
            return table.cast(arrow.schema([ours.get(one.name, one) for one in table.schema], table.schema.metadata))
        except (OSError, ValueError, arrow.ArrowException):
            return None

    @contextlib.contextmanager
    def part_file(self, name: str) -> Iterator[Any]:
        """A part as a file."""
        with self._told("read"), self._fs.open_input_file(self._path(name)) as file:
            yield file

    def move_out(self, name: str, to: Store) -> None:
        """Moves a part to another directory of the same file system."""
        with self._told("written"):
            self._fs.move(self._path(name), to._path(name))
            to._keep(to.root)

    def clear(self) -> None:
        """Removes the directory with all that is in it, the manifest last."""
        with self._told("written"):
            names = self.names()
            for name in sorted(names, key=lambda name: name == MANIFEST):
                self._fs.delete_file(self._path(name))
            with contextlib.suppress(OSError):  # an object store may have no directories
                self._fs.delete_dir(self.root)

    def take_next(self) -> None:
        """Puts a finished overwrite in the place of what is here; does nothing where there is none.

        A run that was killed in the middle is finished by the next one: each step can be taken again.
        """
        there = self.next()
        try:
            manifest = there.manifest()
        except JobError:  # nothing to take; whoever wants to resume it is told
            return
        if manifest is None or manifest["state"] != "complete":
            return
        self.write_manifest(manifest | {"state": "switching"})
        for name in there.parts(manifest["job"]):
            there.move_out(name, self)
        for name in self.stray(manifest["job"]):
            self.remove(name)
        self.write_manifest(manifest)
        there.clear()

    def remove(self, name: str) -> None:
        with self._told("written"):
            self._fs.delete_file(self._path(name))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process of this machine writes here. Locks end with their process, however it ends.

        Raises:
            JobError: another one does, or nothing can be written.
        """
        if not self._is_local():
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
            for left in reversed(range(_TRIES)):
                try:
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not left:
                        raise in_use(self.location) from None
                    time.sleep(_PAUSE)
            yield
        finally:
            os.close(directory)

    def busy(self) -> bool:
        """Whether a run of this machine is writing here now, as far as can be told: an object store does not say."""
        if not self._is_local():
            return False
        try:
            import fcntl

            directory = os.open(self.root, os.O_RDONLY)
        except (ImportError, OSError):
            return False
        try:
            fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(directory)
        return False

    @contextlib.contextmanager
    def _appearing(self, name: str) -> Iterator[Any]:
        self._fs.create_dir(self.root, recursive=True)
        beside = self._path(f".{name}.tmp")
        try:
            with self._fs.open_output_stream(beside) as file:
                yield file
            self._keep(beside)
            self._fs.move(beside, self._path(name))
            self._keep(self.root)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.delete_file(beside)
            raise

    def _is_local(self) -> bool:
        return isinstance(self._fs, needed("pyarrow.fs", "tables").LocalFileSystem)

    def _keep(self, path: str) -> None:
        """Has a disk keep a file's content, or a directory's names, also where the machine stops."""
        if self._is_local() and os.name == "posix":
            place = os.open(path, os.O_RDONLY)
            try:
                os.fsync(place)
            finally:
                os.close(place)

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


def _written(name: str) -> tuple[int, int]:
    """The run that wrote a part, and the part's number in it."""
    match = _OURS.fullmatch(name)
    return (int(match[3]), int(match[4])) if match else (0, 0)


def in_use(location: str) -> JobError:
    """What is said to a second run."""
    return JobError(f"Another run is writing to {location}; wait for it, or stop it.")


def with_about(part: pa.Table, about: dict[str, Any]) -> pa.Table:
    """The part, which says this of its job."""
    return part.replace_schema_metadata({ABOUT: json.dumps(about)})


def about_of(part: pa.Table) -> dict[str, Any] | None:
    """What a part says of its job; None where it says nothing, as in earlier versions."""
    try:
        about: dict[str, Any] = json.loads((part.schema.metadata or {})[ABOUT])
        _check({**about, "state": "running", "run": 0})
        return about
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _check(manifest: dict[str, Any]) -> None:
    """Raises a KeyError, TypeError or ValueError where something lacks or is not what it should be."""
    same = manifest["identity"]
    rows = 0 if manifest["state"] == "running" else manifest["summary"]["rows"]
    versions = manifest.get("versions", {})
    json.dumps(manifest, ensure_ascii=False).encode()
    fits = {
        "job": isinstance(manifest["job"], str) and _JOB.fullmatch(manifest["job"]),
        "run": _is_count(manifest["run"]),
        "id_type": manifest["id_type"] in ("int64", "string"),
        "state": manifest["state"] in _STATES,
        "identity": isinstance(same, dict) and isinstance(same["model"], dict),
        "identity.columns": same["columns"].keys() - {"pair", "choices"} == {"id", "text"}
        and _are_strings(same["columns"]),
        "summary.rows": _is_count(rows),
        "versions": isinstance(versions, dict) and _are_strings(versions),
    }
    if wrong := [name for name, good in fits.items() if not good]:
        raise ValueError(f"{', '.join(wrong)} cannot be")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_strings(values: dict[str, Any]) -> bool:
    return all(isinstance(one, str) for one in values.values())
