"""`EngineActor`: a warm engine in a process of its own, for batches and for a server alike; it knows nothing of Ray."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from acestep.errors import ACEStepError, CheckpointError, DeviceError
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from pipelines.engines import engine_class

logger = logging.getLogger(__name__)

Callback = Callable[[int, int], None]


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
        self.last_words: Callable[[str, str], None] | None = None
        """Called with the class and the message of the error that ends the process, just before."""
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
            self.die(error.error_class, f"the device is broken: {error}")
        self.load_seconds = time.perf_counter() - started
        self.device_name: str = getattr(self.engine, "device_name", "unknown")
        logger.info("engine ready after %.1f s: %s on %s", self.load_seconds, self.engine.model, self.device_name)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        callback: Callback | None = None,
        cancelled: Callable[[], Collection[int]] | None = None,
    ) -> list[GenerationResult | GenerationFailure]:
        """Make songs, outcomes in the order of the requests; never raises but ends the process with the device.

        Args:
            callback: called after each denoising step; an error of ours that it raises fails the whole batch with it.
            cancelled: asked after each step for positions that nobody wants any more.
        """
        options = {"cancelled": cancelled} if cancelled is not None else {}
        try:
            outcomes = self.engine.generate(list(requests), callback=callback, **options)
        except DeviceError as error:
            self.die(error.error_class, f"the device is broken: {error}")
        except Exception as error:
            if isinstance(error, ACEStepError):
                error_class, message = error.error_class, str(error)
                logger.warning("a batch of %d failed: %s", len(requests), message)
            else:
                error_class, message = "internal", f"{type(error).__name__}: {error}"
                logger.exception("the engine failed on a whole batch of %d", len(requests))
            return [
                GenerationFailure(request=request, error_class=error_class, message=message) for request in requests
            ]
        assert len(outcomes) == len(requests), "an outcome for each request"
        return outcomes

    def die(self, error_class: str, reason: str) -> NoReturn:
        """End this process, hard, so that it is replaced."""
        logger.critical("%s; this process ends", reason)
        try:
            if self.last_words is not None:
                self.last_words(error_class, reason)
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(1)


def _use_threads(threads: int | None) -> None:
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)  # Ray sets 1; torch reads it when it is imported.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
