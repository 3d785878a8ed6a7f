"""Signals: the first drains, the second ends at once, and time for draining runs out."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pipelines.stopping import Stopping


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """What a shell starts in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_asks_and_the_second_ends() -> None:
    drained: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    with Stopping(60, lambda: drained.append(True)) as stopping:
        stopping.tick()
        assert (stopping.asked, drained) == (None, [])
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stopping.asked, stopping.signal) == ("SIGTERM", signal.SIGTERM)
        stopping.tick()
        stopping.tick()
        assert drained == [True]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stopping.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("breaks", [False, True])
def test_the_time_to_drain_ends(breaks: bool) -> None:
    def drain() -> None:
        if breaks:
            raise RuntimeError("nobody there")

    def ticks(stopping: Stopping) -> None:
        while not over.wait(0.02):
            stopping.tick()

    over = threading.Event()
    with Stopping(60 if breaks else 0.3, drain) as stopping:
        thread = threading.Thread(target=ticks, args=[stopping])
        thread.start()
        os.kill(os.getpid(), signal.SIGINT)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)
        assert time.monotonic() - started < 5
        over.set()
        thread.join()
