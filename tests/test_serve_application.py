"""The application on a real Ray Serve: songs whose processes are killed, and engines that nobody needs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from serve.settings import ServeConfig
from tests.seaweed import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

APP = "songs"


@pytest.fixture(scope="module")
def http_port(ray_session: None) -> Iterator[int]:
    """A Serve of our own on the session's Ray."""
    from ray import serve

    (port,) = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


@pytest.fixture
def run(http_port: int, tmp_path: Path) -> Iterator[Any]:
    """Runs the application with a config's changes; a client for it."""
    from ray import serve

    clients = []

    def start(**changes: Any) -> httpx2.Client:
        values: dict[str, Any] = {
            "engine": "tests.stand_in:Engine",
            "model": "stand-in",
            "store": str(tmp_path / "store"),
            "resources": {"num_cpus": 0.5},
            "batch": {"max_batch_size": 2},
            "queue": {"engine_timeout_seconds": 5},
        }
        from serve.app import build

        serve.run(build(ServeConfig.parse(values | changes)), name=APP, route_prefix="/")
        client = httpx2.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=90)
        clients.append(client)
        until(lambda: client.get("/ready").status_code == 200)
        return client

    yield start
    for client in clients:
        client.close()
    serve.delete(APP)


def until(done: Any, seconds: float = 90.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except (httpx2.HTTPError, ValueError):
            pass
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def replicas(deployment: str) -> list[psutil.Process]:
    """Processes of a deployment of ours."""
    return [each for each in psutil.process_iter() if f"ServeReplica:{APP}:{deployment}" in _name(each)]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def submit(client: httpx2.Client, prompt: str, **more: Any) -> str:
    answer = client.post("/v1/audio/jobs", json={"prompt": prompt, "duration": 1, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def status(client: httpx2.Client, id: str) -> str:
    return client.get(f"/v1/audio/jobs/{id}").json()["status"]


def test_an_engine_killed_under_load_loses_nothing(run: Any) -> None:
    client = run()
    with ThreadPoolExecutor(4) as pool:
        jobs = [submit(client, "song slow:0.2") for _ in range(16)]
        body = {"prompt": "song slow:0.3", "duration": 1}
        waiting = [pool.submit(client.post, "/v1/audio/generations", json=body) for _ in range(4)]
        until(lambda: any(status(client, id) == "in_progress" for id in jobs))
        (engine,) = replicas("Engine")
        os.kill(engine.pid, signal.SIGKILL)
        answers = [each.result() for each in waiting]
    assert [answer.status_code for answer in answers] == [200] * 4, "who waited did not notice"
    until(lambda: all(status(client, id) == "completed" for id in jobs))
    assert client.get("/v1/stats").json()["rerun"] >= 1
    for id in jobs:
        job = client.get(f"/v1/audio/jobs/{id}").json()
        audio = client.get(f"/v1/audio/jobs/{id}/content")
        assert len(audio.content) == job["data"][0]["bytes"]


def test_jobs_outlive_the_gateway(run: Any) -> None:
    client = run()
    done = submit(client, "song")
    until(lambda: status(client, done) == "completed")
    jobs = [submit(client, "song slow:0.3") for _ in range(10)]
    (gateway,) = replicas("Gateway")
    os.kill(gateway.pid, signal.SIGKILL)
    until(lambda: replicas("Gateway") and all(status(client, id) == "completed" for id in jobs))
    assert status(client, done) == "completed"
    listed = client.get("/v1/audio/jobs", params={"limit": 100}).json()["data"]
    assert {job["id"] for job in listed} == {done, *jobs}


def test_engines_come_and_go_with_the_queue(run: Any) -> None:
    scaling = {"min_engines": 0, "max_engines": 2, "frames_per_engine": 40}
    delays = {"upscale_delay_seconds": 0.5, "downscale_delay_seconds": 2}
    client = run(scaling=scaling | delays)
    jobs = [submit(client, "song slow:0.4", duration=4) for _ in range(24)]
    most = 0

    def over() -> bool:
        nonlocal most
        most = max(most, len(replicas("Engine")))
        return all(status(client, id) == "completed" for id in jobs)

    until(over)
    assert most == 2
    until(lambda: not replicas("Engine"))
    assert client.get("/ready").status_code == 200, "the next request wakes one"
    late = submit(client, "song")
    until(lambda: status(client, late) == "completed")
