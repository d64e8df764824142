"""Events as JSON lines on standard error. They hold request ids and no texts."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import Any, TextIO


def now() -> str:
    """The time, in UTC, as ISO 8601 has it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Log:
    """Writes a line for each event.

    Args:
        stream: where to; by default standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def event(self, event: str, level: str = "info", **more: Any) -> None:
        """One event."""
        line = json.dumps({"time": now(), "level": level, "event": event, **more})
        stream = sys.stderr if self._stream is None else self._stream
        try:
            stream.write(f"{line}\n")
            stream.flush()
        except (OSError, ValueError):  # nobody reads any more
            pass

    def error(self, event: str, error: BaseException, **more: Any) -> None:
        """An error: its class and where it was raised. Its message may hold a text, so it is left out."""
        chain: list[BaseException] = []
        one: BaseException | None = error
        while one is not None and len(chain) < 8:
            chain.append(one)
            one = one.__cause__ or one.__context__
        # An error that stands for another one was never raised itself.
        raised = next((one.__traceback__ for one in chain if one.__traceback__ is not None), None)
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(raised)]
        self.event(event, "error", error=[type(one).__name__ for one in chain], where=where[-12:], **more)


class Told(logging.Handler):
    """What other libraries log, as events: without arguments and tracebacks, which may hold texts."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._log.error("server", error, logger=record.name)
        else:
            self._log.event("server", record.levelname.lower(), logger=record.name, message=str(record.msg).strip())
