"""`Front`: what happens to every request on its way in and out: keys, limits, ids, counts, a line in the audit log."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.auth import Keys, RateLimiter
from serve.errors import InternalError, ServiceError
from serve.service import Service

logger = logging.getLogger(__name__)
audit = logging.getLogger("serve.audit")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_OPEN = ("/health", "/ready", "/metrics", "/openapi.json", "/docs")
_OPEN_FOLDERS = ("/page/", "/docs/")
_QUIET = ("/health", "/ready", "/metrics", "/page/")


class Front:
    """ASGI middleware. Its audit line names who asked for what, and never what the song is about."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys, limiter: RateLimiter):
        self._app, self._service = app, service
        self._keys, self._limiter = keys, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path, started = Headers(scope=scope), _path(scope), time.perf_counter()
        given = headers.get("x-request-id", "")
        state = scope.setdefault("state", {})
        state["id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state["owner"] = None
        seen: dict[str, Any] = {"status": 0, "bytes": 0}

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = state["id"]
            elif message["type"] == "http.response.body":
                seen["bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            with ExitStack() as stack:
                try:
                    if path not in ("", "/", *_OPEN) and not path.startswith(_OPEN_FOLDERS):
                        state["owner"] = self._keys.identify(headers.get("authorization"))
                        if scope["method"] == "POST":
                            self._limiter.take(state["owner"])
                            stack.enter_context(self._limiter.running(state["owner"]))
                except ServiceError as error:
                    await JSONResponse(error.body(), error.status, headers=error.headers())(scope, receive, observed)
                    return
                await self._app(scope, receive, observed)
        except ClientDisconnect:
            seen["status"] = seen["status"] or 499
        except Exception:
            logger.exception("request %s failed", state["id"])
            if not seen["status"]:
                failed = InternalError("the server failed on this request; its log says why")
                await JSONResponse(failed.body(), failed.status)(scope, receive, observed)
        finally:
            self._note(scope, state, seen, time.perf_counter() - started)

    def _note(self, scope: Scope, state: dict[str, Any], seen: dict[str, Any], seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._service.metrics.request(route, seen["status"])
        if _path(scope).startswith(_QUIET):
            return
        facts = {
            "request": state["id"],
            "key": state["owner"],
            "client": (scope.get("client") or [None])[0],
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": seen["status"],
            "bytes": seen["bytes"],
            "ms": round(1000 * seconds, 1),
        }
        audit.info(json.dumps(facts))


def _path(scope: Scope) -> str:
    """The path below the prefix that the application may be mounted at."""
    path, prefix = str(scope["path"]), str(scope.get("root_path") or "").rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path
