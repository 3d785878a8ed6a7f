"""Endpoints of jobs and uploads: work that nobody waits for on the line."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from acestep.errors import InvalidRequestError
from acestep.problems import Problem
from serve.asking import Answer, Asking
from serve.bodies import read_fields
from serve.content import converted, ranged
from serve.errors import ConflictError, NotFoundError, UnprocessableError
from serve.job import Job
from serve.service import Service

EVENTS_SECONDS = 0.2
"""Between two events of one job, at least."""
PLACE_SECONDS = 1.0
"""So often is looked whether a job's place in the queue has changed."""
ALIVE_SECONDS = 15.0
"""A silent stream says so often that it lives: proxies close those that say nothing."""

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


def job_routes(service: Service, asking: Asking) -> APIRouter:
    """See the module."""
    router, config = APIRouter(), service.config

    @router.post("/v1/audio/jobs")
    async def submit(request: Request) -> Response:
        body, audio = await read_fields(request, config.http.max_body_bytes, config.sources.max_bytes)
        owner, key = request.state.owner, request.headers.get("idempotency-key")
        if "items" in body:
            return await submit_many(body, owner, key)
        asked = asking.parse(body, audio)
        job, again = await asking.job_once(asked, key, body, owner, kept=True, audio=audio)
        job.callers += 1
        headers = {"Location": f"/v1/audio/jobs/{job.id}"} | ({"Idempotent-Replayed": "true"} if again else {})
        return JSONResponse(service.shown(job), 202, headers=headers)

    async def submit_many(body: dict[str, Any], owner: str | None, key: str | None) -> Response:
        defaults, items = body.pop("defaults", None) or {}, body.pop("items")
        problems = [Problem(name, value, "beside items there is only defaults") for name, value in body.items()]
        if not isinstance(defaults, dict):
            problems.append(Problem("defaults", defaults, "it must be an object"))
        if not isinstance(items, list) or not 1 <= len(items) <= config.jobs.max_items:
            problems.append(Problem("items", items, f"it must be a list of 1 to {config.jobs.max_items} requests"))
        if problems:
            raise InvalidRequestError(problems)

        async def make() -> list[Answer]:
            return await asking.many(defaults, items, owner)

        answers, again = await asking.once(key, {"defaults": defaults, "items": items}, owner, make)
        data = [
            {"index": index}
            | (service.shown(answer) if isinstance(answer, Job) else {"status": "failed", "error": answer})
            for index, answer in enumerate(answers)
        ]
        headers = {"Idempotent-Replayed": "true"} if again else {}
        return JSONResponse({"object": "list", "data": data}, 202, headers=headers)

    @router.get("/v1/audio/jobs")
    async def jobs(
        request: Request,
        limit: int = Query(20, ge=1, le=100),
        after: str | None = Query(None, max_length=64),
        order: Literal["asc", "desc"] = "desc",
        status: Status | None = None,
    ) -> Any:
        found = await service.records.page(request.state.owner, status, after, limit + 1, order == "desc")
        data = [service.shown(job) for job in found[:limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"object": "list", "data": data, "has_more": len(found) > limit, **ends}

    @router.get("/v1/audio/jobs/{id}")
    async def job(request: Request, id: str) -> Any:
        return service.shown(await asking.find(id, request.state.owner))

    @router.get("/v1/audio/jobs/{id}/content")
    async def content(
        request: Request, id: str, index: int = Query(0, ge=0), format: str | None = None, download: bool = False
    ) -> Response:
        job = await asking.find(id, request.state.owner)
        if index >= len(job.songs):
            raise NotFoundError(f"{id} has {len(job.songs)} songs", code="no_such_song", param="index")
        made = job.songs[index].made
        if made is None:
            message = f"song {index} of {id} is {job.songs[index].status}"
            if job.songs[index].is_over:
                raise ConflictError(f"{message}: it will not come", code="never_made")
            raise ConflictError(message, code="not_ready")
        try:
            stored = await service.records.read(made["key"])
        except FileNotFoundError:
            raise NotFoundError(f"the audio of {id} has expired", code="job_not_found") from None
        data, audio = await converted(stored, made["format"], format)
        headers = {"ETag": f'"{made["sha256"][:32]}-{audio.format}"', "Cache-Control": "private, max-age=3600"}
        if download:
            headers["Content-Disposition"] = f'attachment; filename="{id}-{index}{audio.extension}"'
        return ranged(request, data, audio.media_type, headers)

    @router.get("/v1/audio/jobs/{id}/events")
    async def events(request: Request, id: str) -> Response:
        job = await asking.find(id, request.state.owner)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(service, job), media_type="text/event-stream", headers=headers)

    @router.delete("/v1/audio/jobs/{id}")
    async def delete(request: Request, id: str, cancel: bool = False) -> Any:
        job = await asking.find(id, request.state.owner)
        if cancel or not job.is_over:  # With `cancel`, a song that was finished just now stays.
            await service.cancel(job)
            return service.shown(job)
        await service.records.forget(job)
        return {"id": id, "object": "audio.job", "deleted": True}

    @router.post("/v1/audio/uploads")
    async def upload(request: Request) -> Response:
        fields, audio = await read_fields(request, config.http.max_body_bytes, config.sources.max_bytes)
        if audio is None or fields:
            raise UnprocessableError("send one file, as the part `file` of multipart/form-data", param="file")
        made = await service.sources.put(audio)
        names = ("id", "bytes", "duration", "sample_rate", "channels", "expires_at")
        return JSONResponse({name: getattr(made, name) for name in names} | {"object": "upload"}, 201)

    return router


async def _events(service: Service, job: Job) -> AsyncIterator[str]:
    """Server-sent events: the job each time it changes, and once more under the name of its end."""
    seen, said = -1, time.monotonic()
    shown: dict[str, Any] = {}
    while True:
        before = shown
        with suppress(asyncio.TimeoutError):  # A place in the queue changes without the job.
            seen = await asyncio.wait_for(job.change(seen), PLACE_SECONDS)
        shown = service.shown(job)
        if shown == before:
            if time.monotonic() - said > ALIVE_SECONDS:
                said = time.monotonic()
                yield ": still here\n\n"
            continue
        said = time.monotonic()
        kind = shown["status"] if job.is_over else "progress"
        yield f"event: {kind}\ndata: {json.dumps(shown)}\n\n"
        if job.is_over:
            return
        await asyncio.sleep(EVENTS_SECONDS)
