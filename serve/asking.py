"""From a body to a job that waits: what all endpoints that make songs have in common."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from acestep.errors import ACEStepError
from serve.errors import ConflictError, NotFoundError, UnprocessableError, WarmingUpError, service_error
from serve.job import Job, Song
from serve.records import is_job_id
from serve.service import Service
from serve.wire import Asked, parameters, parse, resolved

RETRY_WARMING = 5.0


class Asking:
    """Turns bodies into jobs of a service."""

    def __init__(self, service: Service):
        self._service = service
        self._once = asyncio.Lock()
        """Two requests with one Idempotency-Key must not both find it unused."""

    def parse(self, body: Mapping[str, Any]) -> Asked:
        """A body, understood.

        Raises:
            InvalidRequestError: with every problem.
        """
        service = self._service
        return parse(body, service.config, service.model.name, lambda: secrets.randbits(32))

    async def job(self, asked: Asked, owner: str | None, *, kept: bool, audio: bytes | None = None) -> Job:
        """A job that now waits.

        Raises:
            ServiceError: when there is no room, or its source cannot be used.
        """
        service = self._service
        songs = [resolved(asked, seed) for seed in asked.seeds]
        service.require_room(songs)
        source = await self._source(asked, owner, audio)
        job = service.new_job(
            owner=owner,
            format=asked.format,
            songs=[Song(song, source) for song in songs],
            parameters=parameters(asked),
            kept=kept,
        )
        await service.submit(job)
        return job

    async def once(
        self, key: str | None, body: Mapping[str, Any], owner: str | None, make: Any
    ) -> tuple[list[Job], bool]:
        """The jobs that `make()` gives, or those that the same key and body gave before; and whether it was before.

        Raises:
            ConflictError: for the same key with another body.
        """
        if key is None:
            return await make(), False
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        records = self._service.records
        async with self._once:
            if known := await records.remembered(owner, key):
                if known["body"] != digest:
                    message = "this Idempotency-Key came with another body before"
                    raise ConflictError(message, code="idempotency_conflict", param="Idempotency-Key")
                jobs = [job for id in known["job"].split() if (job := await records.get(id)) is not None]
                if jobs:
                    return jobs, True
            jobs = await make()
            await records.remember(owner, key, " ".join(job.id for job in jobs), digest)
        return jobs, False

    async def many(
        self, defaults: Mapping[str, Any], items: list[Any], owner: str | None
    ) -> list[tuple[Job | None, dict[str, Any] | None]]:
        """A job or an error for each item; a bad one is no other's problem."""
        answers: list[tuple[Job | None, dict[str, Any] | None]] = []
        for item in items:
            try:
                if not isinstance(item, dict):
                    raise UnprocessableError("an item must be an object", param="items")
                answers.append((await self.job(self.parse({**defaults, **item}), owner, kept=True), None))
            except ACEStepError as error:
                answers.append((None, service_error(error).body()["error"]))
        return answers

    def require_ready(self) -> None:
        """Callers who wait for the song itself are told when that would be in vain.

        Raises:
            WarmingUpError: while no engine is warm.
        """
        if not self._service.is_ready:
            raise WarmingUpError("the model is being loaded; try again, or ask for a job", retry_after=RETRY_WARMING)

    async def find(self, id: str, owner: str | None) -> Job:
        """A job of this owner.

        Raises:
            NotFoundError: for one that there is not, has expired, or is somebody else's.
        """
        job = await self._service.records.get(id) if is_job_id(id) else None
        if job is None or job.owner != owner or not job.kept:
            raise NotFoundError(f"there is no job {id[:60]!r}; it may have expired", code="job_not_found")
        return job

    async def _source(self, asked: Asked, owner: str | None, audio: bytes | None) -> str | None:
        async def find_job(id: str, index: int) -> str:
            job = await self.find(id, owner)
            made = job.songs[index].made if index < len(job.songs) else None
            if made is None:
                raise NotFoundError(f"{id} has no finished song {index}", code="job_not_found", param="source")
            return made.get("latents") or made["key"]

        if audio is not None:
            return (await self._service.sources.put(audio, "source")).key
        if asked.request.source is None:
            return None
        return await self._service.sources.resolve(asked.request.source, find_job)
