"""Jobs in a folder and on S3: they outlive the process, and nothing outlives its time."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest

from acestep.audio_format import AudioFormat
from acestep.request import GenerationRequest
from pipelines.errors import StorageError
from pipelines.storage import Storage
from serve import records as records_module
from serve.job import Job, Song, new_id
from serve.records import Records, is_job_id, job_key
from tests.conftest import S3

DAY = 86_400.0


def job_of(
    *, at: float | None = None, owner: str | None = None, kept: bool = True, n: int = 1, expire: float = DAY
) -> Job:
    now = at or time.time()
    request = GenerationRequest(prompt="piano 🎹", seed=2**64 - 1, oss_steps=(4, 9))
    job = Job(owner, "tiny", AudioFormat(format="mp3"), [Song(request) for _ in range(n)], {"prompt": "piano"}, kept)
    job.id, job.created_at, job.expires_at = new_id(now), now, now + expire
    for index, song in enumerate(job.songs):
        song.request = song.request.model_copy(update={"id": f"{job.id}/{index}"})
    return job


def finish(job: Job, status: str = "completed") -> Job:
    for index, song in enumerate(job.songs):
        song.status = status
        if status == "completed":
            song.made = {"seed": 1, "duration": 1.0, "key": f"audio/{job.id}/{index}.mp3", "format": "mp3"}
    job.touch()
    return job


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Any) -> Storage:
    if request.param == "folder":
        return Storage(str(tmp_path / "store"))
    moto: S3 = request.getfixturevalue("moto")
    return Storage(f"{moto.url}/{uuid.uuid4().hex}", moto.options)


def test_a_server_takes_up_what_the_one_before_left(storage: Storage) -> None:
    async def before() -> list[Job]:
        records = Records(storage, DAY)
        assert await records.load() == []
        jobs = [job_of(n=2, owner="ann"), finish(job_of()), finish(job_of(), "failed"), job_of(kept=False)]
        for job in jobs:
            await records.add(job)
        jobs[1].songs[0].error = None
        jobs[2].songs[0].fail("device", "the engine died")
        await records.close(jobs[1])
        await records.close(jobs[2])
        jobs[0].songs[0].status = "in_progress"
        assert {job.id for job in records.open_jobs()} == {jobs[0].id, jobs[3].id}
        return jobs

    async def after(jobs: list[Job]) -> None:
        records = Records(storage, DAY)
        (open_job,) = await records.load()
        assert open_job.record() == jobs[0].record() | {"songs": open_job.record()["songs"]}
        assert [song.status for song in open_job.songs] == ["queued", "queued"]
        assert [song.request for song in open_job.songs] == [song.request for song in jobs[0].songs]
        assert (open_job.owner, open_job.format, open_job.id) == ("ann", AudioFormat(format="mp3"), jobs[0].id)
        for job in jobs[1:3]:
            found = await records.get(job.id)
            assert found is not None and found.shown() == job.shown()
        assert await records.get(jobs[3].id) is None, "its caller took the bytes along"
        assert storage.keys("open") == [f"open/{jobs[0].id}.json"]

    asyncio.run(after(asyncio.run(before())))


def test_pages_have_everything_once_and_in_order(storage: Storage) -> None:
    async def scenario() -> None:
        records = Records(storage, DAY)
        now = time.time()
        jobs = [job_of(at=now + number, owner="ann" if number % 2 else "bob") for number in range(7)]
        for job in jobs:
            await records.add(job)
        await records.close(finish(jobs[1]))
        fresh = Records(storage, DAY)
        await fresh.load()
        for known in (records, fresh):
            ids = [job.id for job in await known.page(None, None, None, 10, True)]
            assert ids == []
            mine = [job.id for job in jobs if job.owner == "ann"]
            assert [job.id for job in await known.page("ann", None, None, 10, False)] == mine
            assert [job.id for job in await known.page("ann", None, None, 2, True)] == mine[:0:-1]
            assert [job.id for job in await known.page("ann", None, mine[1], 10, False)] == mine[2:]
            assert [job.id for job in await known.page("ann", None, mine[1], 10, True)] == mine[:1]
            assert [job.id for job in await known.page("ann", None, "job-0", 10, False)] == mine
            assert [job.id for job in await known.page("ann", "completed", None, 10, True)] == mine[:1]
            assert [job.id for job in await known.page("ann", "queued", None, 10, False)] == mine[1:]

    asyncio.run(scenario())


def test_what_is_deleted_is_gone_with_all_that_it_made(storage: Storage) -> None:
    async def scenario() -> None:
        records = Records(storage, DAY)
        job, other = finish(job_of(n=2)), finish(job_of())
        for each in (job, other):
            await records.add(each)
            for index in range(2):
                storage.put(f"audio/{each.id}/{index}.mp3", b"x")
            storage.put(f"latents/{each.id}/0.safetensors", b"x")
            await records.close(each)
        await records.forget(job)
        assert await records.get(job.id) is None
        assert [each.id for each in await records.page(None, None, None, 10, True)] == [other.id]
        assert all(job.id not in key for key in storage.keys(""))
        assert len(storage.keys("audio")) == 2 and await records.get(other.id) is other

    asyncio.run(scenario())


def test_deleting_a_job_whose_end_is_being_written_down_leaves_nothing(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    put = storage.put

    def slowly(key: str, data: bytes) -> None:
        time.sleep(0.1)
        put(key, data)

    async def scenario() -> None:
        records = Records(storage, DAY)
        job = job_of()
        await records.add(job)
        monkeypatch.setattr(storage, "put", slowly)
        closing = asyncio.create_task(records.close(finish(job)))
        await asyncio.sleep(0.02)
        await records.forget(job)
        await closing
        assert storage.keys("") == [] and await records.get(job.id) is None

    asyncio.run(scenario())


def test_what_has_expired_is_deleted_and_what_is_open_stays(storage: Storage) -> None:
    async def scenario() -> None:
        records = Records(storage, DAY)
        long_ago = time.time() - DAY - 5
        old, busy, young = finish(job_of(at=long_ago)), job_of(at=long_ago), finish(job_of())
        for job in (old, busy, young):
            await records.add(job)
            storage.put(f"audio/{job.id}/0.mp3", b"x")
        await records.close(old)
        await records.close(young)
        await records.remember("ann", "new", [young.id], "body")
        await records.remember("ann", "old", [old.id], "body")
        assert await records.get(old.id) is None, "before the sweep, too"
        assert await records.get(busy.id) is busy, "somebody still waits for it"
        assert await records.sweep() == 1
        assert await records.sweep() == 0
        assert all(old.id not in key for key in storage.keys(""))
        assert {key.split("/")[1] for key in storage.keys("audio")} == {busy.id, young.id}
        assert len(storage.keys("idempotency")) == 2

        shorter = Records(storage, 0.05)
        await asyncio.sleep(0.1)
        assert await shorter.remembered("ann", "new") is None
        await shorter.sweep()
        assert storage.keys("idempotency") == []

    asyncio.run(scenario())


def test_keys_of_clients_are_their_own(storage: Storage) -> None:
    async def scenario() -> None:
        records = Records(storage, DAY)
        await records.remember("ann", "k", ["job-1", {"code": "x"}], "body")
        known = await records.remembered("ann", "k")
        assert known is not None and (known["answers"], known["body"]) == (["job-1", {"code": "x"}], "body")
        for owner, key in (("bob", "k"), (None, "k"), ("ann", "K"), ("ann", "../k\0")):
            assert await records.remembered(owner, key) is None

    asyncio.run(scenario())


def test_a_marker_without_a_record_is_nothing(storage: Storage) -> None:
    """The server died between the two; its client was never told of a job."""

    async def scenario() -> None:
        job = job_of()
        storage.put(f"open/{job.id}.json", b"{}")
        records = Records(storage, DAY)
        assert await records.load() == [] and storage.keys("open") == []

    asyncio.run(scenario())


def test_a_crash_while_a_job_is_written_down_leaves_no_job(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        job, put = job_of(), storage.put

        def failing(key: str, data: bytes) -> None:
            if key == job_key(job.id):
                raise StorageError("full")
            put(key, data)

        monkeypatch.setattr(storage, "put", failing)
        records = Records(storage, DAY)
        with pytest.raises(StorageError):
            await records.add(job)
        assert records.open_jobs() == [] and await records.get(job.id) is None
        fresh = Records(storage, DAY)
        assert await fresh.load() == [] and await fresh.page(None, None, None, 10, True) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"{}", b'{"songs": []}', b"\xff"])
def test_a_damaged_record_is_no_job_and_stops_nothing(tmp_path: Any, damaged: bytes) -> None:
    storage = Storage(str(tmp_path))

    async def scenario() -> None:
        job, whole = job_of(), job_of()
        first = Records(storage, DAY)
        await first.add(job)
        await first.add(whole)
        storage.put(job_key(job.id), damaged)
        records = Records(storage, DAY)
        assert [each.id for each in await records.load()] == [whole.id]
        assert await records.get(job.id) is None
        assert [each.id for each in await records.page(None, None, None, 10, True)] == [whole.id]

    asyncio.run(scenario())


def test_a_job_that_cannot_be_closed_is_made_again_by_the_next_server(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))

    async def scenario() -> None:
        job = job_of()
        records = Records(storage, DAY)
        await records.add(job)

        def failing(key: str, data: bytes) -> None:
            raise StorageError("full")

        with monkeypatch.context() as patch:
            patch.setattr(storage, "put", failing)
            await records.close(finish(job))
        assert (await records.get(job.id)) is job, "this server knows"
        assert [each.id for each in await Records(storage, DAY).load()] == [job.id]

    asyncio.run(scenario())


def test_memory_is_bounded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_CACHED", 3)
    storage = Storage(str(tmp_path))

    async def scenario() -> None:
        records = Records(storage, DAY)
        jobs = [finish(job_of()) for _ in range(8)]
        for job in jobs:
            await records.add(job)
            await records.close(job)
        for job in jobs:
            found = await records.get(job.id)
            assert found is not None and found.shown() == job.shown()
        assert len(records._over) == 3 and not records._open

    asyncio.run(scenario())


@pytest.mark.parametrize("id", ["", "job-", "../../etc/passwd", "job-20261122T231500123456-ab12cd34/..", "job-x", "\0"])
def test_only_ids_of_ours_are_part_of_a_key(id: str) -> None:
    assert not is_job_id(id)
    assert is_job_id(new_id(time.time()))


def test_ids_sort_by_time() -> None:
    times = [0.5, 1_700_000_000.0, 1_700_000_000.000002, 1_700_000_001.0]
    assert [new_id(at)[:25] for at in times] == sorted(new_id(at)[:25] for at in times)
