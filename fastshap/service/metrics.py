"""What Prometheus reads: how long requests take and where, how full the queue is, what fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastshap.extras import needed

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_STAGES = {"wait_seconds": "queue", "compute_seconds": "compute"}


class Metrics:
    """The numbers of one service, in a registry of their own."""

    def __init__(self) -> None:
        client = needed("prometheus_client", "serve")
        self._client = client
        self.registry = client.CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self._requests = client.Counter(
            "fastshap_requests", "Requests answered, by operation and status.", ["operation", "status"], **own
        )
        self._errors = client.Counter(
            "fastshap_errors", "Requests and instances that failed, by kind.", ["type"], **own
        )
        seconds = client.Histogram(
            "fastshap_seconds",
            "Seconds by stage: read (a body), queue, compute (of one text), request (all of a request).",
            ["stage"],
            buckets=_SECONDS,
            **own,
        )
        self._seconds = {stage: seconds.labels(stage) for stage in ("read", "request", *_STAGES.values())}
        self._call_tokens = client.Histogram(
            "fastshap_call_tokens", "Tokens of all rows in a turn of the queue.", buckets=_TOKENS, **own
        )
        self._samples = client.Counter("fastshap_samples", "Samples drawn.", **own)
        self._texts = client.Counter("fastshap_texts", "Texts explained.", **own)
        self._queued = client.Gauge("fastshap_queue_requests", "Texts that wait or run.", **own)
        self._queued_tokens = client.Gauge("fastshap_queue_tokens", "Tokens of texts that wait or run.", **own)
        self._active = client.Gauge("fastshap_active_requests", "Requests at work.", **own)

    def watch(self, name: str, value: float) -> None:
        """What a :class:`fastshap.Batcher` tells."""
        if name in _STAGES:
            self._seconds[_STAGES[name]].observe(value)
        elif name == "call_tokens":
            self._call_tokens.observe(value)
        elif name == "samples":
            self._samples.inc(value)
            self._texts.inc()

    def watch_queue(self, load: Callable[[], Any]) -> None:
        """Reads the queue's load whenever somebody asks."""
        self._queued.set_function(lambda: load().requests)
        self._queued_tokens.set_function(lambda: load().tokens)

    def seconds(self, stage: str, value: float) -> None:
        self._seconds[stage].observe(value)

    def request(self, operation: str, status: int) -> None:
        self._requests.labels(operation, str(status)).inc()

    def failed(self, kind: str) -> None:
        self._errors.labels(kind).inc()

    def active(self, count: int) -> None:
        self._active.set(count)

    def page(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its content type."""
        return self._client.generate_latest(self.registry), self._client.CONTENT_TYPE_LATEST
