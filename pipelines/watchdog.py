"""`Watchdog`: ends a batch that takes much longer than batches of its cost take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from acestep.errors import BatchTimeoutError
from pipelines.speed import Speed
from pipelines.work import Work

MOST_GRACE_SECONDS = 60.0
"""An engine that has not come to the end of a step so long after the deadline hangs: its process must end.
For shorter deadlines it is as long as they are."""


UNMEASURED_SECONDS = 3600.0
"""What a batch may take at least where nothing was ever measured; `ray.no_progress_seconds` must be longer."""


class Watchdog:
    """Holds batches to what the table of speeds, or a slower one in this process, says of their work.

    A batch past its deadline ends politely between two denoising steps, as a `BatchTimeoutError` from the callback.
    One that does not even reach the end of a step is reported to `give_up`, on a thread of its own.

    Args:
        factor: a batch may take so many times what it should.
        min_seconds: always allowed.
        give_up: called with the reason; it should end the process.
    """

    def __init__(
        self,
        speed: Speed,
        *,
        factor: float,
        min_seconds: float,
        give_up: Callable[[str], None],
    ):
        self._speed = speed
        self._factor = factor
        self._min_seconds = min_seconds if speed.is_measured else max(min_seconds, UNMEASURED_SECONDS)
        self._give_up = give_up
        self._slowness = 1.0
        """How much longer than it should the slowest batch took that ended well."""

    def deadline(self, work: Work) -> float:
        """Seconds that a batch may take."""
        return self._speed.deadline(work, self._factor * self._slowness, self._min_seconds)

    @contextmanager
    def watch(self, work: Work) -> Iterator[Callable[[int, int], None]]:
        """Watch what happens inside; yields the engine's callback."""
        limit = self.deadline(work)
        started = time.monotonic()
        reason = f"the batch took more than {limit:.0f} s, much longer than batches of its cost do"

        def callback(done: int, total: int) -> None:
            if time.monotonic() - started > limit:
                raise BatchTimeoutError(f"{reason}; it was at step {done} of {total}")

        timer = threading.Timer(limit + min(limit, MOST_GRACE_SECONDS), self._give_up, [f"{reason}; it hangs"])
        timer.daemon = True
        timer.start()
        try:
            yield callback
        finally:
            timer.cancel()
        took = time.monotonic() - started
        if took <= limit:
            self._slowness = max(self._slowness, took / max(self._speed.seconds(work), 1e-9))
