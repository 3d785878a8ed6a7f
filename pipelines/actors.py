"""`EngineActor`: a warm engine in a process of its own, for batches and for a server alike; it knows nothing of Ray."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from acestep.errors import ACEStepError, CheckpointError, DeviceError
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from pipelines.engines import engine_class

logger = logging.getLogger(__name__)


class EngineActor:
    """Loads an engine and warms it up once; then makes batches.

    A broken device ends the process, at once and hard: nothing on it can be trusted, and only a process that dies is
    replaced by Ray, with what it was doing tried again (one that leaves politely never is).

    Args:
        engine: import path of the engine's class.
        fingerprint: of the model that the plan was made for; another one is refused.
        threads: of the engine on a CPU; None: the library decides.
    """

    def __init__(
        self,
        engine: str,
        checkpoint: str,
        *,
        fingerprint: str | None = None,
        threads: int | None = None,
        warm_up: bool = True,
        **options: Any,
    ):
        started = time.perf_counter()
        _use_threads(threads)
        try:
            self.engine = engine_class(engine).load(checkpoint, **options)
            if fingerprint and self.engine.model.fingerprint != fingerprint:
                raise CheckpointError(
                    f"checkpoint {checkpoint!r} is another one here ({self.engine.model.fingerprint}) than where the "
                    f"plan was made ({fingerprint})"
                )
            if warm_up:
                self.engine.warm_up()
        except DeviceError as error:
            _die(error)
        self.load_seconds = time.perf_counter() - started
        logger.info("engine ready after %.1f s: %s", self.load_seconds, self.engine.model)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult | GenerationFailure]:
        """Make songs, outcomes in the order of the requests; never raises but ends the process with the device."""
        try:
            outcomes = self.engine.generate(list(requests))
        except DeviceError as error:
            _die(error)
        except Exception as error:
            logger.exception("the engine failed on a whole batch of %d", len(requests))
            error_class = error.error_class if isinstance(error, ACEStepError) else "internal"
            message = f"{type(error).__name__}: {error}"
            return [
                GenerationFailure(request=request, error_class=error_class, message=message) for request in requests
            ]
        assert len(outcomes) == len(requests), "an outcome for each request"
        return outcomes


def _use_threads(threads: int | None) -> None:
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)  # Ray sets 1; torch reads it when it is imported.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _die(error: DeviceError) -> NoReturn:
    logger.critical("the device is broken, this process ends: %s", error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)
