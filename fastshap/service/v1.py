"""KServe's V1 protocol: ``:explain`` and ``:predict``."""

from __future__ import annotations

import asyncio
import json
from io import StringIO
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fastshap.output.output import AttributionOutput
from fastshap.output.render.page import write_page
from fastshap.output.render.style import page_policy
from fastshap.service import answers, work
from fastshap.service.gate import CONTEXT
from fastshap.service.instances import Reader
from fastshap.service.problems import ProblemError
from fastshap.service.requests import format_of
from fastshap.service.service import Service

_PLACE = "instances"


class V1:
    """The endpoints of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        return as_json({"models": [self.service.name]})

    async def model(self, request: Request) -> Response:
        """``GET /v1/models/NAME``."""
        self.service.check_ready()
        return as_json({"name": self.service.name, "ready": True})

    async def explain(self, request: Request) -> Response:
        """``POST /v1/models/NAME:explain``."""
        form = format_of(request.scope)
        found = await self._outputs(request, self.service.explaining)
        await work.written_down(self.service, found, request.scope[CONTEXT].request_id)
        if form == "html":
            page = await asyncio.to_thread(_page, found, self.service)
            return Response(page, media_type="text/html", headers={"content-security-policy": page_policy()})
        if form == "full":
            return await asyncio.to_thread(_answer, found, AttributionOutput.to_dict)
        return _answer(found, answers.explanation)

    async def predict(self, request: Request) -> Response:
        """``POST /v1/models/NAME:predict``."""
        format_of(request.scope, ())
        found = await self._outputs(request, self.service.predicting)
        return as_json({"predictions": [entry(one, answers.prediction) for one in found]})

    async def _outputs(self, request: Request, reader: Reader) -> list[work.Found]:
        service, scope = self.service, request.scope
        body, seconds = await work.received(service, request)
        instances = instances_of(body, service.limits.max_instances)
        scope[CONTEXT].about["instances"] = len(instances)
        asked = work.read(reader, instances, _PLACE)
        return await work.outputs(service, reader, asked, _PLACE, request, seconds)


def instances_of(body: Any, most: int) -> list[Any]:
    """The instances of a request's body.

    Raises:
        ProblemError: the body holds none, too many, or something else.
    """
    if not isinstance(body, dict):
        raise _wrong(None, 'The body is an object: {"instances": [...]}.')
    for name in body:
        if name != _PLACE:
            raise _wrong(name[:40], f"There is no field {name[:40]!r}; there is {_PLACE}.")
    found = body.get(_PLACE)
    if not isinstance(found, list) or not found:
        raise _wrong(_PLACE, "instances must be a list of at least one instance.")
    if len(found) > most:
        message = f"There are {len(found)} instances and the service takes {most} at a time; send fewer."
        raise ProblemError(413, "TooLarge", message, _PLACE)
    return found


def as_json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, allow_nan=False), status, media_type="application/json")


def _answer(found: list[work.Found], form: Any) -> Response:
    predictions = [entry(one, answers.prediction) for one in found]
    return as_json({"predictions": predictions, "explanations": [entry(one, form) for one in found]})


def entry(one: work.Found, form: Any) -> Any:
    """What is answered of an output, made by ``form``; or what is wrong with the instance."""
    return one.plain() if isinstance(one, ProblemError) else form(one)


def _page(found: list[work.Found], service: Service) -> str:
    """All outputs, and what was wrong with the others, as a page."""
    file = StringIO()
    write_page([_shown(one, service) for one in found], file, service.name)
    return file.getvalue()


def _shown(one: work.Found, service: Service) -> AttributionOutput:
    if not isinstance(one, ProblemError):
        return one
    task: Any = service.explainer.task.model_task
    return AttributionOutput.failed(one, model_task=task, settings=service.explainer.settings)


def _wrong(field: str | None, message: str) -> ProblemError:
    return ProblemError(422, "InvalidArgumentError", message, field)
