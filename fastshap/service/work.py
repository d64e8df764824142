"""Instances to outputs, by way of the queue. The event loop waits for nothing else meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from fastshap.errors import ClosedError, DeadlineExceededError, FastshapError, NonFiniteError, OverloadedError
from fastshap.output.output import AttributionOutput
from fastshap.service.bodies import GoneError, Receive, json_body
from fastshap.service.gate import CONTEXT
from fastshap.service.instances import Asked, Reader
from fastshap.service.problems import ProblemError, of_all, problem_of
from fastshap.service.requests import seconds_of
from fastshap.service.service import Service

if TYPE_CHECKING:
    from starlette.requests import Request

_LATE = "The time for this request was up before this was explained."
Found = AttributionOutput | ProblemError


async def received(service: Service, request: Request) -> tuple[Any, float]:
    """A request's body as JSON, and the seconds that are left for its answer.

    Raises:
        ProblemError: there is no such body, or no such time.
        GoneError: the client left.
    """
    seconds = seconds_of(request.scope, service.limits)
    began = time.perf_counter()
    body = await json_body(request.scope["headers"], request.receive, service.limits)
    took = time.perf_counter() - began
    service.metrics.seconds("read", took)
    return body, max(0.001, seconds - took)


def read(
    reader: Reader, instances: Sequence[Any], place: str, shared: dict[str, Any] | None = None
) -> list[Asked | ProblemError]:
    """What the instances of a request ask for; what is wrong with one stands in its place."""
    found: list[Asked | ProblemError] = []
    for i, one in enumerate(instances):
        try:
            found.append(reader.asked(one, shared))
        except ProblemError as problem:
            found.append(placed(problem, f"{place}[{i}]"))
    return found


async def outputs(
    service: Service, reader: Reader, asked: list[Asked | ProblemError], place: str, request: Request, seconds: float
) -> list[Found]:
    """An output for each instance, or what is wrong with it. Explanations are written down where there is an audit log.

    Raises:
        OSError: they cannot be written down, so there must be no answer.
        ProblemError: no instance could be explained; or the request was not begun, as there is too much to do.
        GoneError: the client left. What was left to do is dropped.
    """
    until = time.monotonic() + seconds
    asked = [await _short(one, reader, f"{place}[{i}]") for i, one in enumerate(asked)]
    waiting = _submitted(service, asked, place, seconds)
    futures = [one for one in waiting if isinstance(one, Future)]
    late = False
    if futures:
        service.waiting.update(futures)
        try:
            late = await _until_done(futures, request.receive, until)
        finally:
            service.waiting.difference_update(futures)
    found = [_result(one, late, f"{place}[{i}]") for i, one in enumerate(waiting)]
    for one, its in zip(found, asked, strict=True):
        if isinstance(one, ProblemError) and isinstance(one.__cause__, NonFiniteError) and isinstance(its, Asked):
            one.field = f"{one.field}{_enormous(its.options)}"
    for i, one in enumerate(found):
        if isinstance(one, ProblemError):
            service.metrics.failed(one.type)
            if one.status == 500 and one.__cause__ is not None:
                about = {"request_id": request.scope[CONTEXT].request_id, "instance": i}
                service.log.error("failure", one.__cause__, **about)
    if service.audit is not None and reader.explaining:
        request_id = request.scope[CONTEXT].request_id
        await asyncio.to_thread(service.audit.add, asked, found, request_id, service.name)
    problems = [one for one in found if isinstance(one, ProblemError)]
    if len(problems) == len(found):
        raise of_all(problems)
    return found


async def _short(one: Asked | ProblemError, reader: Reader, place: str) -> Asked | ProblemError:
    """The instance, or what is wrong where it has too many tokens."""
    if isinstance(one, Asked) and reader.is_long(one):
        try:
            await asyncio.to_thread(reader.check_length, one)
        except ProblemError as problem:
            return placed(problem, place)
    return one


def _submitted(
    service: Service, asked: list[Asked | ProblemError], place: str, seconds: float
) -> list[Future[AttributionOutput] | ProblemError]:
    """All of a request is accepted, or nothing of it."""
    found: list[Future[AttributionOutput] | ProblemError] = []
    idle = service.batcher.load.requests == 0
    for i, one in enumerate(asked):
        if isinstance(one, ProblemError):
            found.append(one)
            continue
        try:
            found.append(service.batcher.submit(one.text, one.target, deadline=seconds, **one.options))
        except (OverloadedError, ClosedError) as error:
            for accepted in found:
                if isinstance(accepted, Future):
                    accepted.cancel()
            if idle and isinstance(error, OverloadedError):  # there never will be room for all of it
                raise ProblemError(413, "TooLarge", f"{error} Send fewer instances at a time.", place) from None
            raise problem_of(error) from None
        except FastshapError as error:
            found.append(_caused(error, f"{place}[{i}]"))
    return found


async def _until_done(futures: list[Future[AttributionOutput]], receive: Receive, until: float) -> bool:
    """Waits until all are done, the time is up (True), or the client has left; what is not done then is dropped."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    done = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    gone = asyncio.ensure_future(left())
    try:
        both: set[asyncio.Future[Any]] = {done, gone}
        ended, _ = await asyncio.wait(
            both, timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        gone.cancel()
        for one in futures:
            one.cancel()
    if gone in ended and done not in ended:
        raise GoneError
    return not ended


def _result(one: Future[AttributionOutput] | ProblemError, late: bool, place: str) -> Found:
    if isinstance(one, ProblemError):
        return one
    if one.cancelled():
        return problem_of(DeadlineExceededError(_LATE) if late else CancelledError(), place)
    error = one.exception()
    if error is None:
        return one.result()
    return _caused(error, place)


def _enormous(options: dict[str, Any]) -> str:
    """The option that may have made scores infinite, as the end of a field."""
    sizes = {name: options.get(name) for name in ("noise_std", "baseline")}
    found = [(abs(size), name) for name, size in sizes.items() if isinstance(size, int | float)]
    return f".{max(found)[1]}" if found else ""


def _caused(error: BaseException, place: str) -> ProblemError:
    problem = problem_of(error, place)
    problem.__cause__ = error
    return problem


def placed(problem: ProblemError, place: str) -> ProblemError:
    """The problem, with where in the request its part stands."""
    problem.field = place + (problem.field or "")
    return problem
