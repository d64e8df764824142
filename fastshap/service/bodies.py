"""A request's body: read within limits of size and time, and as JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from fastshap.service.limits import Limits
from fastshap.service.problems import ProblemError

Receive = Callable[[], Awaitable[Any]]
_LINGER = 1.0  # seconds for which what a client still sends is thrown away, so that it comes to read the answer


class GoneError(Exception):
    """The client went away: nobody waits for an answer."""


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """A header's value; that of the first, where there are several."""
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


async def json_body(headers: list[tuple[bytes, bytes]], receive: Receive, limits: Limits) -> Any:
    """The body of a request as JSON.

    Raises:
        ProblemError: it is too large, comes too slowly, or is no JSON.
        GoneError: the client left.
    """
    kind, _, parameters = (header(headers, b"content-type") or "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise ProblemError(
            415, "UnsupportedMediaType", "Send JSON in UTF-8, with the header Content-Type: application/json."
        )
    if (header(headers, b"content-encoding") or "identity").lower() != "identity":
        raise ProblemError(415, "UnsupportedMediaType", "Send the body as it is, without a Content-Encoding.")
    return parsed(await _body(headers, receive, limits))


async def _body(headers: list[tuple[bytes, bytes]], receive: Receive, limits: Limits) -> bytes:
    said = header(headers, b"content-length") or "0"
    if said.isdecimal() and len(said) < 20 and int(said) > limits.max_body_bytes:
        raise _too_large(limits)
    parts: list[bytes] = []
    size = 0

    async def read() -> None:
        nonlocal size
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limits.max_body_bytes:
                raise _too_large(limits)
            more = message.get("more_body", False)

    try:
        await asyncio.wait_for(read(), limits.body_timeout)
    except asyncio.TimeoutError:
        message = f"The body did not arrive within {limits.body_timeout:g} s."
        raise ProblemError(408, "RequestTimeout", message, headers={"connection": "close"}) from None
    return b"".join(parts)


def _too_large(limits: Limits) -> ProblemError:
    message = f"The body has more than {limits.max_body_bytes} bytes; send fewer instances at a time."
    return ProblemError(413, "TooLarge", message, headers={"connection": "close"})


async def linger(receive: Receive) -> None:
    """Throws away what a client still sends, for a moment. A connection that is closed on it would take the answer away."""

    async def read() -> None:
        while (message := await receive())["type"] != "http.disconnect" and message.get("more_body", False):
            pass

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _LINGER)


def parsed(body: bytes) -> Any:
    """JSON, and nothing that JSON has not: no NaN, no other encoding than UTF-8.

    Raises:
        ProblemError: it is none.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_float=_number, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8 ({error.reason} at byte {error.start})."
    except RecursionError:
        message = "The body's JSON is nested too deeply."
    except ValueError as error:
        message = f"The body is no JSON: {error}."
    raise ProblemError(422, "InvalidJson", message)


def _number(word: str) -> float:
    """In a JSON schema 1.0 is a whole number."""
    value = float(word)
    return int(value) if value.is_integer() and abs(value) < 2**63 else value


def _refuse(word: str) -> None:
    raise ValueError(f"it holds {word}")
