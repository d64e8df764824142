"""What a request asks for beside its instances: the form of the answer, and how long it may take."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import parse_qsl

from fastshap.service.bodies import header
from fastshap.service.limits import Limits
from fastshap.service.problems import ProblemError

FORMATS = ("summary", "full", "html")
TIMEOUT = "x-request-timeout-seconds"


def format_of(scope: Any, formats: tuple[str, ...] = FORMATS) -> str:
    """The form that the query asks for.

    Raises:
        ProblemError: there is no such form, or the query asks for something else.
    """
    given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    for name, value in given:
        if name != "format" or not formats:
            raise ProblemError(422, "InvalidArgumentError", f"There is no query parameter {name[:40]!r} here.", "query")
        if value not in formats:
            message = f"format is one of {', '.join(formats)}; got {value[:40]!r}."
            raise ProblemError(422, "InvalidArgumentError", message, "query.format")
    if len(given) > 1:
        raise ProblemError(422, "InvalidArgumentError", "format stands once.", "query.format")
    return given[0][1] if given else "summary"


def seconds_of(scope: Any, limits: Limits) -> float:
    """How long the answer may take: what the request says, and no longer than the service allows.

    Raises:
        ProblemError: the header is no number of seconds.
    """
    given = header(scope["headers"], TIMEOUT.encode())
    if given is None:
        return limits.timeout
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf or "_" in given:
        message = f"{TIMEOUT} is a number of seconds, more than 0; got {given[:40]!r}."
        raise ProblemError(422, "InvalidArgumentError", message, f"header.{TIMEOUT}")
    return min(seconds, limits.timeout)
