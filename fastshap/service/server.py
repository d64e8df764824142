"""The app in a process of its own: uvicorn, guarded against slow or many clients, and stopped without losing answers."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
import time
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

from fastshap.errors import InvalidArgumentError
from fastshap.extras import needed
from fastshap.service.app import make_app
from fastshap.service.limits import Limits
from fastshap.service.logs import Told
from fastshap.service.service import FAILED, STOPPING, Service

_KEEP_ALIVE = 15  # seconds for which a connection waits for its next request
_FLUSH = 5  # seconds for the last answers to go out, once they are made


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at an address, which takes no connections yet.

    Raises:
        InvalidArgumentError: the address cannot be had; the message says what would work.
    """
    found: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        if error.errno == errno.EADDRINUSE:
            what = f"port {port} is taken; choose another with --port, or 0 for any that is free"
        elif error.errno == errno.EACCES:
            what = f"port {port} is for administrators; choose one above 1023 with --port"
        else:
            what = f"{host} is no address of this machine ({error.strerror or error})"
        raise InvalidArgumentError(f"The service cannot listen at {host}:{port}: {what}.") from None
    return found


def serve(service: Service, listening: socket.socket, started: Callable[[], None] = lambda: None) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted and returns.

    Args:
        listening: from :func:`bound_socket`.
        started: called once connections are taken. The service is ready a little later.

    Raises:
        FastshapError: the model could not be tried.
        MissingPackageError: uvicorn is not installed.
    """
    uvicorn = needed("uvicorn", "serve")
    _tell(service)
    config = uvicorn.Config(
        make_app(service),
        http=_guarded(service.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_FLUSH,
    )
    _server(uvicorn, config, service, started).run([listening])
    if service.failure is not None:
        raise service.failure


def _server(uvicorn: Any, config: Any, service: Service, started: Callable[[], None]) -> Any:
    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        until = 0.0  # when to give up

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            started()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Not uvicorn's, which closes the door at once and then ends by the signal."""
            again = service.state == STOPPING
            self.until = 0.0 if again else time.monotonic() + service.limits.grace
            service.stop()

        async def on_tick(self, counter: int) -> bool:
            if service.state == FAILED:
                self.should_exit = True
            if service.state == STOPPING and (service.active == 0 or time.monotonic() >= self.until):
                service.give_up()
                self.should_exit = True
            return bool(await super().on_tick(counter))

    return Server(config)


def _guarded(limits: Limits) -> Any:
    """uvicorn's protocol, with two limits that it lacks."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class Guarded(base):  # type: ignore[misc]
        """Headers have to arrive in time, and there are not too many connections."""

        late: asyncio.TimerHandle | None = None
        cycles: tuple[Any, ...] = ()  # requests that are not answered yet, with httptools; h11 has one at a time

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                message = f"{limits.max_connections} connections are open, and no more are taken at a time."
                self._refuse(429, "Too Many Requests", "OverloadedError", message, b"retry-after: 1\r\n")
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self.cycles = (*(one for one in self.cycles if not one.response_complete), self.cycle)

        def connection_lost(self, exc: Exception | None) -> None:
            self._rest()
            for one in self.cycles:  # uvicorn tells the last of them alone
                one.disconnected = one.disconnected or not one.response_complete
                one.message_event.set()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "Bad Request", "InvalidHttp", "This is no HTTP request that can be read.")

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _watch(self) -> None:
            if not self._idle():
                self._rest()
            elif self.late is None and not self.transport.is_closing():
                self.late = self.loop.call_later(limits.header_timeout, self._close)

        def _rest(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

        def _close(self) -> None:
            self.late = None
            if self._idle():
                self.transport.close()

        def _refuse(self, status: int, phrase: str, kind: str, message: str, headers: bytes = b"") -> None:
            body = json.dumps({"error": message, "type": kind, "field": None, "request_id": None}).encode()
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + headers + b"connection: close\r\n\r\n" + body)
            self.transport.close()

    return Guarded


def _tell(service: Service) -> None:
    """What libraries log and warn of is written as events."""
    root = logging.getLogger()
    root.handlers[:] = [Told(service.log)]
    root.setLevel(logging.WARNING)

    def show(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        service.log.event("warning", "warning", category=category.__name__, where=f"{filename}:{lineno}")

    warnings.showwarning = show  # type: ignore[assignment]
