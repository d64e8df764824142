"""The app's gate: every request passes it, whatever it asks for.

It gives a request its id, lets in who may come in, holds back what is too much, answers what went wrong, adds the headers that
every answer has, and writes the log.
"""

from __future__ import annotations

import hmac
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from fastshap.service.bodies import GoneError, header, linger
from fastshap.service.problems import ProblemError, problem_of
from fastshap.service.service import Service

Send = Callable[[Any], Awaitable[None]]
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_GONE = 499  # what nginx writes where a client left; it is only logged
# The policy of what is no page. Pages bring their own.
_HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}
CONTEXT = "fastshap"  # the entry of a request's scope that holds its :class:`Context`


class Context:
    """What is known of a request beside what it says.

    Attributes:
        request_id: its own, or one made here.
        about: what the log says of it beside.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.about: dict[str, Any] = {}


class Gate:
    """An ASGI app around another one.

    Args:
        operations: a word for each address, for logs and metrics. Others are not told apart.
        open_to_all: addresses that need no token.
        working: addresses whose requests make the model work, by POST.
    """

    def __init__(
        self,
        app: Any,
        service: Service,
        operations: dict[str, str],
        open_to_all: frozenset[str],
        working: frozenset[str],
    ) -> None:
        self.app, self.service = app, service
        self._operations, self._open, self._working = operations, open_to_all, working

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        context = Context(request_id(scope["headers"]))
        scope[CONTEXT] = context
        status = 0

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                said = {name.lower() for name, _ in headers}
                headers += [(name, value) for name, value in _HEADERS.items() if name not in said]
                headers.append((b"x-request-id", context.request_id.encode()))
            await send(message)

        works = scope["path"] in self._working and scope["method"] == "POST"
        try:
            self._check_token(scope)
            if works:
                await self._held(scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except GoneError:
            status = _GONE
        except Exception as error:
            problem = problem_of(error)
            if problem is not error and problem.status == 500:  # otherwise it was told
                self.service.log.error("failure", error, request_id=context.request_id)
            if status:  # the answer had begun
                raise
            self.service.metrics.failed(problem.type)
            context.about["error"] = problem.type
            await _refuse(problem, context.request_id, receive, answer)
        self._tell(scope, context, status, works, time.perf_counter() - began)

    async def _held(self, scope: Any, receive: Any, send: Send) -> None:
        """A request that makes the model work: if the service is ready, and not too many are at work."""
        its = self.service
        its.check_ready()
        if its.active >= its.limits.max_requests:
            message = f"{its.active} requests are at work, and no more are taken at a time."
            raise ProblemError(429, "OverloadedError", message, headers={"retry-after": "1"})
        its.active += 1
        its.metrics.active(its.active)
        try:
            await self.app(scope, receive, send)
        finally:
            its.active -= 1
            its.metrics.active(its.active)

    def _check_token(self, scope: Any) -> None:
        wanted = self.service.token
        if wanted is None or scope["path"] in self._open:
            return
        given = (header(scope["headers"], b"authorization") or "").encode("latin-1")
        scheme, _, token = given.partition(b" ")
        if not hmac.compare_digest(token.strip(), wanted) or scheme.lower() != b"bearer":
            message = "This service wants a token, as Authorization: Bearer."
            raise ProblemError(401, "Unauthorized", message, headers={"www-authenticate": "Bearer"})

    def _tell(self, scope: Any, context: Context, status: int, works: bool, seconds: float) -> None:
        operation = self._operations.get(scope["path"], "other")
        self.service.metrics.request(operation, status)
        if works:
            self.service.metrics.seconds("request", seconds)
        if works or status >= 400:
            about: dict[str, Any] = {"request_id": context.request_id, "operation": operation, "status": status}
            self.service.log.event("request", milliseconds=round(1000 * seconds, 1), **about, **context.about)


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """What the client calls its request, or a name made here."""
    own = header(headers, b"x-request-id")
    return own if own and _ID.fullmatch(own) else uuid.uuid4().hex


async def _refuse(problem: ProblemError, request_id: str, receive: Any, send: Send) -> None:
    body = problem.body(request_id)
    headers = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    if problem.status == 413 and "connection" in problem.headers:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await linger(receive)
        body = b""
    await send({"type": "http.response.body", "body": body})
