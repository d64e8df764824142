"""What is found, one line of JSON a case, written as soon as it is known.

    {"step": "kernels", "case": "perturb, one text, ...", "status": "ok", "why": "", "data": {...}, "lane": "0", "seconds": 1.2}

A case that begins has a line with the status "started"; its last line counts. Several processes write to one file.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED, OK, FAILED, SKIPPED, ABSENT, UNFINISHED = "started", "ok", "failed", "skipped", "absent", "unfinished"
# Exit status of a process whose CUDA context is of no more use: another one goes on after the case that spoilt it.
SPOILT = 75
_SPOILING = (
    "CUDA error",
    "illegal memory access",
    "device-side assert",
    "AcceleratorError",
    "unspecified launch failure",
)

Line = dict[str, Any]


class AbsentError(Exception):
    """What a case needs is not on this machine."""


class Record:
    """The file of one day, as one process of one step sees it."""

    def __init__(self, path: Path, step: str, lane: str = "0") -> None:
        self.path, self.step, self.lane = path, step, lane

    def write(self, case: str, status: str, why: str = "", data: Any = None, seconds: float | None = None) -> None:
        line = {"step": self.step, "case": case, "status": status, "why": why, "data": data, "lane": self.lane}
        text = json.dumps({**line, "seconds": None if seconds is None else round(seconds, 3)}, default=str) + "\n"
        # One write of one line, so that lines of several processes do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def begun(self) -> set[str]:
        """Cases of this step that need not begin again."""
        return {line["case"] for line in lines(self.path) if line["step"] == self.step}

    def case(self, name: str, run: Callable[[], Any]) -> Any:
        """Runs one case unless it began before; what it returns is written, and an error too. None if there is no result."""
        if name in self.begun():
            return None
        self.write(name, STARTED)
        start = time.perf_counter()
        try:
            data = run()
        except AbsentError as absent:
            self.write(name, ABSENT, str(absent))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:1500]
            self.write(name, FAILED, why, {"traceback": traceback.format_exc()[-3000:]}, time.perf_counter() - start)
            traceback.print_exc()
            if is_spoilt(why):
                leave()
        else:
            self.write(name, OK, "", data, time.perf_counter() - start)
            return data
        return None


def is_spoilt(why: str) -> bool:
    """Whether an error leaves a CUDA context that can be used no more. (Running out of memory does not.)"""
    return "out of memory" not in why.lower() and any(sign in why for sign in _SPOILING)


def leave() -> None:
    """Ends this process at once: destructors would only meet the spoilt context."""
    import sys

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(SPOILT)


def lines(path: Path) -> list[Line]:
    """All lines that are whole."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(text))
    return found


def cases(path: Path) -> dict[tuple[str, str], Line]:
    """The last line of every case, by step and name."""
    return {(line["step"], line["case"]): line for line in lines(path)}
