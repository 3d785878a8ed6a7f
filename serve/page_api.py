"""The page at `/`, its files, and the documentation at `/docs`: all of it from this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, JSONResponse, Response

from serve.errors import NotFoundError
from serve.page import CONTENT_SECURITY_POLICY, asset

_DOCS_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")
_DOCS_START = """
const ui = SwaggerUIBundle({
  url: "openapi.json", dom_id: "#docs", deepLinking: true, tryItOutEnabled: true, validatorUrl: null
});
"""
_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ACE-Step API</title>
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body></html>
"""
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def page_routes(schema: Callable[[], dict[str, Any]]) -> APIRouter:
    """See the module.

    Args:
        schema: gives the OpenAPI document.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        data, media_type = asset("index.html")
        return Response(
            data, media_type=media_type, headers=_HEADERS | {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        )

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        try:
            data, media_type = asset(name)
        except KeyError:
            raise NotFoundError(f"there is no {name[:60]!r}") from None
        return Response(data, media_type=media_type, headers=_HEADERS | {"Cache-Control": "no-cache"})

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(schema())

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(_DOCS, headers=_HEADERS | {"Content-Security-Policy": _DOCS_POLICY})

    @router.get("/docs/{name}")
    async def docs_file(name: str) -> Response:
        if name == "start.js":
            return Response(_DOCS_START, media_type="text/javascript")
        if name not in _DOCS_FILES:
            raise NotFoundError(f"there is no {name[:60]!r}")
        media_type = "text/css" if name.endswith(".css") else "text/javascript"
        return Response((_docs_folder() / name).read_bytes(), media_type=media_type, headers=_HEADERS)

    return router


def _docs_folder() -> Path:
    import swagger_ui_bundle

    return Path(next((Path(swagger_ui_bundle.__file__).parent / "vendor").glob("swagger-ui-*")))
