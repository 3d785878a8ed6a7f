"""One pool of engines for a batch job and for callers, on a real Ray Serve."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from pipelines.engines import describe_model, engine_class, tokenizers_of
from pipelines.errors import ConfigError
from pipelines.run import run_job
from serve.pooled import PooledEngine
from serve.settings import ServeConfig
from tests.conftest import stand_in_config
from tests.running_job import calls_in, manifest_of, num_rows, songs_of, sums_of
from tests.seaweed import free_ports

APP = "pooled"
SONGS = 24


def pooled_config(**changes: Any) -> Any:
    """A job whose songs the application makes; its own process is small."""
    return stand_in_config(engine=f"serve://{APP}", **{"resources.num_cpus": 0.1} | changes)


def test_a_scheme_that_nobody_installed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'other://songs' is not allowed; installed schemes: .*serve://"):
        engine_class("other://songs")


@pytest.mark.parametrize("engine", ["serve://", "serve://a b", "://songs", "serve:/songs"])
def test_names_of_running_engines_are_checked(engine: str) -> None:
    with pytest.raises(ConfigError, match="serve://acestep for one that is running"):
        stand_in_config(engine=engine)


def test_a_job_that_borrows_engines_has_no_gpus() -> None:
    with pytest.raises(ConfigError, match=r"resources.num_gpus: 1.* has GPUs of its own"):
        pooled_config(**{"resources.num_gpus": 1})


def test_the_plan_does_not_look_for_a_checkpoint() -> None:
    assert tokenizers_of(pooled_config()) == (None, None)


@pytest.fixture(scope="module")
def application(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server with the stand-in engine; a client for it."""
    from ray import serve

    from serve.app import build

    folder = tmp_path_factory.mktemp("pooled")
    values = {
        "engine": "tests.stand_in:Engine",
        "model": f"stand-in?{folder / 'calls'}",
        "store": str(folder / "store"),
        "resources": {"num_cpus": 0.5},
        "batch": {"max_batch_size": 4},
        "queue": {"engine_timeout_seconds": 5},
    }
    (port,) = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(ServeConfig.parse(values)), name=APP, route_prefix="/")
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=90) as client:
        client.calls = folder / "calls"  # type: ignore[attr-defined]
        deadline = time.monotonic() + 90
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline, "no engine became ready"
            time.sleep(0.1)
        yield client
    serve.shutdown()


class Callers(threading.Thread):
    """Ask for one song after the other until they are told to stop."""

    def __init__(self, client: httpx2.Client):
        super().__init__()
        self.client, self.statuses, self.waited = client, [], []
        self.over = threading.Event()

    def __enter__(self) -> Callers:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        while not self.over.is_set():
            started = time.monotonic()
            body = {"prompt": "a song of a caller", "duration": 1}
            self.statuses.append(self.client.post("/v1/audio/generations", json=body).status_code)
            self.waited.append(time.monotonic() - started)
            time.sleep(0.05)


def engine_processes() -> list[psutil.Process]:
    """Of the application's engines."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"ServeReplica:{APP}:Engine" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def alone(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A manifest, and what becomes of it with an engine of the job's own."""
    folder = tmp_path_factory.mktemp("alone")
    manifest = manifest_of(folder / "manifest.parquet", ["song slow:0.1"] * SONGS)
    summary = run_job(stand_in_config(), manifest, str(folder / "out"))
    assert summary.exit_code == 0, summary.text()
    return manifest, sums_of(str(folder / "out"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_behind_callers_makes_the_same_songs(
    application: httpx2.Client, alone: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    manifest, expected = alone
    output = str(tmp_path / "out")
    with Callers(application) as callers:
        summary = run_job(pooled_config(), manifest, output)
    assert summary.exit_code == 0, summary.text()
    assert sums_of(output) == expected
    assert len(callers.statuses) > 3 and set(callers.statuses) == {200}
    made = [line.split() for line in calls_in(application.calls)]  # type: ignore[attr-defined]
    mixed = [ids for ids in made if len({id.startswith("job-") for id in ids}) > 1]
    assert not mixed, "what somebody waits for and what nobody waits for are not in one batch"
    assert {row["device"] for row in songs_of(output).values()} == {f"serve://{APP}"}


@pytest.mark.ray
@pytest.mark.slow
def test_an_engine_killed_in_the_middle_loses_nothing(
    application: httpx2.Client, alone: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    manifest, expected = alone
    output = str(tmp_path / "out")
    begun = len(calls_in(application.calls))  # type: ignore[attr-defined]
    killed = []

    def kill() -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            calls = calls_in(application.calls)  # type: ignore[attr-defined]
            if sum("s0" in ids or "s1" in ids for ids in calls[begun:]) and len(calls) > begun + 2:
                for process in engine_processes():
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                return
            time.sleep(0.02)

    with Callers(application) as callers, ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        summary = run_job(pooled_config(), manifest, output)
        killing.result()
    assert killed, "the test has killed an engine"
    assert summary.exit_code == 0, summary.text()
    assert sums_of(output) == expected and num_rows(output) == SONGS
    assert set(callers.statuses) == {200}


@pytest.mark.ray
@pytest.mark.slow
def test_what_kills_engines_fails_alone(application: httpx2.Client, tmp_path: Path) -> None:
    engine = PooledEngine(APP).load("ignored")
    good, bad = (
        GenerationRequest(id=id, prompt=prompt, duration=1, seed=1) for id, prompt in [("good", "song"), ("bad", "die")]
    )
    waited: list[tuple[int, int]] = []
    song, failure = engine.generate([good, bad], lambda done, total: waited.append((done, total)))
    assert isinstance(song, GenerationResult) and song.waveform.shape == (2, song.waveform.shape[1])
    assert isinstance(failure, GenerationFailure) and failure.error_class == "device"
    assert waited, "who waits is asked whether it still wants to"


@pytest.mark.ray
@pytest.mark.slow
def test_who_gives_up_waiting_leaves_nothing_behind(application: httpx2.Client) -> None:
    engine = PooledEngine(APP).load("ignored")
    slow = GenerationRequest(id="slow", prompt="song slow:5", duration=1, seed=1)

    def impatient(done: int, total: int) -> None:
        raise TimeoutError("no longer")

    with pytest.raises(TimeoutError, match="no longer"):
        engine.generate([slow], impatient)
    quick = GenerationRequest(id="quick", prompt="song", duration=1, seed=1)
    assert isinstance(engine.generate([quick])[0], GenerationResult), "the engine goes on"


@pytest.mark.ray
@pytest.mark.slow
def test_an_application_that_there_is_not_is_named(application: httpx2.Client) -> None:
    assert describe_model(pooled_config()).name == "stand-in"
    with pytest.raises(ConfigError, match="'serve://missing' cannot be used; the application 'missing'"):
        describe_model(stand_in_config(engine="serve://missing"))
