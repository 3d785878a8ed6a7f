"""Which songs go together next: never over a limit, all alike, and nobody waits for ever."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.frames import num_latent_frames
from acestep.request import GenerationRequest
from serve.queue import Queue, Ticket
from serve.settings import QueueSection

SPEED = 1000.0
"""Frames that one engine makes in a second, in these tests."""
FRAMES = {seconds: num_latent_frames(seconds) for seconds in (1, 2, 5, 10, 30, 60, 120, 240)}


def request(seconds: float = 10, **fields: Any) -> GenerationRequest:
    return GenerationRequest.parse({"prompt": "any", "duration": seconds, "seed": 1, **fields})


REQUESTS = {(seconds, steps): request(seconds, num_inference_steps=steps) for seconds in FRAMES for steps in (8, 27)}


def queue_of(*tickets: Ticket, budget: int = 16_384, size: int = 16, **options: Any) -> Queue:
    queue = Queue(QueueSection(**options), frame_budget=budget, max_batch_size=size)
    for ticket in tickets:
        queue.add(ticket)
    return queue


def ids(batch: list[Ticket]) -> list[str]:
    return [ticket.id for ticket in batch]


waiting = st.lists(
    st.tuples(st.sampled_from(sorted(REQUESTS)), st.floats(0, 100, allow_nan=False)), min_size=1, max_size=40
)


@given(waiting, st.integers(1, 20_000), st.integers(1, 8), st.sampled_from([None, 0.5, 5.0]), st.floats(0, 5000))
def test_every_batch_keeps_to_the_limits_and_everybody_comes_once(
    songs: list[Any], budget: int, size: int, target: float | None, speed: float
) -> None:
    tickets = [Ticket(str(number), REQUESTS[what], at) for number, (what, at) in enumerate(songs)]
    queue = queue_of(*tickets, budget=budget, size=size, latency_target_seconds=target)
    queue.frames_per_second = speed
    taken: list[str] = []
    allowed = min(budget, int(target * speed)) if target and speed else budget
    for _ in songs:
        batch = queue.take(100.0)
        if not batch:
            break
        assert len(batch) <= size
        assert len({ticket.key for ticket in batch}) == 1
        longest = max(ticket.frames for ticket in batch)
        assert longest * len(batch) <= allowed or len(batch) == 1
        assert ids(batch) == ids(sorted(batch, key=lambda each: -each.frames))
        taken += ids(batch)
        assert queue.frames == sum(ticket.frames for ticket in tickets if ticket.id not in taken)
    assert sorted(taken) == sorted(ids(tickets))
    assert len(queue) == 0 and queue.frames == 0 and queue.take(200.0) == []


def test_a_song_over_the_budget_goes_alone() -> None:
    queue = queue_of(Ticket("long", request(240), 0), Ticket("same", request(240), 0), budget=100)
    assert [ids(queue.take(1)), ids(queue.take(1))] == [["long"], ["same"]]


def simulate(queue: Queue, stream: Any, wanted: str, *, patience: float) -> float:
    """One engine and a stream of (time, ticket): when `wanted` was taken."""
    now = 0.0
    ahead = next(stream)
    while now < patience:
        while ahead[0] <= now:
            queue.add(ahead[1])
            ahead = next(stream)
        batch = queue.take(now)
        if wanted in ids(batch):
            return now
        now += sum(ticket.frames for ticket in batch) / SPEED if batch else 0.01
    raise AssertionError(f"{wanted} still waits after {patience} s")


def stream_of(seconds: float, every: float, steps: int = 8) -> Any:
    for number in itertools.count():
        at = number * every
        yield at, Ticket(f"s{number}", request(seconds, num_inference_steps=steps), at)


@pytest.mark.parametrize("load", [0.5, 0.95, 1.5])
def test_a_long_song_is_not_starved_by_short_ones(load: float) -> None:
    queue = queue_of(Ticket("long", request(240), 0), max_wait_seconds=60)
    queue.frames_per_second = SPEED
    every = FRAMES[5] / SPEED / load
    assert simulate(queue, stream_of(5, every), "long", patience=200) < 70


def test_a_short_song_does_not_sit_behind_long_ones() -> None:
    queue = queue_of(*(Ticket(f"l{number}", request(240), 0) for number in range(20)), max_wait_seconds=600, size=1)
    queue.frames_per_second = SPEED
    short = Ticket("short", request(5, num_inference_steps=8), 1.0)
    stream = itertools.chain([(1.0, short)], ((1e9, None) for _ in itertools.count()))
    assert simulate(queue, stream, "short", patience=100) <= 2 * FRAMES[240] / SPEED


@pytest.mark.parametrize("load", [0.5, 0.95, 1.5])
def test_a_short_song_is_not_starved_by_long_ones(load: float) -> None:
    queue = queue_of(*(Ticket(f"l{number}", request(240), 0) for number in range(10)), size=2, max_wait_seconds=600)
    queue.frames_per_second = SPEED
    long_ones = stream_of(240, FRAMES[240] / SPEED / load)
    arrivals = itertools.chain(itertools.islice(long_ones, 2), [(4.0, Ticket("short", request(5), 4.0))], long_ones)
    assert simulate(queue, arrivals, "short", patience=200) < 4 + 2 * 2 * FRAMES[240] / SPEED


def test_who_waited_longer_than_anybody_should_goes_first() -> None:
    old = Ticket("old", request(240), 0)
    queue = queue_of(old, *(Ticket(f"s{number}", request(1), 1) for number in range(5)), max_wait_seconds=60)
    queue.frames_per_second = SPEED
    assert ids(queue.take(59.9))[0] != "old"
    queue = queue_of(*(Ticket(f"s{number}", request(1), 1) for number in range(5)), old, max_wait_seconds=60)
    assert "old" in ids(queue.take(60.0))


def test_mates_are_alike_in_length() -> None:
    lengths = {"first": 30, "near": 31, "short": 10, "long": 120}
    tickets = [Ticket(name, request(seconds), 0) for name, seconds in lengths.items() if name != "first"]
    queue = queue_of(Ticket("first", request(30), -100), *tickets, size=3)
    assert ids(queue.take(10)) == ["near", "first"], "a long one would make the pass dearer, a short one be padding"
    assert ids(queue.take(10)) == ["short"]
    assert ids(queue.take(10)) == ["long"]


def test_a_latency_target_makes_batches_smaller() -> None:
    tickets = [Ticket(str(number), request(10), 0) for number in range(10)]
    queue = queue_of(*tickets, latency_target_seconds=0.35)
    queue.frames_per_second = SPEED
    assert len(queue.take(1)) == int(350 // FRAMES[10]) == 3
    queue.frames_per_second = 0.0
    assert len(queue.take(1)) == 7, "while nothing is known of the speed, nothing is held back"
    impossible = queue_of(Ticket("one", request(240), 0), latency_target_seconds=0.001)
    impossible.frames_per_second = SPEED
    assert ids(impossible.take(1)) == ["one"], "alone, but made"


def test_positions_and_waits_follow_arrival() -> None:
    queue = queue_of(Ticket("b", request(10), 2), Ticket("a", request(5), 1), Ticket("c", request(10), 3))
    assert [queue.position(id) for id in ("a", "b", "c", "missing")] == [1, 2, 3, None]
    assert queue.frames_before("c") == FRAMES[5] + FRAMES[10]
    assert queue.expected_wait(1000, 1) is None
    queue.frames_per_second = SPEED
    assert queue.expected_wait(1000, 0) is None
    assert queue.expected_wait(1000, 2) == 0.5
    removed = queue.remove("a")
    assert removed is not None and removed.id == "a" and queue.remove("a") is None
    assert queue.position("b") == 1 and "a" not in queue and len(queue) == 2


def test_one_that_comes_back_keeps_its_place() -> None:
    queue = queue_of(Ticket("a", request(10), 1), Ticket("b", request(10, num_inference_steps=8), 2))
    (first,) = queue.take(10)
    queue.add(first)
    assert queue.position(first.id) == 1


def test_room_is_counted_in_frames_and_in_songs() -> None:
    queue = queue_of(max_frames=500, max_songs=3)
    long, short = request(240), request(5)
    assert queue.has_room_for([long, long]), "an empty queue takes anything"
    queue.add(Ticket("a", short, 0))
    assert queue.has_room_for([short, short]) and not queue.has_room_for([short] * 3)
    assert not queue.has_room_for([long])
    with queue.keeping_room_for([short, short]):
        assert not queue.has_room_for([short]), "somebody is about to take it"
    assert queue.has_room_for([short, short])


def test_room_that_is_kept_counts_in_an_empty_queue_too() -> None:
    queue = queue_of(max_songs=1)
    with suppress(RuntimeError), queue.keeping_room_for([request()]):
        assert not queue.has_room_for([request()])
        raise RuntimeError("it could not be written down")
    assert queue.has_room_for([request()])
