"""The audit log: a line of JSON for each explanation, with its settings, its fingerprints and its scores.

A line holds the text only if the log is told to. Token ids, words, and the names of targets that people wrote reveal the text:
without it they are left out too.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from fastshap.errors import InvalidArgumentError
from fastshap.output.output import AttributionOutput
from fastshap.output.visible import printable
from fastshap.service.answers import settings_fingerprint
from fastshap.service.instances import Asked
from fastshap.service.logs import now
from fastshap.service.problems import ProblemError
from fastshap.tasks import has_classes

VERSION = 1
_CONTINUED = "continued"  # the event of a line behind which the log goes on after a start, or after one that failed
_PIECE = 100  # bytes; such a line has fewer
_OF_TEXT = ("text", "elements", "element_spans", "element_tokens", "model_inputs", "error")
_OF_TARGETS = ("targets", "target_names")


class Audit:
    """An audit log. Lines are appended, and each is whole when its answer goes out. One that fails is taken back.

    Args:
        path: the file. If it is there, it goes on behind its last line.
        with_texts: also write down the texts, and all that it takes to compute the scores again.

    Raises:
        InvalidArgumentError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], with_texts: bool = False) -> None:
        self._with_texts, self._guard = with_texts, threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            self._goes_on = os.fstat(self._file).st_size > 0  # behind what may be no whole line
            self._write(b"")
        except OSError as error:
            raise InvalidArgumentError(
                f"The audit log {os.fspath(path)!r} cannot be written: {error.strerror}."
            ) from None

    def add(
        self,
        asked: Sequence[Asked | ProblemError],
        found: Sequence[AttributionOutput | ProblemError],
        request_id: str,
        name: str,
    ) -> None:
        """Writes a line for each instance of a request.

        Raises:
            OSError: the file cannot be written, so there must be no answer.
        """
        begin = {"audit": VERSION, "time": now(), "request_id": request_id, "name": name}
        pairs = zip(asked, found, strict=True)
        self._write(b"".join(_line(begin | {"instance": i} | self._entry(*pair)) for i, pair in enumerate(pairs)))

    def close(self) -> None:
        with self._guard:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _entry(self, asked: Asked | ProblemError, one: AttributionOutput | ProblemError) -> dict[str, Any]:
        if isinstance(one, ProblemError):
            return {"error": one.type, "output": None}
        plain, its = one.to_dict(), cast(Asked, asked)  # it was explained
        return {
            "error": None,
            "settings_fingerprint": settings_fingerprint(one.settings),
            "target_given": its.target is not None,
            "max_new_tokens": its.options.get("generation_kwargs", {}).get("max_new_tokens"),
            "output": plain if self._with_texts else without_text(plain),
        }

    def _write(self, data: bytes) -> None:
        """Appends lines. If that fails, what there is of them is taken back; where it cannot be, the next begins a new line."""
        with self._guard:
            alone = _lock(self._file, True)
            try:
                end = os.fstat(self._file).st_size
                os.lseek(self._file, max(0, end - 1), os.SEEK_SET)
                whole = os.read(self._file, 1) in (b"", b"\n")
                if self._goes_on or not whole:
                    event = _line({"audit": VERSION, "time": now(), "event": _CONTINUED})
                    data = (b"" if whole else b"\n") + event + data
                self._goes_on = True
                try:
                    while data:
                        data = data[os.write(self._file, data) :]
                except OSError:
                    if alone:
                        with contextlib.suppress(OSError):
                            os.ftruncate(self._file, end)
                    raise
                self._goes_on = False
            finally:
                _lock(self._file, False)


def without_text(plain: dict[str, Any]) -> dict[str, Any]:
    """An output's plain form without what reveals its text."""
    left_out = {*_OF_TEXT, *(() if has_classes(plain["task"]) else _OF_TARGETS)}
    return {name: value for name, value in plain.items() if name not in left_out}


class Line(NamedTuple):
    """One explanation of an audit log, or of a file of outputs."""

    number: int  # in the file, from 1
    request_id: str
    instance: int
    output: dict[str, Any] | None  # its plain form; without the text if the log holds none
    error: str | None
    target_given: bool = False  # in the request
    max_new_tokens: int | None = None  # that the model was told to write at most, if it was told

    @property
    def id(self) -> str:
        return f"{self.request_id}/{self.instance}"

    @property
    def whole(self) -> bool:
        """Whether it holds all that it takes to compute it again."""
        return self.output is not None and "text" in self.output


def lines_of(path: str | os.PathLike[str]) -> Iterator[Line]:
    """The lines of an audit log, one after the other; or of a file of outputs, as ``write_jsonl`` writes it.

    A line that was not finished, as the service died or its disk was full, is left out.

    Raises:
        InvalidArgumentError: the file does not read, or a line holds something else; the message names it.
    """
    unread: tuple[int, str] | None = None
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    data = json.loads(line)
                except (ValueError, RecursionError) as error:
                    if len(line) > _PIECE:
                        _refuse(path, unread)
                    unread = unread or (number, f"this is no JSON: {error}")
                    continue
                if not isinstance(data, dict) or not _continues(data):
                    _refuse(path, unread)
                unread = None
                if not isinstance(data, dict) or not ("schema_version" in data or data.get("audit") == VERSION):
                    _refuse(path, (number, "this is no line of an audit log, and no output"))
                elif not _continues(data):
                    yield _read(number, data)
            if unread is not None and line.endswith(b"}\n"):  # as a whole one does
                _refuse(path, unread)
    except OSError as error:
        raise InvalidArgumentError(f"{printable(os.fspath(path))}: {error.strerror}.") from None


def _continues(data: dict[str, Any]) -> bool:
    return data.get("event") == _CONTINUED


def _read(number: int, data: dict[str, Any]) -> Line:
    if "schema_version" in data:
        return Line(number, f"line {number}", 0, data, data.get("error"))
    output, instance, most = data.get("output"), data.get("instance"), data.get("max_new_tokens")
    return Line(
        number,
        str(data.get("request_id")),
        instance if isinstance(instance, int) else 0,
        output if isinstance(output, dict) else None,
        data.get("error"),
        data.get("target_given") is True,
        most if isinstance(most, int) else None,
    )


def _refuse(path: str | os.PathLike[str], problem: tuple[int, str] | None) -> None:
    if problem is not None:
        raise InvalidArgumentError(f"{printable(Path(path).name)}, line {problem[0]}: {problem[1]}.")


def _lock(file: int, on: bool) -> bool:
    """Lets other processes wait while this one writes, as replicas share the file. False where there are no such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if on else fcntl.LOCK_UN)
    except (ImportError, OSError):
        return False
    return True


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"
