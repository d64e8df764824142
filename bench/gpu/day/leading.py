"""Runs the steps of a day one after the other, each in processes of its own, against one deadline.

A process that crashes, or says nothing for too long, is ended and started again; it goes on after the case it was at. A step
ends when its time is up. What was written before stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu.day.record import FAILED, STARTED, UNFINISHED, Record, lines

_POLL = 0.2
_GRACE = 2.0  # seconds between the signals that end a process
_TAIL = 1500


@dataclass(frozen=True)
class Lane:
    """One process of a step; what it is called in the record, what it runs, and which exit statuses are an orderly end."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    orderly: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Step:
    """What runs together; ``share`` of the time that is left, beside the steps after it; ``quiet``: seconds without a line."""

    name: str
    lanes: Sequence[Lane]
    share: float
    quiet: float = 90.0


def lead(steps: Sequence[Step], out: Path, deadline: float, after: Callable[[], bool]) -> None:
    """All steps; ``deadline`` by time.monotonic(). ``after`` is called after each, and says whether to go on."""
    for place, step in enumerate(steps):
        left = deadline - time.monotonic()
        share = step.share / sum(later.share for later in steps[place:])
        run_step(step, out, time.monotonic() + max(0.0, left) * share)
        if not after():
            return


def run_step(step: Step, out: Path, until: float) -> None:
    """All lanes of a step at once."""
    record, start = Record(out / "results.jsonl", step.name, "leader"), time.monotonic()
    threads = [threading.Thread(target=_run_lane, args=(step, lane, out, until)) for lane in step.lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record.write("(step)", "ended", seconds=time.monotonic() - start)


def _run_lane(step: Step, lane: Lane, out: Path, until: float) -> None:
    record = Record(out / "results.jsonl", step.name, lane.name)
    while time.monotonic() < until:
        before = _mine(record)
        why = _run_process(step, lane, out, until, record)
        now = _mine(record)
        for case, status in now.items():
            if status == STARTED:
                record.write(case, UNFINISHED if why == _TIME_IS_UP else FAILED, why)
        if why == "":
            return
        if why == _TIME_IS_UP or now.keys() == before.keys():
            record.write(f"(process {lane.name})", UNFINISHED if why == _TIME_IS_UP else FAILED, why)
            return
    record.write(f"(process {lane.name})", UNFINISHED, _TIME_IS_UP)


_TIME_IS_UP = "the time of this step was up"


def _mine(record: Record) -> dict[str, str]:
    """The last status of every case of this lane."""
    return {
        line["case"]: line["status"]
        for line in lines(record.path)
        if line["step"] == record.step and line["lane"] == record.lane
    }


def _run_process(step: Step, lane: Lane, out: Path, until: float, record: Record) -> str:
    """Empty where the process came to an orderly end, else why it did not."""
    log, environment = out / "log.txt", {**os.environ, **lane.environment, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as sink:
        sink.write(f"\n==== {step.name}, process {lane.name}: {' '.join(lane.command)[:300]}\n".encode())
        sink.flush()
        begin = sink.tell()
        process = subprocess.Popen(
            lane.command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    heard, size, count = time.monotonic(), -1, -1
    while process.poll() is None:
        time.sleep(_POLL)
        now = time.monotonic()
        if size != (size := record.path.stat().st_size if record.path.exists() else 0) and count != (
            count := _heard_of(record)
        ):
            heard = now
        if now >= until:
            _end(process)
            return _TIME_IS_UP
        if now - heard > step.quiet:
            _end(process)
            return f"nothing was heard of it for {step.quiet:.0f} seconds"
    if process.returncode in lane.orderly:
        return ""
    with log.open("rb") as source:
        source.seek(begin)
        tail = source.read()[-_TAIL:].decode(errors="replace").strip()
    return f"the process ended with {_named(process.returncode)}: {tail}"


def _heard_of(record: Record) -> int:
    return sum(line["step"] == record.step and line["lane"] == record.lane for line in lines(record.path))


def _named(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started."""
    for one in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, one)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            if one == signal.SIGKILL:
                return
