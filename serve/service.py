"""`Service`: jobs from clients on one side, engines that ask for work on the other. Knows neither Ray nor HTTP.

Engines pull: a batch is formed at the moment when an engine is free, not before, so that it is as full as can be. One
that dies is noticed by its silence, and its songs wait again where they stood.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from acestep.request import GenerationRequest
from acestep.result import ModelInfo
from pipelines.errors import StorageError
from pipelines.storage import Storage
from serve.errors import DeadlineError, QueueFullError
from serve.job import Job, Song, new_id
from serve.metrics import ServerMetrics
from serve.pool import Batch, Pool
from serve.queue import Queue, Ticket
from serve.records import Records
from serve.settings import ServeConfig
from serve.sources import Sources
from serve.work import Assignment, Delivery, Order, Report

logger = logging.getLogger(__name__)

TAKE_SECONDS = 5.0
"""An engine that asks for work waits so long for it, and asks again."""
SWEEP_SECONDS = 300.0
_TICK_SECONDS = 0.5


class Service:
    """See the module. `start` first; everything happens on one event loop."""

    def __init__(self, config: ServeConfig, model: ModelInfo, storage: Storage | None = None):
        self.config = config
        self.model = model
        self.storage = storage or self.storage_of(config)
        self.records = Records(self.storage, config.jobs.expire_seconds)
        self.sources = Sources(self.storage, config.sources)
        self.queue = Queue(
            config.queue, frame_budget=config.batch.frame_budget, max_batch_size=config.batch.max_batch_size
        )
        self.pool = Pool(config.queue.engine_timeout_seconds)
        self.metrics = ServerMetrics(self)
        self.started = time.time()
        self._songs: dict[str, tuple[Job, Song]] = {}
        """Those that are wanted, by ticket."""
        self._offline: OrderedDict[str, tuple[list[GenerationRequest], asyncio.Future[Any]]] = OrderedDict()
        self._offline_running: dict[str, asyncio.Future[Any]] = {}
        self._arrival = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    @staticmethod
    def storage_of(config: ServeConfig) -> Storage:
        """Where the records and the audio live."""
        return Storage(config.store, config.storage.storage_options, attempts=config.storage.attempts)

    async def start(self) -> None:
        """Take up what a server before this one left."""
        for job in await self.records.load():
            logger.info("%s waits again: it was not over when the server ended", job.id)
            arrived = time.monotonic() - (time.time() - job.created_at)
            for song in job.songs:
                if not song.is_over:
                    self._wait(job, song, arrived)
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._sweep())]

    async def stop(self) -> None:
        """End what runs in the background."""
        for task in self._tasks:
            task.cancel()

    @property
    def is_ready(self) -> bool:
        """Whether an engine is warm, or the next request wakes one."""
        return self.pool.engines > 0 or self.config.scaling.min_engines == 0

    @property
    def load(self) -> int:
        """Latent frames that wait or are being made: the cost that engines are scaled by."""
        offline = sum(request.num_frames for requests, _ in self._offline.values() for request in requests)
        return self.queue.frames + self.pool.frames + offline

    def require_room(self, requests: Sequence[GenerationRequest]) -> None:
        """Refuse what would wait for too long.

        Raises:
            QueueFullError: with the seconds after which there is room again.
        """
        if not self.queue.has_room_for(requests):
            wait = self.queue.expected_wait(self.queue.frames // 4, self.pool.engines)
            self.metrics.refused += 1
            message = f"{len(self.queue)} songs wait already; that is as many as this server takes"
            raise QueueFullError(message, retry_after=min(60.0, max(1.0, wait or 5.0)))

    async def submit(self, job: Job) -> None:
        """Let a job's songs wait.

        Raises:
            QueueFullError: when there is no room for them.
            StorageError: when it cannot be written down, and so could be lost.
        """
        requests = [song.request for song in job.songs]
        self.require_room(requests)
        with self.queue.keeping_room_for(requests):
            await self.records.add(job)
        now = time.monotonic()
        for song in job.songs:
            self._wait(job, song, now)
        job.touch()

    def new_job(self, **facts: Any) -> Job:
        """A job with an id, times, and ids of its songs."""
        now = time.time()
        job = Job(model=self.model.name, created_at=now, expires_at=now + self.config.jobs.expire_seconds, **facts)
        job.id = new_id(now)
        for index, song in enumerate(job.songs):
            song.request = song.request.model_copy(update={"id": f"{job.id}/{index}"})
        return job

    async def cancel(self, job: Job) -> None:
        """Nobody wants it any more: what waits goes, what is being made stops at the next step."""
        if job.is_over:
            return
        for song in job.songs:
            if not song.is_over:
                song.status = "cancelled"
                self.queue.remove(str(song.request.id))
                self._songs.pop(str(song.request.id), None)
        await self._over(job)

    async def wait(self, job: Job, seconds: float) -> None:
        """Until a job is over; when the last caller stops waiting, by choice or for time, nobody wants it any more.

        Raises:
            DeadlineError: when it took longer.
        """
        job.callers += 1
        try:
            await asyncio.wait_for(job.end(), seconds)
        except (asyncio.TimeoutError, asyncio.CancelledError) as error:
            if job.callers == 1:
                await asyncio.shield(self.cancel(job))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise DeadlineError(f"it was not made within {seconds:g} s; ask for a job instead") from None
        finally:
            job.callers -= 1

    def shown(self, job: Job) -> dict[str, Any]:
        """A job as the API shows it, with its place in the queue."""
        shown = job.shown()
        waiting = [str(song.request.id) for song in job.songs if str(song.request.id) in self.queue]
        if shown["status"] == "queued" and waiting:
            shown["queue_position"] = self.queue.position(waiting[0])  # All songs of a job came together.
            before = self.queue.frames_before(waiting[0]) + self.pool.frames
            wait = self.queue.expected_wait(before, self.pool.engines)
            shown["expected_wait_seconds"] = None if wait is None else round(wait, 1)
        return shown

    # What engines call.

    async def take(self, engine: str) -> Assignment | None:
        """Work for an engine that has none: songs that somebody waits for before all else; None: ask again."""
        deadline = time.monotonic() + TAKE_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            self.pool.hear(engine, time.monotonic())
            if not self.queue and self._offline:
                return self._take_offline(engine)
            if not self.queue:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._arrival.wait(), min(left, 1.0))
                if not self.queue:
                    continue
                await asyncio.sleep(self.config.queue.window_seconds)
            if tickets := self.queue.take(time.monotonic()):
                return self._assigned(engine, tickets)
        return None

    async def report(self, report: Report) -> Collection[str]:
        """How far an engine is; answers which of its songs nobody wants any more."""
        now = time.monotonic()
        for batch, ids in report.batches.items():
            self._adopt(report.engine, batch, ids, now)
        self.pool.hear(report.engine, now, report.batches)
        running = self.pool.batches.get(report.batch or "")
        for id in running.tickets if running is not None else ():
            if id in self._songs:
                job, song = self._songs[id]
                if (song.step, song.steps) != (report.step, report.steps):
                    song.step, song.steps = report.step, report.steps
                    job.touch()
        offline = {batch.id for batch in self.pool.batches.values() if batch.offline}
        return [
            id for batch, ids in report.batches.items() if batch not in offline for id in ids if id not in self._songs
        ]

    async def delivered(self, engine: str, batch: str, deliveries: Sequence[Delivery]) -> None:
        """Songs are there, or have failed; what was delivered before is left as it is."""
        self.pool.hear(engine, time.monotonic(), [batch])
        held = self.pool.batches.get(batch)
        for delivery in deliveries:
            if held is not None:
                held.tickets.pop(delivery.id, None)
            self.queue.remove(delivery.id)
            if delivery.id not in self._songs:
                continue
            job, song = self._songs.pop(delivery.id)
            if delivery.error:
                song.fail(*delivery.error)
            else:
                song.status, song.made, song.data = "completed", delivery.made, delivery.data
                song.step = song.steps
            await self._over(job)
        if held is not None and not held.tickets and held.offline is None:
            self.pool.end(batch)

    async def measured(self, frames: int, seconds: float) -> None:
        """How fast an engine was on its last batch."""
        now = frames / max(seconds, 1e-6)
        before = self.queue.frames_per_second
        self.queue.frames_per_second = now if not before else 0.7 * before + 0.3 * now
        self.metrics.busy_seconds += seconds

    async def left(self, engine: str) -> None:
        """An engine ends on purpose, and has nothing in its hands."""
        self._again(self.pool.leave(engine))

    # Work of batch jobs, for idle time.

    async def offline(self, requests: list[GenerationRequest]) -> Any:
        """Outcomes for a batch that nobody waits for, as the engine gives them; made when no song is waiting.

        Raises:
            RuntimeError: when the engine under it died; the caller may ask again.
        """
        id = uuid.uuid4().hex
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._offline[id] = (requests, answer)
        self._arrive()
        try:
            return await answer
        finally:
            self._offline.pop(id, None)
            self._offline_running.pop(id, None)

    async def offline_delivered(self, engine: str, batch: str, answer: Any) -> None:
        """The outcomes of such a batch."""
        self.pool.hear(engine, time.monotonic())
        held = self.pool.end(batch)
        future = self._offline_running.pop(held.offline or "", None) if held is not None else None
        if future is not None and not future.done():
            future.set_result(answer)

    def _take_offline(self, engine: str) -> Assignment:
        id, (requests, answer) = self._offline.popitem(last=False)
        self._offline_running[id] = answer
        batch = self.pool.begin(engine, [], time.monotonic(), offline=id)
        return Assignment(batch.id, offline=requests)

    def _assigned(self, engine: str, tickets: list[Ticket]) -> Assignment:
        batch = self.pool.begin(engine, tickets, time.monotonic())
        orders = []
        for ticket in tickets:
            ticket.attempts += 1
            job, song = self._begun(ticket)
            folder = job.id if job.kept else None
            index = int(ticket.id.rpartition("/")[2])
            orders.append(Order(song.request, job.format, song.source, folder, index))
        self.metrics.batch(len(tickets), [time.monotonic() - ticket.arrived for ticket in tickets])
        return Assignment(batch.id, orders)

    def _adopt(self, engine: str, batch: str, ids: list[str], now: float) -> None:
        """An engine goes on with what this server, started anew or impatient, believes to be waiting."""
        if batch in self.pool.batches:
            return
        tickets = [ticket for id in ids if (ticket := self.queue.remove(id)) is not None]
        if tickets:
            self.pool.begin(engine, tickets, now, id=batch)
            for ticket in tickets:
                self._begun(ticket)

    def _begun(self, ticket: Ticket) -> tuple[Job, Song]:
        job, song = self._songs[ticket.id]
        song.status, song.attempts = "in_progress", ticket.attempts
        job.started_at = job.started_at or time.time()
        job.touch()
        return job, song

    def _wait(self, job: Job, song: Song, arrived: float) -> None:
        ticket = Ticket(str(song.request.id), song.request, arrived, song.attempts)
        self._songs[ticket.id] = (job, song)
        self.queue.add(ticket)
        self._arrive()

    def _arrive(self) -> None:
        self._arrival.set()
        self._arrival = asyncio.Event()

    async def _over(self, job: Job) -> None:
        job.touch()
        if job.is_over:
            self.metrics.job(job)
            await self.records.close(job)

    def _again(self, batches: list[Batch]) -> None:
        """What an engine took along waits again, or fails when it did so too often."""
        for batch in batches:
            if batch.offline and (answer := self._offline_running.pop(batch.offline, None)) and not answer.done():
                answer.set_exception(RuntimeError("the engine under this batch died"))
            for ticket in batch.tickets.values():
                if ticket.id not in self._songs:
                    continue
                job, song = self._songs[ticket.id]
                self.metrics.rerun += 1
                if ticket.attempts >= self.config.queue.attempts:
                    del self._songs[ticket.id]
                    song.fail("device", f"the engine that made it died, {ticket.attempts} times")
                    self._tasks.append(asyncio.create_task(self._over(job)))
                    continue
                logger.warning("%s waits again: the engine that made it is gone", ticket.id)
                song.status, song.step = "queued", 0
                self.queue.add(ticket)
                job.touch()
        if batches:
            self._arrive()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                self._again(self.pool.bury(time.monotonic()))
            except Exception:  # Without this watch, songs of engines that died would wait for ever.
                logger.exception("looking after the engines failed")
            self._tasks = [task for task in self._tasks if not task.done()]

    async def _sweep(self) -> None:
        while True:
            try:
                await self.records.sweep()
                jobs = self.records.open_jobs()
                await self.sources.sweep([song.source for job in jobs for song in job.songs if song.source])
            except StorageError as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("deleting what has expired failed")
            await asyncio.sleep(SWEEP_SECONDS)
