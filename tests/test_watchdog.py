"""Deadlines of batches: from the measured speed, polite at first, and final for what hangs."""

from __future__ import annotations

import time

import pytest

from acestep.errors import BatchTimeoutError
from pipelines.speed import Speed
from pipelines.watchdog import UNMEASURED_SECONDS, Watchdog
from pipelines.work import Work

WORK = Work(denoise=1.0)


def watchdog_of(given_up: list[str], *, seconds: float = 0.02, batches: int = 5) -> Watchdog:
    speed = Speed("cpu x2", (seconds, 0.0, 0.0), spread=0.0, doubt=0.0, basis="a test", batches=batches)
    return Watchdog(speed, factor=5, min_seconds=0.05, give_up=given_up.append)


def test_a_deadline_is_so_many_times_what_was_measured() -> None:
    watchdog = watchdog_of([])
    assert watchdog.deadline(WORK) == pytest.approx(0.1)
    assert watchdog.deadline(WORK.times(4)) == pytest.approx(0.4)
    assert watchdog.deadline(WORK.times(0.1)) == 0.05
    assert watchdog_of([], batches=0).deadline(WORK) == UNMEASURED_SECONDS


def test_a_slow_batch_that_ends_well_teaches_patience() -> None:
    watchdog = watchdog_of([])
    with watchdog.watch(WORK) as callback:
        time.sleep(0.06)
        callback(1, 2)
    assert 0.3 <= watchdog.deadline(WORK) < 0.5


def test_a_batch_past_its_deadline_ends_between_two_steps_and_teaches_nothing() -> None:
    given_up: list[str] = []
    watchdog = watchdog_of(given_up)
    with watchdog.watch(WORK) as callback:
        time.sleep(0.12)
        with pytest.raises(BatchTimeoutError, match="it was at step 3 of 9"):
            callback(3, 9)
    assert watchdog.deadline(WORK) == pytest.approx(0.1)
    assert not given_up


def test_what_hangs_is_given_up() -> None:
    given_up: list[str] = []
    with watchdog_of(given_up).watch(WORK):
        time.sleep(0.5)
    assert len(given_up) == 1
    assert given_up[0].endswith("it hangs")
