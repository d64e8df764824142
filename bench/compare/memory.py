"""Resident memory of every tool on a workload."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from typing import Any

import psutil  # type: ignore[import-untyped]

from bench.compare.peers import tools_for
from bench.compare.workloads import Workload
from bench.console import say

SAMPLING_INTERVAL = 0.002  # seconds between two looks at the resident memory


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def settle() -> None:
    """Gives free memory back, so that what a run takes shows in the resident size."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Peak(threading.Thread):
    """The largest resident size while it runs, looked at every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest = resident()
        self._done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self._done.wait(SAMPLING_INTERVAL):
            self.largest = max(self.largest, process.memory_info().rss)

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.largest


def peak_memory(workload: Workload, best: dict[str, Any]) -> dict[str, int]:
    """Bytes of resident memory above that before the run, at most."""
    found = {}
    gc.collect()
    gc.freeze()  # so that the next collections are quick
    try:
        for tool in tools_for(workload):
            say(f"{workload.name}: memory of {tool.name}")
            runner = tool.prepare(workload)
            runner.run(best[tool.name], 1, 0)
            settle()
            before, watch = resident(), Peak()
            watch.start()
            runner.run(best[tool.name], workload.n, 0)
            found[tool.name] = watch.stop() - before
    finally:
        gc.unfreeze()
    return found
