"""What is answered where something is wrong: one shape of JSON, and the status that says whose move it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import CancelledError
from typing import Any

from fastshap.errors import (
    ClosedError,
    DeadlineExceededError,
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    ModelFailedError,
    NonFiniteError,
    OverloadedError,
    UnsupportedModelError,
)

# Of errors in the order in which they are asked for; all others are the service's own fault.
_STATUS: dict[type[Exception], int] = {
    OverloadedError: 429,
    ClosedError: 503,
    DeadlineExceededError: 504,
    InvalidArgumentError: 422,
    InvalidTypeError: 422,
    UnsupportedModelError: 422,
    NonFiniteError: 422,
}


class ProblemError(Exception):
    """A request, or one of its instances, that gets no answer but this.

    Attributes:
        status: of HTTP.
        type: a word for programs: the name of an error of fastshap's, or of HTTP's.
        field: where in the request it is, "instances[3].seed" say.
        headers: further ones.
        instances: what is said of each instance, where all of them failed.
    """

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.message, self.field = status, type, message, field
        self.headers = dict(headers or {})
        self.instances: list[dict[str, Any]] | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"error": self.message, "type": self.type, "field": self.field}

    def body(self, request_id: str) -> bytes:
        """Of the answer to a whole request."""
        said = self.plain() | {"request_id": request_id}
        if self.instances is not None:
            said["explanations"] = self.instances
        return json.dumps(said).encode()


def problem_of(error: BaseException, field: str | None = None) -> ProblemError:
    """What is answered because of an error. Of one that nobody expected, or of the model's own, nothing is told."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, CancelledError):
        return ProblemError(503, "ClosedError", "The service stopped before this was explained; ask again.", field)
    if not isinstance(error, FastshapError):
        return ProblemError(500, "InternalError", "The service failed; its log has more under this request_id.", field)
    if isinstance(error, ModelFailedError):  # whose message is the model's own, and may hold anything
        message = "The model failed on this text; the service's log has more under the request's id."
        return ProblemError(500, "ModelFailedError", message, field)
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    headers = {"retry-after": retry_after(error.retry_after)} if isinstance(error, OverloadedError) else None
    return ProblemError(status, type(error).__name__, str(error), field, headers)


def retry_after(seconds: float) -> str:
    """As the header has it: whole seconds."""
    return str(max(1, math.ceil(seconds)))


def of_all(problems: list[ProblemError]) -> ProblemError:
    """Of a request whose every instance failed: the first of the worst, so that 5xx and 429 are seen; with all of them."""
    worst = max(problems, key=lambda one: one.status)
    found = ProblemError(worst.status, worst.type, worst.message, worst.field, worst.headers)
    found.instances = [one.plain() for one in problems]
    return found
