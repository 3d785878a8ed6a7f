"""Servers to measure: `LocalServer` in a process of its own, or the application on a Ray Serve of this process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from acestep.request import GenerationRequest
from benchmarks import simulated

ROOT = Path(__file__).parents[1]
APP = "measured"
READY_SECONDS = 180


class Engine(simulated.Engine):
    """One that only waits, and leaves in the file `MEASURED_CALLS` when it did."""

    def generate(self, requests: Any, callback: Any = None, cancelled: Any = None) -> Any:
        begin = time.monotonic()
        songs = super().generate(requests, callback, cancelled)
        if calls := os.environ.get("MEASURED_CALLS"):
            with open(calls, "a", encoding="utf-8") as file:
                file.write(f"{len(requests)} {begin} {time.monotonic()}\n")
        return songs


@dataclass(frozen=True, slots=True)
class Call:
    """Of the engine: songs, and seconds on the machine's monotonic clock."""

    songs: int
    begin: float
    end: float


@dataclass(slots=True)
class Measured:
    """A server that runs.

    Attributes:
        calls: where its engine leaves its calls.
        processes: its own ones; on Ray the gateway, the engines and the proxies, without Ray itself.
    """

    url: str
    calls: Path
    processes: Callable[[], list[psutil.Process]]

    def calls_since(self, begin: float) -> list[Call]:
        """The engine's calls that began since then."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        calls = [Call(int(songs), float(begin), float(end)) for songs, begin, end in map(str.split, lines)]
        return [call for call in calls if call.begin >= begin]

    def rss(self) -> int:
        """Bytes of all its processes."""
        return sum(each.memory_info().rss for each in self.processes())

    def cpu(self) -> float:
        """Seconds of all its processes."""
        return sum(sum(each.cpu_times()[:2]) for each in self.processes())


def config_of(engine: str, checkpoint: str, **sections: Any) -> dict[str, Any]:
    """A server's config as plain values, for `measured`."""
    return {"engine": engine, "model": {"checkpoint": checkpoint}, "resources": {"num_cpus": 0.5}, **sections}


def song(number: int, duration: float, **more: Any) -> GenerationRequest:
    """One of the songs of a batch job."""
    return GenerationRequest(id=f"offline-{number}", prompt="idle-time song", duration=duration, seed=number, **more)


@contextmanager
def measured(values: dict[str, Any], *, on_ray: bool, offline: int = 0, duration: float = 1.0) -> Iterator[Measured]:
    """A server that is ready.

    Args:
        offline: songs in each batch of a batch job that never ends; 0 for none.
        duration: of those songs.
    """
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder, "calls")
        os.environ["MEASURED_CALLS"] = str(calls)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        values = {**values, "store": f"{folder}/store", "http": {"port": port}}
        place = _on_ray if on_ray else _local
        with place(values, calls, offline, duration) as server:
            _wait_for(f"{server.url}/ready")
            yield server


@contextmanager
def _local(values: dict[str, Any], calls: Path, offline: int, duration: float) -> Iterator[Measured]:
    command = [sys.executable, "-m", "benchmarks.servers", json.dumps([values, offline, duration])]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield Measured(f"http://127.0.0.1:{values['http']['port']}", calls, lambda: [psutil.Process(process.pid)])
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def _on_ray(values: dict[str, Any], calls: Path, offline: int, duration: float) -> Iterator[Measured]:
    import ray
    from ray import serve

    from serve.app import build
    from serve.settings import ServeConfig

    port = values["http"]["port"]
    ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    over = threading.Event()
    feeders: list[threading.Thread] = []
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(ServeConfig.parse(values)), name=APP, route_prefix="/")
        if offline:
            feeders = [threading.Thread(target=_feed, args=(over, offline, duration), daemon=True) for _ in range(2)]
        for feeder in feeders:
            feeder.start()
        yield Measured(f"http://127.0.0.1:{port}", calls, _replicas)
    finally:
        over.set()
        for feeder in feeders:
            feeder.join(30)
        serve.shutdown()
        ray.shutdown()


def _feed(over: threading.Event, size: int, duration: float) -> None:
    from serve.pooled import PooledEngine

    engine = PooledEngine(APP).load("")
    while not over.is_set():
        engine.generate([song(number, duration) for number in range(size)])


def _replicas() -> list[psutil.Process]:
    """Started by this process's Ray, whoever else has one."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if "ray::ServeReplica" in (line := " ".join(each.cmdline())) or "ray::ProxyActor" in line:
                found.append(each)
        except psutil.Error:
            continue
    return found


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def main() -> None:
    """`LocalServer`, with a batch job behind it where there is to be one."""
    from serve.local import LocalServer
    from serve.settings import ServeConfig

    values, offline, duration = json.loads(sys.argv[1])

    class Server(LocalServer):
        async def _run_engine(self) -> None:
            feeders = [asyncio.create_task(self._feed()) for _ in range(2)] if offline else []
            await super()._run_engine()
            del feeders

        async def _feed(self) -> None:
            while True:
                await self.service.offline([song(number, duration) for number in range(offline)])

    Server(ServeConfig.parse(values)).serve()


if __name__ == "__main__":
    main()
