"""The app: a service's addresses, for any ASGI server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastshap.extras import needed
from fastshap.service.service import Service


def make_app(service: Service) -> Any:
    """A FastAPI app that serves ``service``: KServe's V1 and V2 protocols, a page at ``/``, metrics, an OpenAPI document.

    When the app starts, the service is tried in a thread; until then it answers 503. When it stops, the service is closed.

    Raises:
        MissingPackageError: fastapi is not installed.
    """
    fastapi = needed("fastapi", "serve")
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response

    from fastshap.service.gate import CONTEXT, Gate
    from fastshap.service.openapi import OPEN, document
    from fastshap.service.page import Page
    from fastshap.service.problems import ProblemError
    from fastshap.service.v1 import V1
    from fastshap.service.v2 import V2

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    def other(request: Request, error: Exception) -> Response:
        """What Starlette refuses: an address or a method that is not there."""
        assert isinstance(error, HTTPException)
        problem = _unknown(service, request.url.path) if error.status_code == 404 else None
        if problem is None:
            message = f"{request.method} is not for this address."
            problem = ProblemError(error.status_code, "MethodNotAllowed", message, headers=error.headers)
        body = problem.body(request.scope[CONTEXT].request_id)
        return Response(body, problem.status, problem.headers, media_type="application/json")

    app = fastapi.FastAPI(
        title="fastshap",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={HTTPException: other},
    )
    v1 = V1(service)
    v2, page = V2(service), Page(service)
    described = json.dumps(document(service)).encode()

    async def metrics(request: Request) -> Response:
        body, kind = service.metrics.page()
        return Response(body, headers={"content-type": kind})

    async def openapi(request: Request) -> Response:
        return Response(described, media_type="application/json")

    name, other_name = f"/v1/models/{service.name}", f"/v2/models/{service.name}"
    routes: list[tuple[str, str, str, Callable[..., Any]]] = [
        ("GET", "/v1/models", "models", v1.models),
        ("GET", name, "model", v1.model),
        ("POST", f"{name}:explain", "explain", v1.explain),
        ("POST", f"{name}:predict", "predict", v1.predict),
        ("GET", "/v2", "server", v2.server),
        ("GET", "/v2/health/live", "live", v2.live),
        ("GET", "/v2/health/ready", "ready", v2.ready),
        ("GET", other_name, "model", v2.model),
        ("GET", f"{other_name}/ready", "ready", v2.model_ready),
        ("POST", f"{other_name}/infer", "infer", v2.infer),
        ("GET", "/metrics", "metrics", metrics),
        ("GET", "/openapi.json", "openapi", openapi),
        ("GET", "/", "page", page.html),
        ("GET", "/page.css", "page", page.css),
        ("GET", "/page.js", "page", page.script),
    ]
    for method, path, _, endpoint in routes:
        app.add_route(path, endpoint, methods=[method])
    operations = {path: operation for _, path, operation, _ in routes}
    working = frozenset(path for method, path, _, _ in routes if method == "POST")
    app.add_middleware(
        Gate, service=service, operations=operations, open_to_all=OPEN | {f"{other_name}/ready"}, working=working
    )
    return app


def _unknown(service: Service, path: str) -> Any:
    from fastshap.service.problems import ProblemError

    message = "There is nothing at this address."
    if path.startswith(("/v1/models/", "/v2/models/")):
        message = f"There is no such model, or it does no such thing; the model here is {service.name}."
    return ProblemError(404, "NotFound", message)
