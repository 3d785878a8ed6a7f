"""From a body to a job that waits: what all endpoints that make songs have in common."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from acestep.errors import ACEStepError
from serve.errors import ConflictError, NotFoundError, UnprocessableError, WarmingUpError, service_error
from serve.job import Job, Song
from serve.records import is_job_id
from serve.service import Service
from serve.wire import Asked, parameters, parse, resolved, with_defaults

Answer = Job | dict[str, Any]
"""To one item of many: its job, or the error as the API shows it."""
RETRY_WARMING = 5.0


class Asking:
    """Turns bodies into jobs of a service."""

    def __init__(self, service: Service):
        self._service = service
        self._once: WeakValueDictionary[tuple[str | None, str], asyncio.Lock] = WeakValueDictionary()
        """Two requests with one Idempotency-Key must not both find it unused."""

    def parse(self, body: Mapping[str, Any], audio: bytes | None = None) -> Asked:
        """A body, understood.

        Args:
            audio: its source, where that came as a file.

        Raises:
            InvalidRequestError: with every problem.
        """
        service = self._service
        if audio is not None:
            body = {**body, "source": "file"}
        return parse(body, service.config, service.model.name, lambda: secrets.randbits(32))

    async def job(self, asked: Asked, owner: str | None, *, kept: bool, audio: bytes | None = None) -> Job:
        """A job that now waits.

        Raises:
            ServiceError: when there is no room, or its source cannot be used.
        """
        service = self._service
        service.require_room([resolved(asked, seed) for seed in asked.seeds])
        source = await self._source(asked, owner, audio)
        if source is not None and source.startswith("uploads/"):  # Short, and good for asking again.
            name = "upload:" + source.rpartition("/")[2].partition(".")[0]
            asked = replace(asked, request=asked.request.model_copy(update={"source": name}))
        songs = [resolved(asked, seed) for seed in asked.seeds]
        job = service.new_job(
            owner=owner,
            format=asked.format,
            songs=[Song(song, source) for song in songs],
            parameters=parameters(asked),
            kept=kept,
        )
        await service.submit(job)
        return job

    async def job_once(
        self,
        asked: Asked,
        key: str | None,
        body: Mapping[str, Any],
        owner: str | None,
        *,
        kept: bool,
        audio: bytes | None = None,
        renew: bool = False,
    ) -> tuple[Job, bool]:
        """`job`, but `once`."""

        async def make() -> list[Answer]:
            return [await self.job(asked, owner, kept=kept, audio=audio)]

        (job,), again = await self.once(key, body, owner, make, audio=audio, renew=renew)
        assert isinstance(job, Job), "one body is one job"
        return job, again

    async def once(
        self,
        key: str | None,
        body: Mapping[str, Any],
        owner: str | None,
        make: Callable[[], Awaitable[list[Answer]]],
        *,
        audio: bytes | None = None,
        renew: bool = False,
    ) -> tuple[list[Answer], bool]:
        """What `make()` gives, or what the same key and body gave before; and whether it was before.

        Args:
            audio: what came with the body.
            renew: make it again if it was cancelled, as jobs are whose caller hung up.

        Raises:
            ConflictError: for the same key with another body.
        """
        if key is None:
            return await make(), False
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode() + b"\n" + (audio or b"")).hexdigest()
        records = self._service.records
        async with self._once.setdefault((owner, key), asyncio.Lock()):
            if known := await records.remembered(owner, key):
                if known["body"] != digest:
                    message = "this Idempotency-Key came with another body before"
                    raise ConflictError(message, code="idempotency_conflict", param="Idempotency-Key")
                answers = [await self._again(each) for each in known["answers"]]
                jobs = [answer for answer in answers if isinstance(answer, Job)]
                if jobs and not (renew and any(job.status == "cancelled" for job in jobs)):
                    return answers, True
            answers = await make()
            kept = [answer.id if isinstance(answer, Job) else answer for answer in answers]
            await records.remember(owner, key, kept, digest)
        return answers, False

    async def _again(self, kept: str | dict[str, Any]) -> Answer:
        if isinstance(kept, dict):
            return kept
        return await self._service.records.get(kept) or _no_job(kept).body()["error"]

    async def many(self, defaults: Mapping[str, Any], items: list[Any], owner: str | None) -> list[Answer]:
        """A job or an error for each item; a bad one is no other's problem."""
        answers: list[Answer] = []
        for item in items:
            try:
                if not isinstance(item, dict):
                    raise UnprocessableError("an item must be an object", param="items")
                asked = self.parse(with_defaults(defaults, item))
                answers.append(await self.job(asked, owner, kept=True))
            except ACEStepError as error:
                answers.append(service_error(error).body()["error"])
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
            raise _no_job(id)
        return job

    async def _source(self, asked: Asked, owner: str | None, audio: bytes | None) -> str | None:
        async def find_job(id: str, index: int) -> str:
            try:
                job = await self.find(id, owner)
            except NotFoundError as error:
                raise NotFoundError(error.message, code=error.code, param="source") from None
            made = job.songs[index].made if index < len(job.songs) else None
            if made is None:
                raise NotFoundError(f"{id} has no finished song {index}", code="job_not_found", param="source")
            return made.get("latents") or made["key"]

        if audio is not None:
            return (await self._service.sources.put(audio, "source")).key
        if asked.request.source is None:
            return None
        return await self._service.sources.resolve(asked.request.source, find_job)


def _no_job(id: str) -> NotFoundError:
    return NotFoundError(f"there is no job {id[:60]!r}; it may have expired", code="job_not_found")
