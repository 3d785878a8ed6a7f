"""`Gateway` and `EngineReplica`: the two deployments of the application on Ray Serve.

The gateway is one process with the API and the queue; engines are as many as the scaling says, and ask it for work.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from acestep.result import ModelInfo
from pipelines.engines import describe_model
from serve.api import create_app
from serve.engine import engine_actor
from serve.service import TAKE_SECONDS, Service
from serve.settings import ServeConfig
from serve.work import Assignment, Delivery, Report
from serve.worker import Worker

logger = logging.getLogger(__name__)

CALL_SECONDS = TAKE_SECONDS + 10.0
WAKE_SECONDS = 1.0


class Gateway:
    """The API, the queue and the records. Its state is in the store: when it dies, the next one goes on from there."""

    def __init__(self, config: ServeConfig, engines: DeploymentHandle):
        logging.getLogger("serve").setLevel(logging.INFO)
        self._engines = engines
        self.service = Service(config, describe_model(config))
        self._waking: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.service, self._wake)

    async def model(self) -> ModelInfo:
        """What is served."""
        return self.service.model

    async def load(self) -> int:
        """Latent frames that wait or are being made."""
        return self.service.load

    async def take(self, engine: str) -> Assignment | None:
        return await self.service.take(engine)

    async def report(self, report: Report) -> Collection[str]:
        return await self.service.report(report)

    async def delivered(self, engine: str, batch: str, deliveries: Sequence[Delivery]) -> None:
        await self.service.delivered(engine, batch, deliveries)

    async def measured(self, frames: int, seconds: float) -> None:
        await self.service.measured(frames, seconds)

    async def left(self, engine: str) -> None:
        await self.service.left(engine)

    async def offline(self, requests: list[Any]) -> Any:
        """A list of one reference to the outcomes."""
        return await self.service.offline(requests)

    async def offline_delivered(self, engine: str, batch: str, answer: Any) -> None:
        await self.service.offline_delivered(engine, batch, answer)

    async def _wake(self) -> None:
        """While songs wait and there is no engine, ask Serve for one: a call that finds none makes it start one."""
        while True:
            await asyncio.sleep(WAKE_SECONDS)
            if self.service.load and not self.service.pool.engines:
                with suppress(Exception):
                    await asyncio.wait_for(self._engines.wake.remote(), 60)


class EngineReplica:
    """A warm engine. What it makes it asks for; Serve only starts, watches and ends it."""

    def __init__(self, config: ServeConfig):
        logging.getLogger("serve").setLevel(logging.INFO)
        self._config = config
        self._actor = engine_actor(config)
        self._gateway: DeploymentHandle | None = None
        self._app = serve.get_replica_context().app_name
        storage = Service.storage_of(config)
        self._worker = Worker(self._actor, config, storage, self._call, f"engine-{uuid.uuid4().hex[:12]}")
        self._worker.start()

    async def wake(self) -> str:
        """Does nothing: that it can be called is what counts."""
        return self._worker.name

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For `engines_wanted`: what all engines together have to do."""
        return {"load_frames": float(await self._handle().load.remote())}

    def check_health(self) -> None:
        """Raises when this engine has come to an end; Serve replaces it then."""
        if not self._worker.is_alive:
            raise RuntimeError("the engine's thread has ended")

    def __del__(self) -> None:
        """Serve is about to end this process: finish what is in hand."""
        if hasattr(self, "_worker") and not self._worker.drain(self._config.scaling.drain_seconds):
            logger.warning("the engine did not finish in time; its songs are made by another")

    def _call(self, method: str, *arguments: Any) -> Any:
        if method == "offline_delivered":  # Waveforms go to the batch job past the gateway, which says where they are.
            *about, outcomes = arguments
            arguments = (*about, [ray.put(outcomes)])
        return getattr(self._handle(), method).remote(*arguments).result(timeout_s=CALL_SECONDS)

    def _handle(self) -> DeploymentHandle:
        if self._gateway is None:
            self._gateway = serve.get_app_handle(self._app)
        return self._gateway


def engines_wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: one engine for each `frames_per_engine` frames that wait or are being made."""
    state = dict(context.policy_state or {})
    by_replica = (context.aggregated_metrics or {}).get("load_frames", {})
    frames = max(by_replica.values(), default=0.0)
    per_engine = int(context.config.policy.policy_kwargs["frames_per_engine"]) if context.config else 32_768
    wanted = -(-int(frames) // per_engine)
    if context.total_num_requests > 0:  # Somebody woke it.
        wanted = max(1, wanted)
    state["seen_at"] = time.time()
    return max(context.capacity_adjusted_min_replicas, min(wanted, context.capacity_adjusted_max_replicas)), state
