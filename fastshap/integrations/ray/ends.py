"""The two ends of the way through Ray Serve: its proxy, which clients talk to, and a replica, which holds the app.

Ray's proxy answers some requests by itself, in words of its own, and keeps time by a header that is also the service's. These
two see to it that clients find what they find where uvicorn serves the app.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import OrderedDict
from typing import Any

from fastshap.service.bodies import Receive, header
from fastshap.service.gate import Send, request_id
from fastshap.service.problems import ProblemError
from fastshap.service.requests import TIMEOUT

DEATHS = 2  # after so many, a request is not tried again
_REMEMBERED = 64  # requests whose replica died
_SECONDS = 300.0  # for which they are remembered, as one that was only near may be among them
_SPARE = 2.0  # seconds that Ray waits longer than the service, which then answers itself
_TIME, _LOST = b"x-fastshap-timeout", b"x-fastshap-lost"  # headers on the way
_ID = b"x-request-id"
_OWN = b"x-content-type-options"  # all of the app's answers have it, and none of Ray's


def middlewares() -> list[Any]:
    """What Ray Serve's proxies put around themselves, if ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names this."""
    from starlette.middleware import Middleware

    return [Middleware(Front)]


class Front:
    """At the proxy: answers in the service's words where Ray answers, and remembers over which requests a replica died."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._lost: OrderedDict[str, tuple[int, float]] = OrderedDict()  # digest: deaths, when the last

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray's own addresses
            await self.app(scope, receive, send)
            return
        digest, name = hashlib.blake2b(digest_size=16), request_id(scope["headers"])
        has_left = False
        status = from_ray = None

        async def received() -> Any:
            nonlocal has_left
            message = await receive()
            if message["type"] == "http.disconnect":
                has_left = True
            digest.update(message.get("body", b""))
            return message

        async def answer(message: Any) -> None:
            nonlocal status, from_ray
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.get("headers", [])
                from_ray = header(headers, _OWN) is None
                # Once: Ray names the request too.
                message["headers"] = [pair for pair in headers if pair[0].lower() != _ID] + [(_ID, name.encode())]
            if not from_ray:
                await send(message)

        await self.app(scope | {"headers": self._ahead(scope["headers"], name)}, received, answer)
        if status is not None and not from_ray:
            if status < 500:
                self._lost.pop(digest.hexdigest(), None)
            return
        if has_left:
            return
        if status is None and scope["method"] == "POST":
            self._note(digest.hexdigest())
        await _refuse(_of_ray(status), name, send)

    def _ahead(self, headers: list[tuple[bytes, bytes]], name: str) -> list[tuple[bytes, bytes]]:
        """The headers for the replica."""
        found = [pair for pair in headers if pair[0] not in (TIMEOUT.encode(), _TIME, _LOST, _ID)]
        found.append((_ID, name.encode()))
        if (given := header(headers, TIMEOUT.encode())) is not None:
            found.append((_TIME, given.encode("latin-1")))
            with contextlib.suppress(ValueError):  # the service says what is wrong
                found.append((TIMEOUT.encode(), str(max(0.0, float(given)) + _SPARE).encode()))
        for one, (_, when) in list(self._lost.items()):
            if time.monotonic() > when + _SECONDS:
                del self._lost[one]
        if deadly := [one for one, (deaths, _) in self._lost.items() if deaths >= DEATHS]:
            found.append((_LOST, ",".join(deadly).encode()))
        return found

    def _note(self, digest: str) -> None:
        deaths = self._lost.pop(digest, (0, 0.0))[0] + 1
        self._lost[digest] = deaths, time.monotonic()
        if len(self._lost) > _REMEMBERED:
            self._lost.popitem(last=False)


class Back:
    """At the replica: the app, with the headers that the client sent. A request that killed others does not reach it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        given, lost = header(headers, _TIME), header(headers, _LOST)
        found = [pair for pair in headers if pair[0] not in (_TIME, _LOST)]
        if given is not None:
            found = [pair for pair in found if pair[0] != TIMEOUT.encode()]
            found.append((TIMEOUT.encode(), given.encode("latin-1")))
        if lost is not None:
            receive = _checked(receive, frozenset(lost.split(",")))
        await self.app(scope | {"headers": found}, receive, send)


def _checked(receive: Receive, lost: frozenset[str]) -> Receive:
    digest = hashlib.blake2b(digest_size=16)

    async def received() -> Any:
        message = await receive()
        if message["type"] == "http.request":
            digest.update(message.get("body", b""))
            if not message.get("more_body", False) and digest.hexdigest() in lost:
                raise ProblemError(
                    500,
                    "WorkerDiedError",
                    f"The process that explained this request died {DEATHS} times over it. It is not tried again for now.",
                )
        return message

    return received


def _of_ray(status: int | None) -> ProblemError:
    """What is answered in the place of an answer of Ray's; None: of none, as the replica died."""
    soon = {"retry-after": "1"}
    if status is None:
        return ProblemError(503, "WorkerDiedError", "The process that explained this died. Ask again.", headers=soon)
    if status == 408:
        return ProblemError(504, "DeadlineExceededError", "The time for this request was up before it was explained.")
    if status == 429:
        return ProblemError(429, "OverloadedError", "Too many requests wait.", headers=soon)
    return ProblemError(503, "NotReady", "The service is starting or stopping.", headers=soon)


async def _refuse(problem: ProblemError, name: str, send: Send) -> None:
    body = problem.body(name)
    headers = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"cache-control", b"no-store"), (_OWN, b"nosniff"), (_ID, name.encode())]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
