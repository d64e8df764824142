"""Explanations for many callers at once: their texts share model calls."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, NamedTuple

from fastshap.errors import ClosedError, DeadlineExceededError, OverloadedError

if TYPE_CHECKING:
    from fastshap.explainer import GradientShap
    from fastshap.output.output import AttributionOutput


class Load(NamedTuple):
    requests: int
    tokens: int


class Batcher:
    """A stand-in with the interface of the real one."""

    def __init__(
        self,
        explainer: GradientShap,
        *,
        max_queued_tokens: int = 65_536,
        watch: Callable[[str, float], None] | None = None,
    ) -> None:
        self.explainer = explainer
        self._most, self._watch, self._load = max_queued_tokens, watch or (lambda name, value: None), Load(0, 0)
        self._closed = False
        self._guard = threading.Lock()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="fastshap-batcher", daemon=True)
        self._thread.start()

    def submit(
        self, text: Any, target: Any = None, *, deadline: float | None = None, **options: Any
    ) -> Future[AttributionOutput]:
        future: Future[AttributionOutput] = Future()
        tokens = len(str(text)) // 4 + 1
        self.explainer._for_call(options) if options else None
        with self._guard:
            if self._closed:
                raise ClosedError("This batcher is closed.")
            if self._load.requests and self._load.tokens + tokens > self._most:
                raise OverloadedError("The queue is full.", retry_after=1.0)
            self._load = Load(self._load.requests + 1, self._load.tokens + tokens)

        def left(_: object) -> None:
            with self._guard:
                self._load = Load(self._load.requests - 1, self._load.tokens - tokens)

        future.add_done_callback(left)
        until = None if deadline is None else time.monotonic() + deadline
        self._queue.put((future, text, target, until, options, time.monotonic()))
        return future

    @property
    def load(self) -> Load:
        return self._load

    def close(self) -> None:
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (one := self._queue.get()) is not None:
            future, text, target, until, options, since = one
            if future.cancelled():
                continue
            begun = time.monotonic()
            if until is not None and time.monotonic() > until:
                future.set_exception(DeadlineExceededError("The deadline passed."))
                continue
            try:
                (output,) = self.explainer.explain(
                    [text], None if target is None else [target], on_error="raise", **options
                )
            except Exception as error:
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(error)
            else:
                self._watch("wait_seconds", begun - since)
                self._watch("compute_seconds", time.monotonic() - begun)
                self._watch("call_tokens", len(output.elements) * output.n_perturbations)
                self._watch("samples", output.n_perturbations)
                with contextlib.suppress(InvalidStateError):
                    future.set_result(output)
