"""The Open Inference Protocol (KServe V2), as MLServer runs Alibi: texts in, explanations as JSON strings out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from fastshap.output.output import AttributionOutput
from fastshap.service import answers, work
from fastshap.service.gate import CONTEXT
from fastshap.service.problems import ProblemError
from fastshap.service.requests import format_of
from fastshap.service.service import READY, Service
from fastshap.service.v1 import as_json, entry
from fastshap.version import __version__

OPTIONS = "explain_parameters"
_OWN = (
    "id",
    "parameters",
    "inputs",
    "outputs",
    "model_name",
    "model_version",
)  # the last two, as KServe's client sends
_PLACE = "inputs[0].data"


class Inference(NamedTuple):
    """What an inference request asks for."""

    id: str | None
    instances: list[Any]
    shared: dict[str, Any]


class V2:
    """The endpoints of one service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def server(self, request: Request) -> Response:
        """``GET /v2``."""
        return as_json({"name": "fastshap", "version": __version__, "extensions": []})

    async def live(self, request: Request) -> Response:
        """``GET /v2/health/live``."""
        return as_json({"live": True})

    async def ready(self, request: Request) -> Response:
        """``GET /v2/health/ready``."""
        return as_json({"ready": True}) if self.service.state == READY else as_json({"ready": False}, 503)

    async def model(self, request: Request) -> Response:
        """``GET /v2/models/NAME``."""
        its = self.service
        inputs = [_tensor(name) for name in ("text", "pair") if name in its.explaining.fields]
        about = {"name": its.name, "versions": [], "platform": "fastshap", "inputs": inputs}
        return as_json(about | {"outputs": [_tensor("explanation")]})

    async def model_ready(self, request: Request) -> Response:
        """``GET /v2/models/NAME/ready``."""
        ready = self.service.state == READY
        return as_json({"name": self.service.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """``POST /v2/models/NAME/infer``."""
        service, scope = self.service, request.scope
        form = format_of(scope, ("summary", "full"))
        body, seconds = await work.received(service, request)
        asked = inference(body, service.limits.max_instances)
        scope[CONTEXT].about["instances"] = len(asked.instances)
        try:
            service.explaining.check(asked.shared)
        except ProblemError as problem:
            raise work.placed(problem, f"parameters.{OPTIONS}") from None
        read = work.read(service.explaining, asked.instances, _PLACE, asked.shared)
        found = await work.outputs(service, service.explaining, read, _PLACE, request, seconds)
        make: Callable[[Any], Any] = AttributionOutput.to_dict if form == "full" else answers.explanation
        data = [json.dumps(entry(one, make), allow_nan=False) for one in found]
        output: dict[str, Any] = {"name": "explanation", "datatype": "BYTES", "shape": [len(data)], "data": data}
        output["parameters"] = {"content_type": "str"}
        own = scope[CONTEXT].request_id if asked.id is None else asked.id
        return as_json({"model_name": service.name, "id": own, "outputs": [output]})


def inference(body: Any, most: int) -> Inference:
    """What an inference request asks for.

    Raises:
        ProblemError: it is none; ``field`` says where.
    """
    if not isinstance(body, dict):
        raise _wrong(None, 'The body is an object: {"inputs": [...]}.')
    for name in body:
        if name not in _OWN:
            raise _wrong(name[:40], f"There is no field {name[:40]!r}; there are {', '.join(_OWN)}.")
    for name in ("id", "model_name", "model_version"):
        if not isinstance(body.get(name), str | None):
            raise _wrong(name, f"{name} must be a string.")
    texts, pairs = _inputs(body.get("inputs"))
    if len(texts) > most:
        message = f"There are {len(texts)} texts and the service takes {most} at a time; send fewer."
        raise ProblemError(413, "TooLarge", message, _PLACE)
    _check_outputs(body.get("outputs"))
    together = zip(texts, pairs, strict=True) if pairs else ()
    instances = [{"text": text, "pair": pair} for text, pair in together] or [{"text": one} for one in texts]
    return Inference(body.get("id"), instances, _shared(body.get("parameters")))


def _inputs(given: Any) -> tuple[list[Any], list[Any]]:
    """The texts, and their pairs where there are any."""
    if not isinstance(given, list) or not 1 <= len(given) <= 2:
        raise _wrong("inputs", "inputs must be a list of one input, the texts; or of two, the other named pair.")
    found = {}
    for i, one in enumerate(given):
        place = f"inputs[{i}]"
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise _wrong(place, f"{place} must be an object with a name, a shape, a datatype and data.")
        if one.get("datatype") != "BYTES":
            raise _wrong(f"{place}.datatype", f"{place}.datatype must be BYTES: the texts, as strings.")
        data = _flat(one.get("data"))
        if not data or not all(isinstance(text, str) for text in data):
            raise _wrong(f"{place}.data", f"{place}.data must be a list of at least one string.")
        if one.get("shape") not in ([len(data)], [len(data), 1]):
            raise _wrong(f"{place}.shape", f"{place}.shape must be [{len(data)}], as there are so many texts in data.")
        name = "pair" if one["name"] == "pair" else "text"
        if name in found:
            raise _wrong(f"{place}.name", "Of two inputs, one is the texts and the other is named pair.")
        found[name] = data
    if "text" not in found:
        raise _wrong(
            "inputs[0].name", "An input named pair stands beside the texts, which are an input of another name."
        )
    texts, pairs = found.get("text", []), found.get("pair", [])
    if pairs and len(pairs) != len(texts):
        raise _wrong("inputs", f"There are {len(texts)} texts and {len(pairs)} pairs; each text has one pair.")
    return texts, pairs


def _flat(data: Any) -> list[Any]:
    """Data of shape [n], or [n, 1]."""
    if not isinstance(data, list):
        return []
    return [one[0] if isinstance(one, list) and len(one) == 1 else one for one in data]


def _shared(parameters: Any) -> dict[str, Any]:
    """The options for all texts, from ``parameters.explain_parameters``; other parameters concern nothing here."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise _wrong("parameters", "parameters must be an object.")
    found = parameters.get(OPTIONS)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _wrong(f"parameters.{OPTIONS}", f"{OPTIONS} must be an object of the fields of an instance.")
    for name in ("text", "pair", "messages"):
        if name in found:
            raise _wrong(f"parameters.{OPTIONS}.{name}", f"{name} belongs into inputs.")
    return found


def _check_outputs(given: Any) -> None:
    named = [] if given is None else given
    if not isinstance(named, list) or not all(
        isinstance(one, dict) and one.get("name") == "explanation" for one in named
    ):
        raise _wrong("outputs", "There is one output, explanation.")


def _tensor(name: str) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [-1]}


def _wrong(field: str | None, message: str) -> ProblemError:
    return ProblemError(422, "InvalidArgumentError", message, field)
