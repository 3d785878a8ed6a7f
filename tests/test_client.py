"""The Python client against a real server: what it makes, what it says of failures, and what it lives through."""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import soundfile

from acestep.client import APIError, AsyncClient, AsyncJobHandle, AsyncSong, Client, JobHandle, Song
from acestep.errors import ACEStepError, AudioFormatError, InvalidRequestError
from acestep.line import Patience
from serve import job
from serve.auth import hash_key
from tests.running_server import RunningServer, running_server
from tests.seaweed import free_ports

ROOT = Path(__file__).parents[1]

SHORT: dict[str, Any] = {"duration": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.url, patience=20) as client:
        yield client


@contextmanager
def client_of(running: RunningServer, **options: Any) -> Iterator[Client]:
    with Client(running.url, **options) as client:
        yield client


@contextmanager
def bad_network(to: str) -> Iterator[str]:
    """Address of a server that is reached through a network that fails."""
    (port,) = free_ports(1)
    words = ["--port", str(port), "--to", to, "--share", "0.3", "--seed", "3"]
    process = subprocess.Popen([sys.executable, "-m", "tests.flaky_proxy", *words], cwd=ROOT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def until_running(handle: JobHandle) -> None:
    next(each for each in handle.events(20) if each["status"] == "in_progress")


def status_soon(client: Client, id: str, wanted: str) -> bool:
    deadline = time.monotonic() + 10
    while (found := client.job(id).status()["status"]) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return found == wanted


def test_a_song_and_its_files(client: Client, tmp_path: Path) -> None:
    song = client.generate("a song", seed=7, **SHORT)
    assert (song.seed, song.parameters["seed"], song.parameters["duration"]) == (7, 7, 1)
    assert 0.9 < song.duration <= 1
    data = song.bytes()
    assert len(data) == song.facts["bytes"] and data[:4] == b"fLaC"
    assert song.bytes("wav")[:4] == b"RIFF"
    for format in ("mp3", "flac", "opus"):
        path = song.save(tmp_path / "songs" / f"a.{format.upper()}")
        assert soundfile.info(path).duration == pytest.approx(song.duration, abs=0.1)
    assert Path(song.save(str(tmp_path / "same.flac"))).read_bytes() == data
    with pytest.raises(AudioFormatError, match=r"\.mp4"):
        song.save(tmp_path / "a.mp4")


def test_parameters_make_it_again(client: Client) -> None:
    song = client.generate("again", response_format="wav", seed=11, **SHORT)
    again = client.generate(**song.parameters)
    samples = [soundfile.read(io.BytesIO(each.bytes()))[0] for each in (song, again)]
    assert song.id != again.id
    assert [len(each) for each in samples] == [len(samples[0])] * 2
    assert {k: v for k, v in again.parameters.items() if k != "seed"} == {
        k: v for k, v in song.parameters.items() if k != "seed"
    }


def test_several_songs_are_a_list_with_seeds_of_their_own(client: Client) -> None:
    songs = client.generate("three", n=3, **SHORT)
    assert [song.id.rpartition("/")[2] for song in songs] == ["0", "1", "2"]
    assert len({song.seed for song in songs}) == 3
    assert all(song.parameters["seed"] == song.seed and song.parameters["n"] == 1 for song in songs)


def test_progress_is_told_until_the_end(client: Client) -> None:
    seen: list[dict] = []
    client.generate("crawl:0.05", progress=seen.append, **SHORT)
    assert seen[-1]["status"] == "completed" and seen[-1]["progress"] == 1
    assert {each["status"] for each in seen} >= {"in_progress", "completed"}
    assert [each["progress"] for each in seen] == sorted(each["progress"] for each in seen)
    assert len({each["progress"] for each in seen}) > 2


def test_a_refused_request_says_all_that_is_wrong(client: Client) -> None:
    with pytest.raises(APIError) as caught:
        client.generate("x", duration=1000, schedular="heun")
    error = caught.value
    assert (error.status, error.type, error.code) == (422, "invalid_request_error", "invalid_value")
    assert {problem["param"] for problem in error.problems} == {"duration", "schedular"}
    assert "did you mean 'scheduler'?" in str(error)
    assert isinstance(error, ACEStepError) and not error.may_pass
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_a_failed_job_says_why(client: Client) -> None:
    handle = client.submit("refuse", **SHORT)
    assert handle.wait()["status"] == "failed"
    with pytest.raises(APIError, match="told to refuse") as caught:
        handle.songs()
    assert (caught.value.status, caught.value.code) == (None, "out_of_memory")
    with pytest.raises(APIError, match="told to refuse"):
        client.generate("refuse", **SHORT)


def test_sources_are_uploaded_named_or_songs(client: Client, tmp_path: Path) -> None:
    first = client.generate("first", response_format="wav", **SHORT)
    path = first.save(tmp_path / "first.wav")
    like: dict[str, Any] = {"task": "audio2audio", **SHORT}
    by_path, by_str, by_bytes = (
        client.generate("like it", source=source, **like).parameters["source"]
        for source in (Path(path), path, Path(path).read_bytes())
    )
    assert by_path == by_str == by_bytes == client.upload(path)
    assert by_path.startswith("upload:upload-")
    assert client.generate("like it", source=by_path, **like).parameters["source"] == by_path
    for source in (first, first.source):
        assert client.generate("like it", source=source, **like).parameters["source"] == f"job:{first.id}"
    with pytest.raises(FileNotFoundError):
        client.generate("like it", source="no-such-file.wav", **like)
    with pytest.raises(APIError, match="cannot be read as audio") as caught:
        client.upload(b"not audio")
    assert caught.value.status == 422
    with pytest.raises(APIError, match="takes no URLs"):
        client.generate("like it", source="https://example.com/a.wav", **like)


def test_cancelling_ends_what_is_running_and_leaves_what_is_over(client: Client) -> None:
    running, over = client.submit("slow:5", **SHORT), client.submit("quick", scheduler="heun", **SHORT)
    until_running(running)
    assert running.cancel()["status"] == "cancelled"
    with pytest.raises(APIError) as caught:
        running.songs()
    assert caught.value.code == "cancelled"
    over.wait()
    assert over.cancel()["status"] == "completed"
    assert len(over.songs()) == 1, "it is still there"
    assert running.cancel()["status"] == "cancelled", "cancelling twice deletes nothing"
    for handle in (over, running):
        handle.delete()
        handle.delete()
        with pytest.raises(APIError) as caught:
            handle.status()
        assert (caught.value.status, caught.value.code) == (404, "job_not_found")


def test_waiting_has_an_end_and_the_job_goes_on(client: Client) -> None:
    handle = client.submit("slow:1", **SHORT)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not over after 0\.3 s"):
        handle.wait(timeout=0.3)
    assert time.monotonic() - started < 1
    assert handle.songs(timeout=20)[0].duration > 0


def test_whoever_stops_waiting_cancels(client: Client) -> None:
    ids: list[str] = []

    def interrupt(job: dict) -> None:
        ids.append(job["id"])
        if job["status"] == "in_progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.generate("slow:5", progress=interrupt, **SHORT)
    assert status_soon(client, ids[0], "cancelled")


def test_one_bad_item_of_many_is_no_others_problem(client: Client) -> None:
    items = ["one", {"promt": "two"}, {"prompt": "three", "duration": 2}]
    one, two, three = client.submit_many(items, seed=5, **SHORT)
    assert two.id == "" and two.error is not None and "did you mean 'prompt'?" in str(two.error)
    assert two.status()["status"] == two.wait()["status"] == "failed" and two.is_over
    with pytest.raises(APIError, match="promt"):
        two.songs()
    assert [handle.songs()[0].parameters["duration"] for handle in (one, three)] == [1, 2]
    assert one.songs()[0].seed == 5
    assert client.submit_many([]) == []


def test_many_find_their_way_through_a_short_queue_and_are_listed_on_pages(tmp_path: Path) -> None:
    with running_server(tmp_path, queue__max_songs=40) as running, client_of(running, patience=30) as client:
        handles = client.submit_many([f"song {number}" for number in range(130)], **SHORT)
        assert not [handle.error for handle in handles if handle.error]
        assert [handle.songs()[0].parameters["prompt"] for handle in handles] == [f"song {n}" for n in range(130)]
        listed = [handle.id for handle in client.jobs()]
        assert listed == sorted(listed, reverse=True)
        assert sorted(listed) == sorted(handle.id for handle in handles)
        assert [handle.id for handle in client.jobs(status="completed", order="asc")] == listed[::-1]
        assert list(client.jobs(status="failed")) == []


def test_what_was_taken_is_not_lost_when_patience_ends(tmp_path: Path) -> None:
    with running_server(tmp_path, queue__max_songs=2) as running, client_of(running, patience=0.5) as client:
        blocker = client.submit("slow:10", **SHORT)
        until_running(blocker)
        handles = client.submit_many(["a", "b", "c", "d"], **SHORT)
        assert [bool(handle.id) for handle in handles] == [True, True, False, False]
        assert handles[3].error is not None and handles[3].error.code == "queue_full"
        with pytest.raises(APIError) as caught:
            client.submit("one more", **SHORT)
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert caught.value.retry_after is not None
        blocker.cancel()


def test_jobs_are_made_once_through_a_network_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        running_server(tmp_path) as running,
        bad_network(running.url) as url,
        Client(url, patience=60) as client,
    ):
        source = tmp_path / "in.wav"
        client.generate("source", **SHORT).save(source)
        songs = [client.generate("song", task="audio2audio", source=source, **SHORT) for _ in range(5)]
        handles = client.submit_many([{"prompt": "many"}] * 5, **SHORT)
        songs += [song for handle in handles for song in handle.songs()]
        for song in songs:
            assert len(song.bytes()) == song.facts["bytes"]
        assert client.submit("slow:5", **SHORT).cancel()["status"] == "cancelled"
        with client_of(running) as straight:
            assert len(list(straight.jobs())) == 1 + 5 + 5 + 1
        assert client.stats()["completed"] == 11
    assert "trying again in" in caplog.text, "a proxy that never failed tells nothing"


def test_a_server_that_is_not_there_is_an_error_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    with Client("http://127.0.0.1:9", patience=1) as client, caplog.at_level(logging.WARNING):
        with pytest.raises(APIError, match="cannot be reached") as caught:
            client.generate("song")
        assert (caught.value.status, caught.value.type) == (None, "connection_error")
        assert caught.value.may_pass
        assert "trying again" in caplog.text
    with pytest.raises(InvalidRequestError, match="url: 'localhost:7865' is not allowed; it must be like http://"):
        Client("localhost:7865")


def test_what_can_never_be_sent_is_not_tried_for_a_minute(server: RunningServer) -> None:
    with client_of(server, api_key="a\nb", patience=60) as client, pytest.raises(APIError) as caught:
        client.stats()
    assert not caught.value.may_pass


def test_keys_come_from_the_argument_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"auth.keys": {"ann": hash_key("ace-ann"), "bob": hash_key("ace-bob")}}
    with running_server(tmp_path, **changes) as running:
        with client_of(running) as nobody, pytest.raises(APIError) as caught:
            nobody.stats()
        assert (caught.value.status, caught.value.code) == (401, "no_api_key")
        monkeypatch.setenv("ACESTEP_API_KEY", "ace-ann")
        with client_of(running) as ann, client_of(running, api_key="ace-bob") as bob:
            song = ann.generate("mine", **SHORT)
            assert [handle.id for handle in ann.jobs()] == [song.id.rpartition("/")[0]]
            assert list(bob.jobs()) == []
            with pytest.raises(APIError) as caught:
                bob.job(song.id.rpartition("/")[0]).status()
            assert caught.value.status == 404


def test_a_limit_says_when_to_come_back(tmp_path: Path) -> None:
    changes = {"auth.keys": {"ann": hash_key("ace-ann")}, "auth.requests_per_minute": 1}
    with running_server(tmp_path, **changes) as running, client_of(running, api_key="ace-ann", patience=2) as client:
        client.submit("one", **SHORT)
        with pytest.raises(APIError) as caught:
            client.submit("two", **SHORT)
        assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
        assert caught.value.retry_after is not None and 50 < caught.value.retry_after <= 60


def test_answers_of_proxies_are_errors_too() -> None:
    request = httpx2.Request("GET", "http://localhost")
    bad = APIError.of_response(httpx2.Response(502, html="<h1>Bad Gateway</h1>", request=request))
    assert (bad.status, bad.type, bad.may_pass) == (502, "connection_error", True)
    assert "502 Bad Gateway: <h1>" in str(bad)
    lost = APIError.of_response(httpx2.Response(404, json=["other"], request=request))
    assert (lost.status, lost.may_pass) == (404, False)
    date = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    assert APIError.of_response(httpx2.Response(503, text="", headers=date, request=request)).retry_after is None


def test_patience_rests_for_as_long_as_the_server_says() -> None:
    patience = Patience(60)
    assert patience.pause_after(APIError("busy", status=503, retry_after=7)) == 7
    pauses = [patience.pause_after(APIError("busy", status=429)) for _ in range(12)]
    assert 0.1 < pauses[0] < pauses[2] < pauses[4] and max(pauses) <= 12.5
    for error in (APIError("late", status=503, retry_after=61), APIError("bad", status=422)):
        with pytest.raises(APIError) as caught:
            patience.pause_after(error)
        assert caught.value is error


def test_models_and_stats(client: Client) -> None:
    (model,) = client.models()
    assert model["id"] == "stand-in" and model["ready"] and "duration" in model["defaults"]
    assert client.stats()["engines"] == 1


def test_the_client_needs_neither_torch_nor_ray() -> None:
    code = "import sys, acestep.client; print({'torch', 'ray', 'numpy', 'soundfile'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_the_states_that_end_a_job_are_the_servers() -> None:
    from acestep.async_client import FINAL

    assert FINAL == job.FINAL


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (JobHandle, AsyncJobHandle), (Song, AsyncSong)])
def test_both_clients_are_alike(one: type, other: type) -> None:
    def methods(of: type) -> dict[str, Any]:
        known = {name: each for name, each in vars(of).items() if not name.startswith("_") and callable(each)}
        return {name: list(inspect.signature(each).parameters.items()) for name, each in known.items()}

    assert methods(one) == methods(other)


def test_songs_with_asyncio(server: RunningServer, tmp_path: Path) -> None:
    seen: list[float] = []

    async def progress(job: dict) -> None:
        await asyncio.sleep(0)
        seen.append(job["progress"])

    async def work() -> None:
        async with AsyncClient(server.url, patience=20) as client:
            songs = await asyncio.gather(
                *(client.generate(f"song {number}", seed=number, **SHORT) for number in range(5)),
                client.generate("crawl:0.03", progress=progress, **SHORT),
            )
            assert [song.seed for song in songs[:5]] == [0, 1, 2, 3, 4]
            path = await songs[0].save(tmp_path / "a.mp3")
            assert Path(path).stat().st_size > 1000
            variation = await client.generate("like it", task="audio2audio", source=path, n=2, **SHORT)
            assert len(variation) == 2
            good, bad = await client.submit_many(["good", {"prompt": ""}], **SHORT)
            assert bad.error is not None and len(await good.songs()) == 1
            found = [handle.id async for handle in client.jobs()]
            assert good.id in found
            assert (await client.stats())["ready"] and (await client.models())[0]["ready"]
            with pytest.raises(TimeoutError):
                await (slow := await client.submit("slow:5", **SHORT)).wait(timeout=0.3)
            assert (await slow.cancel())["status"] == "cancelled"
            await slow.delete()

    asyncio.run(work())
    assert seen[-1] == 1 and len(seen) > 2


def test_a_cancelled_task_cancels_its_job(server: RunningServer, client: Client) -> None:
    ids: list[str] = []

    async def work() -> None:
        async with AsyncClient(server.url) as client:
            started = asyncio.Event()

            def progress(job: dict) -> None:
                ids.append(job["id"])
                if job["status"] == "in_progress":
                    started.set()

            task = asyncio.create_task(client.generate("slow:5", progress=progress, **SHORT))
            await asyncio.wait_for(started.wait(), 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    assert status_soon(client, ids[0], "cancelled")


def test_one_client_serves_many_threads(client: Client) -> None:
    made: list[Song] = []
    threads = [
        threading.Thread(target=lambda: made.append(client.generate("song", progress=lambda job: None, **SHORT)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({song.id for song in made}) == 8
