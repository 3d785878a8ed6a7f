"""`Worker`: an engine that asks a gateway for work for as long as it lives. Knows neither Ray nor HTTP.

Three kinds of threads, so that the engine only waits when there is nothing to do: two take turns at asking and
generating, and judge what they made while it is the other's turn; one says how far it is and hears who was cancelled;
and some encode and put away what was made.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from pipelines.actors import EngineActor
from pipelines.attempts import Attempts, Outcome, Verdict
from pipelines.sections import BestOfSection
from pipelines.speed import SpeedKey, SpeedTable
from pipelines.storage import Storage
from pipelines.watchdog import Watchdog
from pipelines.work import Work
from serve.delivering import Deliverer
from serve.settings import ServeConfig
from serve.source_files import SourceFiles
from serve.work import Assignment, Delivery, Report

logger = logging.getLogger(__name__)

Call = Callable[..., Any]
"""Calls a method of the gateway by name and waits for the answer; raises when it cannot be reached."""

BEAT_SECONDS = 0.25
RETRY_SECONDS = 0.5
DELIVERERS = 2
CALLS = 2
"""Batches at a time: one in the engine, one being judged."""
_DELIVERY_ATTEMPTS = 120
_SOURCE_GONE = "source: it is not there any more; it was deleted or has expired"


class _Turn:
    """A batch's hold on the engine: from before it is asked for, so that it is formed when the engine is free."""

    def __init__(self, lock: threading.Lock):
        self._lock, self._held = lock, False
        self.seconds = 0.0
        """That the engine spent on the batch."""

    def begin(self) -> None:
        """Wait for the engine, unless it is this batch's already."""
        if not self._held:
            self._lock.acquire()
            self._held = True

    def end(self) -> None:
        """Let the next batch have it."""
        if self._held:
            self._held = False
            self._lock.release()


class Worker:
    """See the module.

    Args:
        name: of this engine, among all that the gateway ever hears of.
    """

    def __init__(self, actor: EngineActor, config: ServeConfig, storage: Storage, call: Call, name: str):
        self.name = name
        self._actor, self._config, self._call = actor, config, call
        self._attempts = Attempts(config.quality, BestOfSection())
        self._deliverer = Deliverer(config, storage)
        self._sources = SourceFiles(storage)
        self._speeds = SpeedTable.load()
        self._speed_key = SpeedKey(
            actor.engine.model.name, actor.engine.model.fingerprint, actor.device_name, config.dtype
        )
        self._hands: dict[str, list[str]] = {}
        """Songs by batch that are neither delivered nor cancelled."""
        self._cancelled: set[str] = set()
        self._lock = threading.Lock()
        self._running: tuple[str | None, int, int] = (None, 0, 0)
        self._stop = threading.Event()
        self._abandoned = False
        self._pool = ThreadPoolExecutor(DELIVERERS, thread_name_prefix="deliver")
        self._engine = threading.Lock()
        self._workers = [threading.Thread(target=self._work, name="work", daemon=True) for _ in range(CALLS)]
        self._threads = [*self._workers, threading.Thread(target=self._beat, name="beat", daemon=True)]

    def start(self) -> None:
        """Begin asking for work."""
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """False when it has come to an end that nobody asked for."""
        return self._stop.is_set() or all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End with what is in hand unfinished: there is nobody left to tell."""
        self._abandoned = True
        self._stop.set()
        self._hands.clear()

    def drain(self, seconds: float) -> bool:
        """Take no more work, finish what is in hand, and say goodbye; False if it took too long."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        is_idle = not any(worker.is_alive() for worker in self._workers)
        if is_idle:  # Else its songs could not be delivered, and would count as failed.
            self._pool.shutdown(wait=False)
        while self._hands and time.monotonic() < deadline:
            time.sleep(0.05)
        is_done = is_idle and not self._hands
        if is_done:
            self._call("left", self.name)
        return is_done

    def _work(self) -> None:
        while not self._stop.is_set():
            turn = _Turn(self._engine)
            turn.begin()
            try:
                self._take(turn)
            finally:
                turn.end()

    def _take(self, turn: _Turn) -> None:
        if self._stop.is_set():
            return
        try:
            assignment = self._call("take", self.name)
        except Exception as error:
            if not self._abandoned:
                logger.warning("the gateway cannot be reached (%s); asking again", type(error).__name__)
                time.sleep(RETRY_SECONDS)
            return
        if assignment is None:
            return
        try:
            self._make(assignment, turn)
        except Exception:
            logger.exception("batch %s failed", assignment.batch)
            self._give_up(assignment, "internal", "the server failed on this song; its log says why")

    def _give_up(self, assignment: Assignment, error_class: str, message: str) -> None:
        if assignment.offline is not None:
            failed = [
                GenerationFailure(request=each, error_class=error_class, message=message) for each in assignment.offline
            ]
            self._hand_over_offline(assignment.batch, failed)
        else:
            ids = [str(order.request.id) for order in assignment.orders]
            self._hand_over(assignment.batch, [Delivery(id, error=(error_class, message)) for id in ids])

    def _make(self, assignment: Assignment, turn: _Turn) -> None:
        if assignment.offline is not None:
            self._make_offline(assignment, turn)
            return
        ids = [str(order.request.id) for order in assignment.orders]
        self._hands[assignment.batch] = list(ids)
        try:
            requests = [self._sources.located(order.request, order.source) for order in assignment.orders]
        except FileNotFoundError:  # Songs with a source come alone.
            self._hand_over(assignment.batch, [Delivery(id, error=("input", _SOURCE_GONE)) for id in ids])
            return
        verdicts = self._attempts.make(
            requests, [None] * len(requests), lambda asked: self._generate(list(asked), assignment.batch, turn)
        )
        for order, verdict in zip(assignment.orders, verdicts, strict=True):
            self._pool.submit(self._deliver, assignment.batch, order, verdict)
        self._measure(requests, turn.seconds)

    def _generate(self, requests: list[GenerationRequest], batch: str, turn: _Turn) -> Sequence[Outcome]:
        turn.begin()
        started = time.monotonic()
        try:
            return self._generated(requests, batch)
        finally:
            turn.seconds += time.monotonic() - started
            self._running = (None, 0, 0)
            turn.end()

    def _generated(self, requests: list[GenerationRequest], batch: str) -> Sequence[Outcome]:
        def progress(done: int, total: int) -> None:
            self._running = (batch, done, total)
            watched(done, total)

        def cancelled() -> list[int]:
            if not self._cancelled:
                return []
            return [position for position, request in enumerate(requests) if request.id in self._cancelled]

        cost, started = Work.of(requests), time.monotonic()
        speed = self._speeds.find(self._speed_key)
        queue = self._config.queue
        watchdog = Watchdog(
            speed,
            factor=queue.batch_timeout_factor,
            min_seconds=queue.batch_timeout_min_seconds,
            give_up=lambda reason: self._actor.die("timeout", reason),
        )
        self._running = (batch, 0, 0)
        with watchdog.watch(cost) as watched:
            outcomes = self._actor.generate(requests, progress, cancelled)
        if all(isinstance(outcome, GenerationResult) for outcome in outcomes):
            self._speeds.observe(self._speed_key, cost, time.monotonic() - started, len(requests))
        return outcomes

    def _make_offline(self, assignment: Assignment, turn: _Turn) -> None:
        assert assignment.offline is not None
        self._hands[assignment.batch] = []
        try:
            outcomes = self._generate(assignment.offline, assignment.batch, turn)
            self._pool.submit(self._hand_over_offline, assignment.batch, outcomes)
        except BaseException:
            self._hands.pop(assignment.batch, None)
            raise
        self._measure(assignment.offline, turn.seconds)

    def _measure(self, requests: Sequence[GenerationRequest], seconds: float) -> None:
        """Behind the songs: nobody waits for this."""
        self._pool.submit(self._tell, "measured", sum(request.num_frames for request in requests), seconds)

    def _deliver(self, batch: str, order: Any, verdict: Verdict) -> None:
        id = str(order.request.id)
        if id in self._cancelled:
            delivery = Delivery(id, error=("cancelled", "cancelled"))
        else:
            delivery = self._deliverer.delivery(order, verdict, self._sources)
        self._hand_over(batch, [delivery])

    def _hand_over(self, batch: str, deliveries: list[Delivery]) -> None:
        for _ in range(_DELIVERY_ATTEMPTS):  # A gateway that is started anew takes a while.
            if self._abandoned:
                return
            try:
                self._call("delivered", self.name, batch, deliveries)
                break
            except Exception as error:
                logger.warning("the gateway cannot be told of %s (%s)", deliveries[0].id, type(error).__name__)
                time.sleep(RETRY_SECONDS)
        over = {delivery.id for delivery in deliveries}
        with self._lock:  # Two deliverers may hand over songs of one batch.
            left = [id for id in self._hands.get(batch, []) if id not in over]
            if left:
                self._hands[batch] = left
            else:
                self._hands.pop(batch, None)
            self._cancelled -= over

    def _hand_over_offline(self, batch: str, outcomes: Sequence[Outcome]) -> None:
        try:
            self._tell("offline_delivered", self.name, batch, [_portable(outcome) for outcome in outcomes])
        finally:
            self._hands.pop(batch, None)

    def _tell(self, method: str, *arguments: Any) -> None:
        try:
            self._call(method, *arguments)
        except Exception as error:
            logger.warning("the gateway cannot be told (%s: %s)", method, type(error).__name__)

    def _beat(self) -> None:
        while not self._abandoned and (self._hands or not self._stop.is_set()):
            time.sleep(BEAT_SECONDS)
            if not self._hands:  # Asking for work says as much.
                continue
            batch, step, steps = self._running
            hands = {batch: list(ids) for batch, ids in list(self._hands.items())}
            try:
                unwanted = set(self._call("report", Report(self.name, hands, batch, step, steps)))
            except Exception as error:
                logger.debug("the gateway cannot be reached (%s)", type(error).__name__)
                continue
            with self._lock:  # What was delivered while the gateway answered would stay for ever.
                self._cancelled |= unwanted.intersection(id for ids in list(self._hands.values()) for id in ids)


def _portable(outcome: Outcome) -> Outcome:
    """With arrays instead of tensors: whoever gets it need not have torch, and shared memory holds it once."""
    if not isinstance(outcome, GenerationResult):
        return outcome
    waveform: Any = outcome.waveform
    latents: Any = outcome.latents
    arrays = {
        name: value.numpy() for name, value in (("waveform", waveform), ("latents", latents)) if hasattr(value, "numpy")
    }
    return dataclasses.replace(outcome, **arrays)
