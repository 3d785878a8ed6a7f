"""`Stopping`: how Ctrl-C and SIGTERM end a run: what has begun is finished, in a stated time; a second one, at once."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class Stopping:
    """While entered, the first signal asks for the end and the second raises `KeyboardInterrupt` at once.

    `tick` must be called about twice a second from another thread: it calls `drain` after the first signal, and ends
    the run when `drain_seconds` have passed. Off the main thread nothing is caught.

    Attributes:
        drain: tells the stages to begin nothing more.
        asked: what asked for the end, None while nothing did.
        signal: its number.
    """

    def __init__(self, drain_seconds: float, drain: Callable[[], None] = lambda: None):
        self.asked: str | None = None
        self.signal: int | None = None
        self._drain_seconds = drain_seconds
        self.drain = drain
        self._deadline: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            # Ray has handlers of its own, which would not commit; nohup's SIG_IGN stays.
            before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self._before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def tick(self) -> None:
        """Do what a signal handler may not: talk to others."""
        if self.asked is None:
            return
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._drain_seconds
            logger.warning(
                "%s: finishing the batches in work, for %g s at most; once more ends at once",
                *(self.asked, self._drain_seconds),
            )
            try:
                self.drain()
            except Exception as error:
                logger.warning("the stages cannot be told to drain (%s); ending now", error)
                self._deadline = now
        if now >= self._deadline:
            self._deadline = float("inf")
            logger.warning("the time to drain is over")
            # To the main thread, which may wait for Ray.
            signal.pthread_kill(threading.main_thread().ident or 0, self.signal or signal.SIGINT)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.signal = number
        self.asked = signal.Signals(number).name
