"""One machine, one process, no Ray: the same service, worker and API under uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from pipelines.engines import describe_model
from pipelines.errors import ConfigError
from serve.api import create_app
from serve.engine import engine_actor
from serve.service import TAKE_SECONDS, Service
from serve.settings import HTTPSection, ServeConfig
from serve.worker import Worker

logger = logging.getLogger(__name__)

CALL_SECONDS = TAKE_SECONDS + 10.0


class LocalServer:
    """A server whose engine is loaded in the background: it answers at once, and says that it is warming up.

    Attributes:
        failure: why the engine could not be loaded.
    """

    def __init__(self, config: ServeConfig, on_failure: Callable[[], None] = lambda: None):
        self.config = config
        self.service = Service(config, describe_model(config))
        self.app: FastAPI = create_app(self.service, self._run_engine)
        self.failure: Exception | None = None
        self._worker: Worker | None = None
        self._on_failure = on_failure

    def serve(self, ready: Callable[[str], None] = lambda url: None) -> None:
        """Answer until Ctrl-C or SIGTERM; what was being made is made again by the next server.

        Args:
            ready: called with the address once requests are taken.
        """
        http = self.config.http
        server = _Server(
            uvicorn.Config(self.app, http.host, http.port, log_level="warning", timeout_graceful_shutdown=3), ready
        )
        self._on_failure = lambda: setattr(server, "should_exit", True)
        server.run()
        if self.failure is not None:
            raise self.failure

    async def _run_engine(self) -> None:
        loop = asyncio.get_running_loop()

        def call(method: str, *arguments: Any) -> Any:
            if loop.is_closed():
                raise RuntimeError("the server has ended")
            return asyncio.run_coroutine_threadsafe(getattr(self.service, method)(*arguments), loop).result(
                CALL_SECONDS
            )

        def load() -> None:
            try:
                actor = engine_actor(self.config, self.service.model.fingerprint)
                self._worker = Worker(actor, self.config, self.service.storage, call, "engine-local")
                self._worker.start()
            except Exception as error:
                logger.exception("the engine cannot be loaded")
                self.failure = error
                loop.call_soon_threadsafe(self._on_failure)

        threading.Thread(target=load, name="load", daemon=True).start()
        try:
            await asyncio.Event().wait()
        finally:
            if self._worker is not None:
                self._worker.stop()


def require_port(http: HTTPSection) -> None:
    """Find out before the weights are loaded whether the port is free.

    Raises:
        ConfigError: when it is not.
    """
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            where = f"{http.host} port {http.port}"
            raise ConfigError(f"http.port: nothing can listen at {where} ({error.strerror}); choose another") from error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            host = "localhost" if self.config.host in ("0.0.0.0", "127.0.0.1", "::") else self.config.host
            self._ready(f"http://{host}:{port}")
