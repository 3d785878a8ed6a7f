"""The service between clients and engines, with engines that are coroutines here and can die, lag and come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acestep.audio_format import AudioFormat
from acestep.request import GenerationRequest
from acestep.result import ModelInfo
from pipelines.storage import Storage
from serve import service as service_module
from serve.asking import Asking
from serve.errors import ConflictError, DeadlineError, NotFoundError, QueueFullError, WarmingUpError
from serve.job import Job, Song
from serve.service import Service
from serve.work import Assignment, Delivery, Report
from tests.running_server import serve_config

MODEL = ModelInfo("stand-in", "0" * 16, "float32", True)


class FakeEngine:
    """Asks for work and says what became of it, one call at a time as the test wants."""

    def __init__(self, service: Service, name: str = "e1"):
        self.service, self.name = service, name
        self.hands: dict[str, list[str]] = {}

    async def take(self) -> Assignment:
        assignment = await asyncio.wait_for(self.service.take(self.name), 5)
        assert assignment is not None, "there is work"
        self.hands[assignment.batch] = [str(order.request.id) for order in assignment.orders]
        return assignment

    async def report(self, batch: str | None = None, step: int = 0, steps: int = 0) -> set[str]:
        return set(await self.service.report(Report(self.name, self.hands, batch, step, steps)))

    async def deliver(self, assignment: Assignment, **error: tuple[str, str]) -> None:
        """All of a batch; `error` by song's number as `e0=("class", "message")`."""
        for order in assignment.orders:
            id = str(order.request.id)
            made = {"seed": order.request.seed, "duration": 1.0, "key": f"audio/{id}.flac", "format": "flac"}
            failed = error.get(f"e{order.index}")
            delivery = Delivery(id, None if failed else made, failed)
            await self.service.delivered(self.name, assignment.batch, [delivery])
        self.hands.pop(assignment.batch, None)


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "store"))


def service_on(store: Storage, **changes: Any) -> Service:
    return Service(serve_config(store.url, **changes), MODEL, store)


async def job_of(service: Service, *prompts: str, owner: str | None = None, kept: bool = True, **fields: Any) -> Job:
    """A job with a song for each prompt, waiting."""
    songs = [
        Song(GenerationRequest.parse({"duration": 2, "seed": 1, **fields, "prompt": prompt}))
        for prompt in prompts or ["piano"]
    ]
    job = service.new_job(owner=owner, format=AudioFormat(format="flac"), songs=songs, parameters={}, kept=kept)
    await service.submit(job)
    return job


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed quickly."""
    monkeypatch.setattr(service_module, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(service_module, "TAKE_SECONDS", 0.3)


def impatient(store: Storage, **changes: Any) -> Service:
    """A service that gives engines up after a moment."""
    service = service_on(store, **changes)
    service.pool._timeout = 0.1
    return service


async def until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        await asyncio.sleep(0.01)


# Making songs


def test_songs_are_made_together_and_the_job_knows(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        await service.start()
        engine = FakeEngine(service)
        asked = asyncio.create_task(engine.take())
        await asyncio.sleep(0)
        job = await job_of(service, "a", "b", owner="ann")
        assert service.shown(job)["queue_position"] == 1
        assignment = await asked
        assert [order.folder for order in assignment.orders] == [job.id] * 2
        assert job.status == "in_progress" and job.started_at and len(service.queue) == 0
        assert await engine.report(assignment.batch, 3, 12) == set()
        shown = service.shown(job)
        assert (shown["step"], shown["steps"], shown["progress"], shown["attempts"]) == (3, 12, 0.25, 1)
        assert shown["queue_position"] is None
        await engine.deliver(assignment)
        assert job.status == "completed" and job.progress == 1.0 and job.completed_at
        assert [entry["index"] for entry in service.shown(job)["data"]] == [0, 1]
        assert service.pool.batches == {} and service._songs == {}
        assert service.metrics.stats()["completed"] == 1
        await service.stop()

    asyncio.run(scenario())


def test_an_idle_engine_hears_of_work_at_once(store: Storage) -> None:
    """It may arrive at the very moment when the engine begins to wait."""

    async def scenario() -> None:
        service = service_on(store, queue__window_seconds=0)
        slowest = 0.0
        for turns in range(8):
            asked = asyncio.create_task(FakeEngine(service).take())
            for _ in range(turns):
                await asyncio.sleep(0)
            job = service.new_job(
                owner=None,
                format=AudioFormat(format="flac"),
                songs=[Song(GenerationRequest(prompt="x", seed=1))],
                parameters={},
            )
            started = time.monotonic()
            service._wait(job, job.songs[0], started)
            await asked
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 0.5

    asyncio.run(scenario())


def test_a_failure_is_the_songs_own_and_the_jobs(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        engine = FakeEngine(service)
        job, other = await job_of(service, "a", "b"), await job_of(service, "c")
        assignment = await engine.take()
        assert len(assignment.orders) == 3
        wrong = {"e1": ("input", "source: it is too short")}
        await engine.deliver(assignment, **wrong)
        assert job.status == "failed" and other.status == "completed"
        shown = service.shown(job)
        assert shown["error"]["type"] == "invalid_request_error" and "too short" in shown["error"]["message"]
        assert [entry["index"] for entry in shown["data"]] == [0]

    asyncio.run(scenario())


def test_what_is_delivered_twice_counts_once(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        engine = FakeEngine(service)
        job = await job_of(service)
        assignment = await engine.take()
        await engine.deliver(assignment)
        before = job.shown()
        await engine.deliver(assignment, e0=("internal", "late and wrong"))
        assert job.shown() == before and service.metrics.stats()["completed"] == 1

    asyncio.run(scenario())


# Cancelling


def test_a_cancelled_song_leaves_the_queue(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        job, other = await job_of(service, "a", "b"), await job_of(service, "c")
        await service.cancel(job)
        await service.cancel(job)
        assert job.status == "cancelled" and service.metrics.stats()["cancelled"] == 1
        assignment = await FakeEngine(service).take()
        assert [order.request.id for order in assignment.orders] == [other.songs[0].request.id]

    asyncio.run(scenario())


def test_an_engine_is_told_who_is_not_wanted_any_more(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        engine = FakeEngine(service)
        job, other = await job_of(service, "a"), await job_of(service, "b")
        assignment = await engine.take()
        await service.cancel(job)
        assert await engine.report(assignment.batch, 1, 9) == {job.songs[0].request.id}
        await engine.deliver(assignment, e0=("cancelled", "cancelled"))
        assert job.status == "cancelled" and job.songs[0].error is None
        assert other.status == "failed", "its own delivery said so"
        assert service.pool.batches == {}

    asyncio.run(scenario())


def test_a_song_that_is_there_stays_when_its_job_is_cancelled(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store, batch__max_batch_size=1)
        engine = FakeEngine(service)
        job = await job_of(service, "a", "b")
        await engine.deliver(await engine.take())
        await service.cancel(job)
        shown = service.shown(job)
        assert shown["status"] == "cancelled" and len(shown["data"]) == 1

    asyncio.run(scenario())


def test_callers_who_leave_do_not_want_it_any_more(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        job = await job_of(service, kept=False)
        first = asyncio.create_task(service.wait(job, 60))
        second = asyncio.create_task(service.wait(job, 60))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        assert job.status == "queued", "another one still waits"
        second.cancel()
        await asyncio.wait([second])
        assert second.cancelled() and job.status == "cancelled" and len(service.queue) == 0

    asyncio.run(scenario())


def test_a_caller_waits_only_so_long(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        job = await job_of(service)
        with pytest.raises(DeadlineError, match=r"within 0.05 s"):
            await service.wait(job, 0.05)
        assert job.status == "cancelled"
        kept = await job_of(service)
        kept.callers += 1  # Somebody will come back for it.
        with pytest.raises(DeadlineError):
            await service.wait(kept, 0.05)
        assert kept.status == "queued"

    asyncio.run(scenario())


# Engines that die


@pytest.mark.usefixtures("brisk")
def test_songs_of_a_silent_engine_are_made_again(store: Storage) -> None:
    async def scenario() -> None:
        service = impatient(store)
        await service.start()
        dead, alive = FakeEngine(service, "dead"), FakeEngine(service, "alive")
        job = await job_of(service, "a", "b")
        await dead.take()
        await until(lambda: len(service.queue) == 2)
        assert job.status == "queued" and service.metrics.rerun == 2
        assert service.shown(job)["queue_position"] == 1
        await alive.deliver(await alive.take())
        assert job.status == "completed" and service.shown(job)["attempts"] == 2
        await service.stop()

    asyncio.run(scenario())


@pytest.mark.usefixtures("brisk")
def test_a_song_that_kills_its_engines_fails_in_the_end(store: Storage) -> None:
    async def scenario() -> None:
        service = impatient(store, queue__attempts=2)
        await service.start()
        job = await job_of(service)
        for name in ("one", "two"):
            await FakeEngine(service, name).take()
            await until(lambda: not service.pool.batches)
        await until(lambda: job.is_over)
        error = service.shown(job)["error"]
        assert error["message"] == "the engine that made it died, 2 times" and error["type"] == "server_error"
        assert job.status == "failed" and len(service.queue) == 0
        await until(lambda: not store.keys("open"))
        await service.stop()

    asyncio.run(scenario())


def test_one_that_says_goodbye_gives_its_songs_back_at_once(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        engine = FakeEngine(service)
        job = await job_of(service)
        await engine.take()
        await service.left(engine.name)
        assert service.pool.engines == 0 and job.status == "queued" and len(service.queue) == 1

    asyncio.run(scenario())


@pytest.mark.usefixtures("brisk")
def test_a_late_delivery_is_taken_once(store: Storage) -> None:
    async def scenario() -> None:
        service = impatient(store)
        await service.start()
        slow, other = FakeEngine(service, "slow"), FakeEngine(service, "other")
        job, second = await job_of(service, "a"), await job_of(service, "b", num_inference_steps=3)
        late = await slow.take()
        await until(lambda: len(service.queue) == 2)
        await slow.deliver(late)
        (late_id,) = [str(order.request.id) for order in late.orders]
        assert late_id not in service.queue and (job.is_over or second.is_over)
        rest = await other.take()
        assert [order.request.id for order in rest.orders] != [late_id]
        await other.deliver(rest)
        assert job.status == second.status == "completed"
        await service.stop()

    asyncio.run(scenario())


@pytest.mark.usefixtures("brisk")
def test_who_makes_what_is_there_already_is_told_to_stop(store: Storage) -> None:
    async def scenario() -> None:
        service = impatient(store)
        await service.start()
        slow, other = FakeEngine(service, "slow"), FakeEngine(service, "other")
        job = await job_of(service)
        late = await slow.take()
        await until(lambda: len(service.queue) == 1)
        again = await other.take()
        await slow.deliver(late)
        assert job.status == "completed"
        assert await other.report(again.batch, 1, 9) == {job.songs[0].request.id}
        await other.deliver(again, e0=("cancelled", "cancelled"))
        assert job.status == "completed" and service.pool.batches == {}
        await service.stop()

    asyncio.run(scenario())


@pytest.mark.usefixtures("brisk")
def test_one_that_was_only_silent_goes_on_with_what_still_waits(store: Storage) -> None:
    async def scenario() -> None:
        service = impatient(store)
        await service.start()
        engine = FakeEngine(service)
        job = await job_of(service, "a", "b")
        assignment = await engine.take()
        await until(lambda: len(service.queue) == 2)
        assert await engine.report(assignment.batch, 5, 9) == set()
        assert len(service.queue) == 0 and job.status == "in_progress" and service.shown(job)["step"] == 5
        await engine.deliver(assignment)
        assert job.status == "completed"
        await service.stop()

    asyncio.run(scenario())


# A gateway that is started anew


def test_the_next_gateway_goes_on(store: Storage) -> None:
    async def before() -> tuple[Job, Job, Job, Assignment]:
        service = service_on(store, batch__max_batch_size=1)
        await service.start()
        engine = FakeEngine(service)
        done = await job_of(service, "done", owner="ann")
        await engine.deliver(await engine.take())
        running, waiting = await job_of(service, "running", owner="ann"), await job_of(service, "waiting", owner="ann")
        assignment = await engine.take()
        await service.stop()
        return done, running, waiting, assignment

    async def after(done: Job, running: Job, waiting: Job, assignment: Assignment) -> None:
        service = service_on(store, batch__max_batch_size=1)
        await service.start()
        listed = await service.records.page("ann", None, None, 10, False)
        assert [job.id for job in listed] == [done.id, running.id, waiting.id]
        assert [job.status for job in listed] == ["completed", "queued", "queued"]
        assert service.shown(listed[0]) == done.shown()
        assert service.queue.position(f"{running.id}/0") == 1, "they wait in their old order"

        engine, (id,) = FakeEngine(service, "survivor"), [str(order.request.id) for order in assignment.orders]
        adopted = listed[1] if id.startswith(running.id) else listed[2]
        engine.hands = {assignment.batch: [id]}
        assert await engine.report(assignment.batch, 4, 9) == set()
        assert adopted.status == "in_progress" and len(service.queue) == 1
        await engine.deliver(assignment)
        await engine.deliver(await engine.take())
        assert [job.status for job in listed] == ["completed"] * 3
        assert store.keys("open") == []
        await service.stop()

    asyncio.run(after(*asyncio.run(before())))


def test_an_engine_is_told_to_stop_what_the_next_gateway_knows_nothing_of(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        await service.start()
        engine = FakeEngine(service)
        engine.hands = {"batch": ["job-20261122T231500123456-ab12cd34/0"]}
        assert await engine.report("batch", 1, 2) == set(engine.hands["batch"])
        await service.stop()

    asyncio.run(scenario())


# Limits


def test_a_full_queue_says_when_to_come_back(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store, queue__max_songs=2)
        await job_of(service, "a", "b")
        with pytest.raises(QueueFullError) as caught:
            await job_of(service, "c")
        assert 1 <= int(caught.value.headers()["Retry-After"]) <= 60
        assert service.metrics.stats()["refused"] == 1 and len(store.keys("jobs")) == 1
        await FakeEngine(service).take()
        await job_of(service, "c")

    asyncio.run(scenario())


def test_many_who_ask_at_once_do_not_overfill_it(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store, queue__max_songs=3)
        answers = await asyncio.gather(*(job_of(service) for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(answer, Job) for answer in answers) == 3 == len(service.queue)
        assert sum(isinstance(answer, QueueFullError) for answer in answers) == 7

    asyncio.run(scenario())


def test_songs_of_a_job_have_one_place(store: Storage) -> None:
    async def scenario() -> None:
        first = service_on(store)
        for _ in range(3):
            await job_of(first, *["a"] * 8)
        again = service_on(store)
        await again.start()
        for service in (first, again):
            jobs = await service.records.page(None, None, None, 10, False)
            assert [service.shown(job)["queue_position"] for job in jobs] == [1, 9, 17]
        await again.stop()

    asyncio.run(scenario())


def test_no_engine_is_ready_until_one_asks(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        with pytest.raises(WarmingUpError):
            Asking(service).require_ready()
        await asyncio.wait([asyncio.create_task(service.take("e1"))], timeout=0.05)
        Asking(service).require_ready()
        assert service.metrics.stats()["engines"] == 1

    asyncio.run(scenario())


def test_the_wait_is_estimated_from_what_engines_made(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        job = await job_of(service, duration=60)
        later = await job_of(service, duration=60)
        assert service.shown(later)["expected_wait_seconds"] is None
        service.pool.hear("e1", time.monotonic())
        await service.measured(1000, 10.0)
        frames = job.songs[0].request.num_frames
        assert service.shown(later)["expected_wait_seconds"] == pytest.approx(frames / 100, abs=0.1)
        assert service.shown(later)["queue_position"] == 2

    asyncio.run(scenario())


# Idempotency, as the endpoints use it


def test_one_key_is_one_job(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        asking = Asking(service)
        body = {"prompt": "x"}

        async def make() -> list[Any]:
            return [await job_of(service, owner="ann")]

        answers = await asyncio.gather(*(asking.once("k", body, "ann", make) for _ in range(5)))
        assert len({job.id for (job,), _ in answers}) == 1 and len(service.queue) == 1
        assert sorted(again for _, again in answers) == [False, True, True, True, True]
        for other in ({"prompt": "y"}, {"prompt": "x", "seed": 1}):
            with pytest.raises(ConflictError) as caught:
                await asking.once("k", other, "ann", make)
            assert (caught.value.code, caught.value.param) == ("idempotency_conflict", "Idempotency-Key")
        with pytest.raises(ConflictError):
            await asking.once("k", body, "ann", make, audio=b"another file")
        (stranger,), again = await asking.once("k", body, "bob", make)
        assert not again and stranger.id != answers[0][0][0].id

        restarted = Asking(service_on(store))
        (job,), again = await restarted.once("k", body, "ann", make)
        assert again and job.id == answers[0][0][0].id, "in the store, not in memory"

    asyncio.run(scenario())


def test_a_key_whose_job_was_given_up_stands_for_a_new_one_where_somebody_waits(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        asking = Asking(service)

        async def make() -> list[Any]:
            return [await job_of(service)]

        (job,), _ = await asking.once("k", {}, None, make)
        await service.cancel(job)
        assert (await asking.once("k", {}, None, make))[0] == [job], "who asked for a job is told what became of it"
        (renewed,), again = await asking.once("k", {}, None, make, renew=True)
        assert not again and renewed is not job
        assert (await asking.once("k", {}, None, make, renew=True)) == ([renewed], True)
        await service.records.forget(renewed)
        (third,), again = await asking.once("k", {}, None, make)
        assert not again and third is not renewed

    asyncio.run(scenario())


def test_a_slow_request_with_a_key_holds_up_no_other(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        asking, gate = Asking(service), asyncio.Event()

        async def slowly() -> list[Any]:
            await gate.wait()
            return [await job_of(service)]

        async def make() -> list[Any]:
            return [await job_of(service)]

        slow = asyncio.create_task(asking.once("slow", {}, None, slowly))
        await asyncio.sleep(0)
        await asyncio.wait_for(asking.once("quick", {}, None, make), 2)
        gate.set()
        await slow

    asyncio.run(scenario())


def test_many_come_again_as_they_came(store: Storage) -> None:
    async def scenario() -> None:
        asking = Asking(service_on(store))
        items = [{"prompt": "a"}, {"prompt": ""}, 3, {"prompt": "b", "seed": -1}, {"prompt": "c"}]

        async def make() -> list[Any]:
            return await asking.many({"duration": 2}, items, "ann")

        first, _ = await asking.once("k", {}, "ann", make)
        second, again = await asking.once("k", {}, "ann", make)
        assert again and first == second
        assert [isinstance(answer, Job) for answer in first] == [True, False, False, False, True]
        assert [answer["param"] for answer in first[1:4]] == ["prompt", "items", "seed"]

    asyncio.run(scenario())


# Ownership


def test_jobs_are_their_owners_own(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        asking = Asking(service)
        job, passing = await job_of(service, owner="ann"), await job_of(service, owner="ann", kept=False)
        assert await asking.find(job.id, "ann") is job
        for id, owner in ((job.id, "bob"), (job.id, None), (passing.id, "ann"), ("nonsense", "ann")):
            with pytest.raises(NotFoundError) as caught:
                await asking.find(id, owner)
            assert caught.value.code == "job_not_found"

    asyncio.run(scenario())


# Work that nobody waits for


def offline_requests() -> list[GenerationRequest]:
    return [GenerationRequest(id="row", prompt="x", seed=1, duration=2)]


def test_idle_time_is_for_batch_jobs_and_callers_go_first(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        engine = FakeEngine(service)
        asked = asyncio.create_task(service.offline(offline_requests()))
        await asyncio.sleep(0)
        job = await job_of(service)
        assert service.load == 2 * job.songs[0].request.num_frames
        first = await engine.take()
        assert first.offline is None and not asked.done()
        await engine.deliver(first)
        second = await engine.take()
        assert second.offline == offline_requests() and not second.orders
        assert await engine.report(second.batch, 1, 2) == set()
        await service.offline_delivered(engine.name, second.batch, ["waveforms"])
        assert await asked == ["waveforms"]
        assert service.pool.batches == {} and not service._offline and not service._offline_running

    asyncio.run(scenario())


@pytest.mark.usefixtures("brisk")
def test_who_asked_for_idle_time_hears_when_its_engine_died(store: Storage) -> None:
    async def scenario() -> None:
        service = impatient(store)
        await service.start()
        asked = asyncio.create_task(service.offline(offline_requests()))
        await asyncio.sleep(0)
        await FakeEngine(service).take()
        with pytest.raises(RuntimeError, match="died"):
            await asyncio.wait_for(asked, 5)
        await service.stop()

    asyncio.run(scenario())


def test_who_does_not_wait_for_idle_time_any_more_gets_none(store: Storage) -> None:
    async def scenario() -> None:
        service = service_on(store)
        asked = asyncio.create_task(service.offline(offline_requests()))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait([asked])
        assert service.load == 0 and not service._offline

    asyncio.run(scenario())
