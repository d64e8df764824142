"""The page at ``/``: a person types a text and sees it coloured. Its script and its style are files of the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fastshap.output.render import style
from fastshap.output.render.markup import plain
from fastshap.service.service import Service

_FILES = Path(__file__).parent / "web"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAIR = '<label for="pair">Second text (if there is one)</label>\n<textarea id="pair" rows="2" dir="auto"></textarea>\n'
_TOKEN = '<div><label for="token">Token</label>\n<input id="token" type="password" autocomplete="off"></div>\n'
_MOST = 200  # targets to choose from


class Page:
    """The page of one service."""

    def __init__(self, service: Service) -> None:
        closed = service.token is not None
        shown = {
            "name": plain(service.name),
            "pair": _PAIR if "pair" in service.explaining.fields else "",
            "token": _TOKEN if closed else "",
            "known": "" if closed else "".join(f'<option value="{plain(one)}"></option>' for one in _targets(service)),
        }
        self._html = Template(_read("page.html")).substitute(shown)

    async def html(self, request: Request) -> Response:
        """``GET /``: the page for a browser. KServe's clients ask here whether the service runs."""
        if "text/html" not in request.headers.get("accept", ""):
            return Response('{"status": "alive"}', media_type="application/json")
        return Response(self._html, media_type="text/html", headers={"content-security-policy": _POLICY})

    async def css(self, request: Request) -> Response:
        """``GET /page.css``."""
        return Response(_css(), media_type="text/css")

    async def script(self, request: Request) -> Response:
        """``GET /page.js``."""
        return Response(_read("page.js"), media_type="text/javascript")


def _targets(service: Service) -> list[str]:
    """The names of classes, where these are the targets."""
    task: Any = service.explainer.task
    names = getattr(service.explainer.model.config, "id2label", None) if task.targets_are_classes else None
    return [str(one) for one in (names or {}).values()][:_MOST]


@cache
def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


@cache
def _css() -> str:
    return style.style(style.PAGE + style.ARTICLE + _read("page.css"))
