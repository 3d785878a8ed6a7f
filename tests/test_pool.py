"""Engines by what they say, and what they leave behind when they say nothing more."""

from __future__ import annotations

from serve.pool import Pool
from serve.queue import Ticket
from tests.test_queue import FRAMES, request


def ticket(id: str) -> Ticket:
    return Ticket(id, request(10), 0)


def test_an_engine_that_is_silent_for_too_long_is_dead() -> None:
    pool = Pool(timeout_seconds=10)
    pool.hear("a", 0)
    batch = pool.begin("b", [ticket("1"), ticket("2")], 5)
    assert pool.engines == 2 and pool.frames == 2 * FRAMES[10]
    assert pool.bury(10) == [] and pool.engines == 2
    assert pool.bury(10.1) == [] and pool.engines == 1, "a had nothing in its hands"
    assert pool.bury(15.1) == [batch] and pool.engines == 0
    assert pool.bury(30) == [] and pool.frames == 0


def test_a_batch_that_its_engine_does_not_speak_of_is_lost() -> None:
    """The engine lives, but the answer with this work never reached it."""
    pool = Pool(timeout_seconds=10)
    lost, held = pool.begin("a", [ticket("1")], 0), pool.begin("a", [ticket("2")], 0)
    for now in range(1, 12):
        pool.hear("a", now, [held.id, "unknown"])
    assert pool.bury(11) == [lost] and pool.engines == 1
    assert pool.end(held.id) is held and pool.end(held.id) is None


def test_one_that_goes_leaves_its_own_behind() -> None:
    pool = Pool(timeout_seconds=10)
    first, second = pool.begin("a", [ticket("1")], 0), pool.begin("b", [ticket("2")], 0)
    assert pool.leave("a") == [first] and pool.engines == 1
    assert list(pool.batches) == [second.id]
    assert pool.leave("never seen") == []


def test_work_that_nobody_waits_for_does_not_count() -> None:
    pool = Pool(timeout_seconds=10)
    pool.begin("a", [ticket("1")], 0, offline="x")
    assert pool.frames == 0
