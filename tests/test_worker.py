"""The worker between an engine and a gateway that may be slow, gone or started anew."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acestep.audio_format import AudioFormat
from acestep.request import GenerationRequest
from pipelines.storage import Storage
from serve import worker as worker_module
from serve.engine import engine_actor
from serve.work import Assignment, Delivery, Order
from serve.worker import Worker
from tests.running_server import serve_config


class Gateway:
    """Gives out assignments in their order, and remembers what it is told."""

    def __init__(self, *assignments: Assignment):
        self.waiting = list(assignments)
        self.delivered: list[Delivery] = []
        self.reports: list[Any] = []
        self.cancelled: set[str] = set()
        self.left: list[str] = []
        self.fails = 0
        """So many calls of `delivered` do not reach it."""

    def __call__(self, method: str, *arguments: Any) -> Any:
        return getattr(self, f"on_{method}")(*arguments)

    def on_take(self, engine: str) -> Assignment | None:
        if self.waiting:
            return self.waiting.pop(0)
        time.sleep(0.02)
        return None

    def on_delivered(self, engine: str, batch: str, deliveries: list[Delivery]) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise ConnectionError
        self.delivered += deliveries

    def on_report(self, report: Any) -> set[str]:
        self.reports.append(report)
        return set(self.cancelled)

    def on_measured(self, frames: int, seconds: float) -> None:
        pass

    def on_left(self, engine: str) -> None:
        self.left.append(engine)


def assignment(batch: str, *prompts: str, source: str | None = None) -> Assignment:
    form = AudioFormat(format="wav")
    requests = [
        GenerationRequest(id=f"{batch}/{index}", prompt=prompt, duration=1, seed=index)
        for index, prompt in enumerate(prompts)
    ]
    return Assignment(batch, [Order(each, form, source, batch, index) for index, each in enumerate(requests)])


Start = Callable[..., tuple[Worker, Gateway]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(worker_module, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(worker_module, "RETRY_SECONDS", 0.02)
    workers: list[Worker] = []

    def started(*assignments: Assignment) -> tuple[Worker, Gateway]:
        config, gateway = serve_config(tmp_path), Gateway(*assignments)
        worker = Worker(engine_actor(config), config, Storage(str(tmp_path)), gateway, "e1")
        workers.append(worker)
        worker.start()
        return worker, gateway

    yield started
    for worker in workers:
        worker.stop()


def until(is_so: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def test_every_song_is_delivered_once_and_nothing_stays_in_hand(start: Start, tmp_path: Path) -> None:
    batches = [assignment(f"b{number}", *["song"] * 8) for number in range(6)]
    worker, gateway = start(*batches)
    until(lambda: len(gateway.delivered) >= 48)
    until(lambda: not worker._hands)
    assert set(Counter(delivery.id for delivery in gateway.delivered).values()) == {1}
    assert all(delivery.error is None for delivery in gateway.delivered)
    assert len(Storage(str(tmp_path)).keys("audio")) == 48


def test_what_cannot_be_told_is_told_later(start: Start) -> None:
    """The gateway is started anew while songs are put away."""
    worker, gateway = start()
    gateway.fails = 20
    gateway.waiting.append(assignment("b", "song", "song", "song"))
    until(lambda: len(gateway.delivered) == 3)
    until(lambda: not worker._hands)


def test_a_worker_that_is_to_go_finishes_first(start: Start) -> None:
    worker, gateway = start(assignment("b", "song slow:0.5", "song"), assignment("never", "song"))
    until(lambda: worker._hands)
    gateway.waiting.clear()
    assert worker.drain(10)
    assert [delivery.error for delivery in gateway.delivered] == [None, None] and gateway.left == ["e1"]


def test_one_that_has_no_time_to_finish_fails_nobody(start: Start) -> None:
    worker, gateway = start(assignment("b", "song slow:0.6", "song"))
    until(lambda: worker._hands)
    assert not worker.drain(0.05) and gateway.left == []
    until(lambda: not worker._hands)
    assert not [delivery for delivery in gateway.delivered if delivery.error], "another engine would make them"


def test_songs_that_nobody_wants_leave_and_are_forgotten(start: Start) -> None:
    worker, gateway = start(assignment("b", "song slow:30", "song"))
    gateway.cancelled = {"b/0", "of another batch"}
    until(lambda: len(gateway.delivered) == 2)
    errors = {delivery.id: delivery.error for delivery in gateway.delivered}
    assert errors["b/0"] is not None and errors["b/0"][0] == "cancelled" and errors["b/1"] is None
    until(lambda: not worker._hands)
    time.sleep(0.1)
    assert not worker._cancelled, "or it would grow for ever"


def test_steps_are_reported(start: Start) -> None:
    _, gateway = start(assignment("b", "song slow:0.5"))
    until(lambda: gateway.delivered)
    steps = [report.step for report in gateway.reports if report.batch == "b"]
    assert steps == sorted(steps) and len(set(steps)) > 2
    assert all(report.batches == {"b": ["b/0"]} for report in gateway.reports)


def test_a_source_that_is_gone_is_the_requests_own_fault(start: Start) -> None:
    _, gateway = start(assignment("b", "song", source="uploads/gone.wav"), assignment("c", "song"))
    until(lambda: len(gateway.delivered) == 2)
    errors = {delivery.id: delivery.error for delivery in gateway.delivered}
    assert errors["b/0"] is not None and errors["b/0"][0] == "input" and errors["c/0"] is None


def test_one_that_is_stopped_ends_its_threads(start: Start) -> None:
    before = threading.active_count()
    worker, _ = start(assignment("b", "song slow:0.3"))
    until(lambda: worker._hands)
    worker.stop()
    until(lambda: not any(thread.is_alive() for thread in worker._threads))
    assert worker.is_alive, "that is not what Serve need replace it for"
    assert threading.active_count() <= before + worker_module.DELIVERERS
