"""The OpenAPI document of a service. It says of each address every status that it may answer, and every body."""

from __future__ import annotations

from typing import Any

from fastshap.service import fields
from fastshap.service.requests import FORMATS, TIMEOUT
from fastshap.service.service import Service
from fastshap.service.v2 import OPTIONS
from fastshap.version import __version__

_REASONS = {
    "400": "This is no HTTP request that can be read.",
    "401": "The token is missing or wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body, the number of instances or a text is too large.",
    "415": "The body is no JSON by its Content-Type.",
    "422": "The request, or every instance of it, cannot be explained; field says where it is wrong.",
    "429": "There is too much to do; ask again after Retry-After seconds.",
    "500": "The model failed on every instance, or the service did.",
    "503": "The service is starting or stopping.",
    "504": "The time for the request was up.",
}
_STRING, _FLAG = {"type": "string"}, {"type": "boolean"}
_TEXT = "A gorgeous, witty film."
_MAYBE = {"type": ["number", "null"]}
_NAMES = {"type": "array", "items": _STRING}
_VECTOR = {"type": "array", "items": _MAYBE}
_SOME = {"anyOf": [{"type": "null"}, _VECTOR]}
_MATRIX = {"type": "array", "items": _VECTOR}


def document(service: Service) -> dict[str, Any]:
    """The document."""
    v1, v2 = f"/v1/models/{service.name}", f"/v2/models/{service.name}"
    paths: dict[str, dict[str, Any]] = {
        "/": {"get": _page()},
        "/page.css": {"get": _get("The page's style.", {"text/css": {"schema": _STRING}})},
        "/page.js": {"get": _get("The page's script.", {"text/javascript": {"schema": _STRING}})},
        "/metrics": {"get": _get("Numbers for Prometheus.", {"text/plain": {"schema": _STRING}})},
        "/openapi.json": {"get": _get("This document.", _json({"type": "object"}))},
        "/v1/models": {"get": _get("The names of the models.", _json(_object(models=_NAMES)))},
        v1: {"get": _get("Whether the model is ready.", _json(_object(name=_STRING, ready=_FLAG)), "503")},
        f"{v1}:explain": {"post": _explain(service)},
        f"{v1}:predict": {"post": _predict(service)},
        "/v2": {"get": _get("What serves.", _json(_object(name=_STRING, version=_STRING, extensions=_NAMES)))},
        "/v2/health/live": {"get": _get("Whether the service runs.", _json(_object(live=_FLAG)))},
        "/v2/health/ready": {"get": _ready(_object(ready=_FLAG))},
        v2: {"get": _get("The model's inputs and outputs.", _json(_metadata()))},
        f"{v2}/ready": {"get": _ready(_object(name=_STRING, ready=_FLAG))},
        f"{v2}/infer": {"post": _infer(service)},
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "fastshap",
            "version": __version__,
            "description": "Explanations of a text model, by GradientSHAP.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(service)},
    }
    if service.token is not None:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in paths.items():
            for operation in methods.values() if path not in OPEN and path != f"{v2}/ready" else ():
                operation["security"] = [{"token": []}]
                operation["responses"]["401"] = _problem("401")
    return found


OPEN = frozenset({"/", "/page.css", "/page.js", "/v2/health/live", "/v2/health/ready"})


def _schemas(service: Service) -> dict[str, Any]:
    explaining, predicting = service.explaining.fields, service.predicting.fields
    error = _object(error=_STRING, type=_STRING, field={"type": ["string", "null"]})
    whole = error | {"properties": error["properties"] | {"request_id": {"type": ["string", "null"]}}}
    whole["properties"]["explanations"] = {"type": "array", "items": _ref("InstanceError")}
    whole["description"] = (
        "What is wrong. explanations is there if every instance failed, with what is wrong with each."
    )
    return {
        "Error": whole,
        "InstanceError": error,
        "Instance": _instance(explaining),
        "InstanceToPredict": _instance(predicting),
        "Explanation": _object(
            words=_NAMES,
            importances=_MATRIX | {"description": "A list for each target, with a score for each word."},
            standard_error=_MATRIX,
            targets=_NAMES,
            delta=_SOME | {"description": "For each target: how far the scores are from adding up."},
            output_value=_SOME | {"description": "The targets' scores for the text."},
            baseline_value=_SOME | {"description": "Their means at the baselines."},
            unassigned=_VECTOR | {"description": "The scores of what is in no word, special tokens say."},
            reliability=_VECTOR,
            samples={"type": "integer"},
            converged={"type": ["boolean", "null"]},
            truncated=_FLAG,
            settings_fingerprint=_STRING,
            model_fingerprint=_STRING,
        ),
        "Prediction": _object(
            label={"type": ["string", "null"]}, probability=_MAYBE, targets=_NAMES, target_probabilities=_SOME
        ),
        "Output": {
            "type": "object",
            "required": ["schema_version"],
            "description": "With format=full: as fastshap/schemas says; AttributionOutput.from_dict takes it.",
        },
    }


def _instance(known: dict[str, Any]) -> dict[str, Any]:
    its = fields.instance(known)
    return {"anyOf": [known["text"], its]} if its.get("required") == ["text"] or "oneOf" in its else its


def _explain(service: Service) -> dict[str, Any]:
    each = [_ref("Explanation"), _ref("Output"), _ref("InstanceError")]
    answer = _object(predictions=_each("Prediction"), explanations={"type": "array", "items": {"anyOf": each}})
    body = _instances(service, "Instance")
    said = "summary: scores of words. full: the versioned JSON that fastshap.reproduce takes. html: a page."
    html = {"text/html": {"schema": _STRING}}
    return _post("Explains each instance.", body, _example(service), _json(answer) | html, _format(FORMATS, said))


def _predict(service: Service) -> dict[str, Any]:
    body = _instances(service, "InstanceToPredict")
    example = _example(service)
    return _post(
        "What the model predicts for each instance.", body, example, _json(_object(predictions=_each("Prediction")))
    )


def _infer(service: Service) -> dict[str, Any]:
    text = {"type": "string", "pattern": r"\S"}
    alone = {"type": "array", "items": text, "minItems": 1, "maxItems": 1}
    texts = {"type": "array", "items": {"anyOf": [text, alone]}, "minItems": 1}
    shape = {"type": "array", "items": {"type": "integer"}}
    tensor = _object(name=_STRING, shape=shape, datatype={"const": "BYTES"}, data=texts)
    tensor["description"] = "The texts, with the shape [n], or [n, 1] where each is in a list of its own."
    tensor["properties"]["parameters"] = {"description": "Of any kind; they change nothing."}
    known = {name: one for name, one in service.explaining.fields.items() if name not in ("text", "pair", "messages")}
    options = {"type": "object", "properties": known, "additionalProperties": False}
    named = {"type": "object", "properties": {"name": {"const": "explanation"}}, "required": ["name"]}
    body = _object(
        inputs={
            "type": "array",
            "items": tensor,
            "minItems": 1,
            "maxItems": 2 if "pair" in service.explaining.fields else 1,
        }
    )
    body["properties"] |= {
        **{name: {"type": ["string", "null"]} for name in ("id", "model_name", "model_version")},
        "parameters": {"type": ["object", "null"], "properties": {OPTIONS: options}},
        "outputs": {"type": ["array", "null"], "items": named},
    }
    output = _object(name=_STRING, datatype=_STRING, shape=shape, data=_NAMES)
    output["properties"]["parameters"] = {"type": "object"}
    answer = _object(model_name=_STRING, id=_STRING, outputs={"type": "array", "items": output})
    said = "What each JSON string holds."
    example = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [_TEXT]}]}
    return _post("Explains each text of the inputs.", body, example, _json(answer), _format(("summary", "full"), said))


def _instances(service: Service, name: str) -> dict[str, Any]:
    most = service.limits.max_instances
    return _object(instances={"type": "array", "items": _ref(name), "minItems": 1, "maxItems": most})


def _example(service: Service) -> dict[str, Any]:
    choices = {"text": _TEXT, "choices": [_TEXT, "Dull."]}
    return {"instances": [choices if "choices" in service.explaining.fields else _TEXT]}


def _metadata() -> dict[str, Any]:
    tensor = _object(name=_STRING, datatype=_STRING, shape={"type": "array", "items": {"type": "integer"}})
    tensors = {"type": "array", "items": tensor}
    return _object(name=_STRING, versions=_NAMES, platform=_STRING, inputs=tensors, outputs=tensors)


def _post(said: str, body: Any, example: Any, answer: Any, *parameters: Any) -> dict[str, Any]:
    wait = {"type": "number", "exclusiveMinimum": 0}
    own = {
        "name": "x-request-id",
        "in": "header",
        "schema": _STRING,
        "description": "Comes back, and stands in the log.",
    }
    responses = {"200": _response("One entry for each instance, in their order.", answer)}
    return {
        "summary": said,
        "parameters": [*parameters, {"name": TIMEOUT, "in": "header", "schema": wait}, own],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body, "example": example}}},
        "responses": responses | {status: _problem(status) for status in _REASONS if status != "401"},
    }


def _get(said: str, answer: Any, *statuses: str) -> dict[str, Any]:
    responses = {"200": _response(said, answer)}
    return {
        "summary": said,
        "responses": responses | {status: _problem(status) for status in ("400", "500", *statuses)},
    }


def _ready(answer: dict[str, Any]) -> dict[str, Any]:
    found = _get("Whether requests are taken.", _json(answer))
    found["responses"]["503"] = _response(_REASONS["503"], _json(answer))
    return found


def _page() -> dict[str, Any]:
    alive = _json(_object(status={"const": "alive"}))
    return _get(
        "A page for browsers, and for others that the service runs.", {"text/html": {"schema": _STRING}} | alive
    )


def _format(formats: tuple[str, ...], said: str) -> dict[str, Any]:
    return {"name": "format", "in": "query", "description": said, "schema": {"enum": [*formats], "type": "string"}}


def _problem(status: str) -> dict[str, Any]:
    found = _response(_REASONS[status], _json(_ref("Error")))
    if status in ("429", "503"):
        found["headers"] = {**found["headers"], "Retry-After": {"schema": {"type": "integer"}}}
    return found


def _response(said: str, content: Any) -> dict[str, Any]:
    return {"description": said, "headers": {"X-Request-Id": {"schema": _STRING}}, "content": content}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _each(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": [_ref(name), _ref("InstanceError")]}}


def _object(**properties: Any) -> dict[str, Any]:
    """An object that has all of these fields and no others."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
