"""A server for tests: the real one in this process, with an engine that needs no weights."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn

from serve.local import LocalServer
from serve.service import Service
from serve.settings import ServeConfig
from tests.conftest import nested

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class RunningServer:
    """One that answers."""

    url: str
    service: Service
    loop: asyncio.AbstractEventLoop

    def client(self, **options: Any) -> httpx2.Client:
        """For the API."""
        return httpx2.Client(base_url=self.url, **{"timeout": PATIENCE_SECONDS, **options})

    def on_loop(self, awaitable: Any) -> Any:
        """What a coroutine of the service gives."""
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result(PATIENCE_SECONDS)


def serve_config(store: Any, **changes: Any) -> ServeConfig:
    """A config with the stand-in engine, changed by dotted names."""
    values = {
        "engine": "tests.stand_in:Engine",
        "model.checkpoint": "stand-in",
        "store": str(store),
        "batch.max_batch_size": 4,
        "queue.window_seconds": 0.02,
        "storage.attempts": 3,
    }
    return ServeConfig.parse(nested(values, changes))


@contextmanager
def running_server(store: Any, *, engine_starts: bool = True, **changes: Any) -> Iterator[RunningServer]:
    """Run a server on a free port in a thread, until the end of the block.

    Args:
        store: a folder.
        engine_starts: False: it stays as it is while the weights are being loaded.
        changes: of the config, by dotted names.
    """
    local = LocalServer(serve_config(store, **changes))
    if not engine_starts:
        local.app = _without_engine(local)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(local.app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
        )
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            _wait(lambda: server.started or not thread.is_alive())
            assert server.started, "the server did not start"
            loop = server.servers[0].get_loop()
            running = RunningServer(f"http://127.0.0.1:{listening.getsockname()[1]}", local.service, loop)
            _wait(lambda: local.service.is_ready or not engine_starts)
            yield running
        finally:
            server.should_exit = True
            thread.join(PATIENCE_SECONDS)


def _without_engine(local: LocalServer) -> Any:
    from serve.api import create_app

    return create_app(local.service)


def _wait(is_so: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)
