"""Ending a job early, as Ctrl-C or a cluster's scheduler asks for it: what is computed is written first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """While inside, SIGTERM raises :class:`Terminated`, as Ctrl-C raises KeyboardInterrupt; not so in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
