"""The HTTP API: a FastAPI application over a `Service`. Generations and what there is; the rest in `jobs_api`."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from acestep import __version__
from acestep.errors import InvalidRequestError
from acestep.problems import Problem
from acestep.request import LANGUAGES, GenerationRequest
from serve import openapi, page_api
from serve.asking import Asking
from serve.auth import Keys, RateLimiter
from serve.bodies import read_fields
from serve.errors import (
    ConflictError,
    DeadlineError,
    InternalError,
    MalformedError,
    NotFoundError,
    ServiceError,
    UnprocessableError,
    service_error,
)
from serve.front import Front
from serve.job import Job
from serve.jobs_api import job_routes
from serve.service import Service
from serve.wire import Asked

logger = logging.getLogger(__name__)

GENERATE_IGNORED = {"speed": (None, 1, 1.0), "audio_start": (None, 0, 0.0), "negative_prompt": (None, "")}
"""Fields of other servers' clients that this model has nothing for: taken where they ask for nothing."""


def create_app(service: Service, *background: Callable[[], Coroutine[Any, Any, None]]) -> FastAPI:
    """The application; it starts and stops the service.

    Args:
        background: run beside it for as long as it runs.
    """
    config = service.config

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        tasks = [asyncio.create_task(each()) for each in background]
        yield
        for task in tasks:
            task.cancel()
        await service.stop()

    app = FastAPI(title="ACE-Step", version=__version__, docs_url=None, openapi_url=None, lifespan=lifespan)
    asking = Asking(service)
    keys, limiter = Keys.of(config.auth), RateLimiter(config.auth.requests_per_minute, config.auth.max_concurrent)
    app.include_router(generation_routes(service, asking))
    app.include_router(job_routes(service, asking))
    app.include_router(about_routes(service, asking))
    app.include_router(page_api.page_routes(lambda: openapi.schema(service)))
    for kind in (ServiceError, InvalidRequestError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_error)
    app.add_middleware(Front, service=service, keys=keys, limiter=limiter)
    if config.http.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.http.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "X-Seed", "X-Audio-Duration", "X-Sample-Rate", "Retry-After", "Location"],
        )
    return app


def generation_routes(service: Service, asking: Asking) -> APIRouter:
    """Endpoints that answer with the song itself."""
    router, config = APIRouter(), service.config

    @router.post("/v1/audio/generations")
    async def generations(request: Request) -> Response:
        body, audio = await read_fields(request, config.http.max_body_bytes, config.sources.max_bytes)
        return await answer(request, body, audio, raw=False)

    @router.post("/v1/audio/generate")
    async def generate(request: Request) -> Response:
        body, audio = await read_fields(request, config.http.max_body_bytes, config.sources.max_bytes)
        for name, allowed in GENERATE_IGNORED.items():
            value = body.pop(name, None)
            if value not in allowed:
                raise InvalidRequestError([Problem(name, value, "this model has no such setting")])
        return await answer(request, {"response_format": "wav", **body}, audio, raw=True)

    async def answer(request: Request, body: dict[str, Any], audio: bytes | None, raw: bool) -> Response:
        owner, key = request.state.owner, request.headers.get("idempotency-key")
        asked = asking.parse(body, audio)
        raw = raw or asked.bytes_wanted or _wants_audio(request)
        if raw and len(asked.seeds) > 1:
            raise InvalidRequestError([Problem("n", len(asked.seeds), "raw audio is one song")])
        asking.require_ready()
        kept = key is not None or (asked.delivery == "url" and not raw)
        job, _ = await asking.job_once(asked, key, body, owner, kept=kept, audio=audio, renew=True)
        await _until_over(request, service, job)
        if job.status == "cancelled":
            raise ConflictError("the job was cancelled by another request", code="cancelled")
        failed = [song.error for song in job.songs if song.error]
        if failed:
            raise _as_raised(failed[0])
        if raw:
            return await _raw(service, job)
        return JSONResponse(await _listed(service, job, asked))

    return router


def about_routes(service: Service, asking: Asking) -> APIRouter:
    """Endpoints about the server itself."""
    router, config, model = APIRouter(), service.config, service.model

    @router.get("/v1/models")
    async def models() -> Any:
        defaults = GenerationRequest.parse({**config.defaults, "prompt": "any"})
        shown = defaults.model_dump(mode="json", exclude={"id", "prompt", "seed"})
        about = {
            "id": model.name,
            "object": "model",
            "ready": service.is_ready,
            "dtype": model.dtype,
            "fingerprint": model.fingerprint,
            "random_weights": model.random_weights,
            "max_duration": config.jobs.max_duration,
            "max_n": config.jobs.max_n,
            "formats": list(openapi.FORMATS),
            "languages": ["auto", "per-line", *LANGUAGES],
            "loras": config.jobs.loras or [],
            "defaults": shown | {"response_format": config.audio.format, "n": 1},
        }
        return {"object": "list", "data": [about]}

    @router.get("/v1/stats")
    async def stats() -> Any:
        return service.metrics.stats()

    @router.get("/health")
    async def health() -> Any:
        return {"status": "alive"}

    @router.get("/ready")
    async def ready() -> Any:
        asking.require_ready()
        return {"status": "ready"}

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return router


async def _until_over(request: Request, service: Service, job: Job) -> None:
    """Wait for a job as long as its caller does: one who hangs up does not want it any more."""
    if job.is_over:
        return
    waiting = asyncio.ensure_future(service.wait(job, service.config.jobs.deadline_seconds))
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise HTTPException(499, "the caller hung up")
        await waiting
    finally:
        gone.cancel()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wants_audio(request: Request) -> bool:
    return request.headers.get("accept", "").strip().startswith("audio/")


async def _bytes_of(service: Service, job: Job, index: int) -> bytes:
    song = job.songs[index]
    assert song.made is not None
    if song.data is not None:
        return song.data
    return await service.records.read(song.made["key"])


async def _raw(service: Service, job: Job) -> Response:
    made = job.songs[0].made
    assert made is not None
    headers = {
        "X-Seed": str(made["seed"]),
        "X-Audio-Duration": f"{made['duration']:.6f}",
        "X-Sample-Rate": str(made["sample_rate"]),
    }
    return Response(await _bytes_of(service, job, 0), media_type=job.format.media_type, headers=headers)


async def _listed(service: Service, job: Job, asked: Asked) -> dict[str, Any]:
    data = job.data()
    if asked.delivery == "b64_json":
        for entry in data:
            del entry["url"]
            entry["b64_json"] = base64.b64encode(await _bytes_of(service, job, entry["index"])).decode()
    return {
        "id": job.id,
        "created": int(job.created_at),
        "model": job.model,
        "data": data,
        "parameters": job.parameters,
        "inference_time_s": round((job.completed_at or time.time()) - (job.started_at or job.created_at), 3),
    }


def _as_raised(error: Mapping[str, Any]) -> ServiceError:
    """The error in a job's record, for a caller who waits for the song."""
    kinds: dict[str, type[ServiceError]] = {kind.type: kind for kind in (UnprocessableError, DeadlineError)}
    return kinds.get(error["type"], InternalError)(error["message"], code=error["code"])


async def _answer_error(request: Request, error: Exception) -> Response:
    """Every error of an endpoint, in the one shape that there is."""
    if isinstance(error, HTTPException):
        kind: ServiceError = NotFoundError("there is no such endpoint", code="no_such_endpoint")
        if error.status_code != 404:
            kind = MalformedError(str(error.detail), code="bad_request")
        return JSONResponse(kind.body(), error.status_code, headers=dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        where = [str(part) for part in error.errors()[0]["loc"]]
        error = MalformedError(f"{where[-1]}: {error.errors()[0]['msg']}", param=where[-1], code="invalid_value")
    told = service_error(error)
    return JSONResponse(told.body(), told.status, headers=told.headers())
