"""`Records`: jobs on a store, so that they outlive every process of the server.

jobs/<day>/<id>.json       what was asked and what became of it
open/<id>.json             a job that is not over: what a server that starts looks for
audio/<id>/<index>.<ext>   what was made
latents/<id>/<index>.safetensors
idempotency/<hash>.json    which job a client's key stands for, and for which body
uploads/...                see `serve.sources`
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

from pipelines.errors import StorageError
from pipelines.storage import Storage
from serve.job import Job

logger = logging.getLogger(__name__)

MAX_CACHED = 2000
"""Jobs that are over and still held in memory."""
_READERS = 16
_ID = re.compile(r"job-\d{8}T\d{12}-[0-9a-f]{8}")


def day_of(id: str) -> str:
    """`20261122` of `job-20261122T...`."""
    return id[4:12]


def job_key(id: str) -> str:
    """The object of a job's record."""
    return f"jobs/{day_of(id)}/{id}.json"


def is_job_id(id: str) -> bool:
    """Whether it looks like one of ours; anything else is no part of a key."""
    return bool(_ID.fullmatch(id))


class Records:
    """Reads and writes in threads: the event loop never waits for a store."""

    def __init__(self, storage: Storage, expire_seconds: float):
        self._storage = storage
        self._expire_seconds = expire_seconds
        self._open: dict[str, Job] = {}
        self._over: OrderedDict[str, Job] = OrderedDict()
        self._ids: list[str] = []
        """Of all jobs, by time."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._remembered: dict[str, float] = {}
        """When each object below idempotency/ was written."""

    def open_jobs(self) -> list[Job]:
        """Those that are not over."""
        return list(self._open.values())

    async def load(self) -> list[Job]:
        """Find what a server before this one left; the jobs that are not over, oldest first."""
        names = await asyncio.to_thread(self._storage.keys, "jobs", ".json")
        self._ids = sorted(name.rpartition("/")[2].removesuffix(".json") for name in names)
        markers = await asyncio.to_thread(self._storage.keys, "open", ".json")
        ids = sorted(name.rpartition("/")[2].removesuffix(".json") for name in markers)
        with ThreadPoolExecutor(_READERS) as pool:
            jobs = await asyncio.gather(
                *(asyncio.get_running_loop().run_in_executor(pool, self._read, id) for id in ids)
            )
        over = [id for id, job in zip(ids, jobs, strict=True) if job is None or job.is_over]
        await asyncio.to_thread(self._storage.delete, [f"open/{id}.json" for id in over])
        self._open = {job.id: job for job in jobs if job is not None and not job.is_over}
        return list(self._open.values())

    async def add(self, job: Job) -> None:
        """A new job; once this returns, no crash loses it.

        Raises:
            StorageError: when it cannot be written.
        """
        if job.kept:
            record = _json(job.record())
            # In this order: a marker without a record is nothing, a record without one would wait for ever.
            await asyncio.to_thread(self._storage.put, f"open/{job.id}.json", b"{}")
            await asyncio.to_thread(self._storage.put, job_key(job.id), record)
            self._ids.insert(bisect_right(self._ids, job.id), job.id)
        self._open[job.id] = job

    async def close(self, job: Job) -> None:
        """Write down what became of a job that is over."""
        if self._open.pop(job.id, None) is None or not job.kept:
            return
        self._cache(job)
        try:
            async with self._lock(job.id):
                await asyncio.to_thread(self._storage.put, job_key(job.id), _json(job.record()))
                await asyncio.to_thread(self._storage.delete, [f"open/{job.id}.json"])
        except StorageError as error:  # It stays open in the store: a server that starts makes it again.
            logger.error("%s", error)

    async def get(self, id: str) -> Job | None:
        """A job; None when there is none, or it has expired."""
        job = self._open.get(id) or self._over.get(id)
        if job is None and is_job_id(id):
            job = await asyncio.to_thread(self._read, id)
            if job is not None:
                self._cache(job)
        if job is None or (job.is_over and (job.expires_at or 0) < time.time()):
            return None
        return job

    async def page(
        self, owner: str | None, status: str | None, after: str | None, limit: int, newest: bool
    ) -> list[Job]:
        """Up to `limit` jobs of an owner behind `after`."""
        if newest:
            ids = self._ids[: bisect_left(self._ids, after) if after else None][::-1]
        else:
            ids = self._ids[bisect_right(self._ids, after) if after else 0 :]
        if status in ("queued", "in_progress"):
            ids = [id for id in ids if id in self._open]
        found: list[Job] = []
        for start in range(0, len(ids), _READERS):
            jobs = await asyncio.gather(*map(self.get, ids[start : start + _READERS]))
            found += [job for job in jobs if job is not None and job.owner == owner and status in (None, job.status)]
            if len(found) >= limit:
                break
        return found[:limit]

    async def forget(self, job: Job) -> None:
        """Delete a job's record and all that it made."""
        self._open.pop(job.id, None)
        self._over.pop(job.id, None)
        place = bisect_left(self._ids, job.id)
        if self._ids[place : place + 1] == [job.id]:
            del self._ids[place]
        async with self._lock(job.id):  # What became of it may just be being written down.
            await asyncio.to_thread(self._delete, job.id)

    async def read(self, key: str) -> bytes:
        """Any object of the store."""
        return await asyncio.to_thread(self._storage.get, key)

    async def write(self, key: str, data: bytes) -> None:
        """Put any object into the store."""
        await asyncio.to_thread(self._storage.put, key, data)

    async def remembered(self, owner: str | None, key: str) -> dict[str, Any] | None:
        """What an Idempotency-Key stands for: `{answers, body, created_at}`."""
        try:
            found = json.loads(await self.read(_idempotency_key(owner, key)))
        except FileNotFoundError:
            return None
        return found if found["created_at"] + self._expire_seconds > time.time() else None

    async def remember(self, owner: str | None, key: str, answers: list[str | dict[str, Any]], body: str) -> None:
        """From now on, that key of that client stands for that body and its answers: ids of jobs, and errors."""
        facts = {"answers": answers, "body": body, "created_at": time.time()}
        self._remembered.pop(name := _idempotency_key(owner, key), None)
        await self.write(name, _json(facts))

    async def sweep(self) -> int:
        """Delete what has expired; returns how many jobs."""
        before = time.strftime("job-%Y%m%dT%H%M%S", time.gmtime(time.time() - self._expire_seconds))
        old = [id for id in self._ids[: bisect_left(self._ids, before)] if id not in self._open]
        for id in old:
            await asyncio.to_thread(self._delete, id)
            self._over.pop(id, None)
        gone = set(old)
        self._ids = [id for id in self._ids if id not in gone]
        await asyncio.to_thread(self._sweep_keys)
        return len(old)

    def _sweep_keys(self) -> None:
        """Delete what Idempotency-Keys stood for; each is read once to learn how old it is."""
        found = self._storage.keys("idempotency", ".json")
        there = set(found)
        self._remembered = {key: at for key, at in self._remembered.items() if key in there}
        for key in found:
            if key not in self._remembered:
                try:
                    self._remembered[key] = float(json.loads(self._storage.get(key))["created_at"])
                except (FileNotFoundError, ValueError, KeyError, TypeError):
                    self._remembered[key] = time.time()
            if self._remembered[key] + self._expire_seconds < time.time():
                self._storage.delete([key])

    def _cache(self, job: Job) -> None:
        self._over[job.id] = job
        while len(self._over) > MAX_CACHED:
            self._over.popitem(last=False)

    def _lock(self, id: str) -> asyncio.Lock:
        return self._locks.setdefault(id, asyncio.Lock())

    def _delete(self, id: str) -> None:
        made = [key for folder in ("audio", "latents") for key in self._storage.keys(f"{folder}/{id}")]
        self._storage.delete([job_key(id), f"open/{id}.json", *made])

    def _read(self, id: str) -> Job | None:
        try:
            return Job.of_record(json.loads(self._storage.get(job_key(id))))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.exception("the record of %s cannot be read", id)
            return None


def _idempotency_key(owner: str | None, key: str) -> str:
    name = json.dumps([owner, key]).encode()
    return f"idempotency/{hashlib.sha256(name).hexdigest()}.json"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
