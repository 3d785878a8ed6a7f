"""`PooledEngine`: a batch job's engine that is a server's idle time. In a config: `engine: serve://<application>`.

The job and the Ray Serve application are on one Ray cluster. Songs of the job are made by the application's engines
whenever no song of a caller is waiting, batch by batch; the job itself needs no GPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from acestep.errors import CancelledError, DeviceError
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult, ModelInfo
from pipelines.errors import ConfigError

logger = logging.getLogger(__name__)

Outcome = GenerationResult | GenerationFailure
Callback = Callable[[int, int], None]

ATTEMPTS = 3
"""How often a batch is asked for when engines die under it; then its songs one by one, as often."""
POLL_SECONDS = 1.0
"""So often is a caller asked whether it still wants what it waits for."""
MODEL_SECONDS = 30.0
"""In which an application that is there says what it serves; it may be just starting."""
PATIENCE_SECONDS = 600.0
"""An application that died comes back within so long, or the job stops."""


class PooledEngine:
    """See the module. Which weights there are is the application's affair: the job's `model` section is not looked at.

    Args:
        application: name of a Ray Serve application of `serve.app:build`.
    """

    def __init__(self, application: str):
        self.application = application
        self.device_name = f"serve://{application}"
        self.patience_seconds = 7 * 86_400.0
        """A batch waits for as long as callers keep the engines busy; that is no sign of a broken engine."""
        self._handle: Any = None
        self._model: ModelInfo | None = None

    def describe(self, checkpoint: str, **options: Any) -> ModelInfo:
        """What the application serves.

        Raises:
            ConfigError: when there is no such application on this process's Ray, or it does not answer.
        """
        try:
            self._connect()
        except Exception as error:
            message = f"the application {self.application!r} cannot be reached: {_last_line(error)}"
            raise ConfigError(f"engine: {self.device_name!r} cannot be used; {message}") from error
        return self.model

    def load(self, checkpoint: str, **options: Any) -> PooledEngine:
        """Connect to the application; raises as `describe` does."""
        self.describe(checkpoint)
        return self

    @property
    def model(self) -> ModelInfo:
        """What the application served when it was connected to."""
        assert self._model is not None, "load it first"
        return self._model

    def warm_up(self) -> float:
        """Nothing to do: the application's engines are warm."""
        return 0.0

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        callback: Callback | None = None,
        cancelled: Callable[[], Collection[int]] | None = None,
    ) -> list[Outcome]:
        """Songs in the order of the requests, as arrays that cannot be written to.

        Args:
            callback: called while it waits; what it raises ends the wait.
            cancelled: a batch that everybody left is left; who leaves alone gets a song all the same.

        Raises:
            CancelledError: when everybody left.
            DeviceError: when the application went away, or serves another model now.
        """
        wanted = list(requests)
        if (outcomes := self._tried(wanted, callback, cancelled)) is not None:
            return outcomes
        if len(wanted) > 1:  # One of them may be what kills engines; the others need not die with it.
            logger.warning("asking for %d songs one by one", len(wanted))
            return [self.generate([request], callback)[0] for request in wanted]
        message = f"the engine that made it died, {2 * ATTEMPTS} times"
        return [GenerationFailure(request=wanted[0], error_class="device", message=message)]

    def _tried(
        self,
        requests: list[GenerationRequest],
        callback: Callback | None,
        cancelled: Callable[[], Collection[int]] | None,
    ) -> list[Outcome] | None:
        """Outcomes; None when engines died under the batch each time."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        for _ in range(ATTEMPTS):
            try:
                outcomes = self._asked(requests, callback, cancelled)
            except (RayError, RayServeException) as error:
                logger.warning("a batch of %d is asked for again: %s", len(requests), _last_line(error))
                self._connect_again()
                continue
            models = {outcome.model.fingerprint for outcome in outcomes if isinstance(outcome, GenerationResult)}
            if models - {self.model.fingerprint}:
                raise DeviceError(f"the application {self.application!r} serves another model than when the job began")
            return outcomes
        return None

    def _asked(
        self,
        requests: list[GenerationRequest],
        callback: Callback | None,
        cancelled: Callable[[], Collection[int]] | None,
    ) -> list[Outcome]:
        import ray

        answer = self._handle.offline.remote(requests)
        try:
            while True:
                try:
                    # The gateway only passes on where the songs are; they come here from the engine's own node.
                    (songs,) = answer.result(timeout_s=POLL_SECONDS)
                    return ray.get(songs)
                except TimeoutError:
                    pass
                if callback is not None:
                    callback(0, 1)
                if cancelled is not None and len(set(cancelled())) == len(requests):
                    raise CancelledError("nobody wants any song of this batch")
        except BaseException:
            answer.cancel()
            raise

    def _connect(self) -> None:
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._handle = serve.get_app_handle(self.application)
        model = self._handle.model.remote().result(timeout_s=MODEL_SECONDS)
        assert isinstance(model, ModelInfo), "an application of serve.app"
        self._model = self._model or model

    def _connect_again(self) -> None:
        """Wait for the application to answer again: the gateway may have died, too."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self._connect()
            except Exception as error:
                if time.monotonic() > deadline:
                    message = f"the application {self.application!r} went away: {_last_line(error)}"
                    raise DeviceError(message) from error
            time.sleep(POLL_SECONDS)


def _last_line(error: Exception) -> str:
    """What is the matter, without the traceback of another process."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
