"""Explanations for many callers at once: their texts share model calls."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from fastshap.errors import DeadlineExceededError

if TYPE_CHECKING:
    from fastshap.explainer import GradientShap
    from fastshap.output.output import AttributionOutput


class Batcher:
    """A stand-in with the interface of the real one."""

    def __init__(self, explainer: GradientShap, *, max_queued_tokens: int = 65_536) -> None:
        self.explainer = explainer
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="fastshap-batcher", daemon=True)
        self._thread.start()

    def submit(
        self, text: Any, target: Any = None, *, deadline: float | None = None, **options: Any
    ) -> Future[AttributionOutput]:
        future: Future[AttributionOutput] = Future()
        until = None if deadline is None else time.monotonic() + deadline
        self._queue.put((future, text, target, until, options))
        return future

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (one := self._queue.get()) is not None:
            future, text, target, until, options = one
            if future.cancelled():
                continue
            if until is not None and time.monotonic() > until:
                future.set_exception(DeadlineExceededError("The deadline passed."))
                continue
            try:
                (output,) = self.explainer.explain([text], [target], on_error="raise", **options)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(output)
