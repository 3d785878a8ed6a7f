"""`GenerateStage`: batches in, songs out, one by one; an `EngineActor` as Ray Data maps over it.

Two batches may be here at the same time: one in the engine, the other on its way out, being judged on the CPU. A lock
around the engine alone keeps it busy meanwhile, and a batch of which songs must be made again takes its turn.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from acestep.errors import ACEStepError
from acestep.frames import LATENTS_KEY
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from pipelines import layout
from pipelines.actors import EngineActor
from pipelines.attempts import Attempts, Outcome, Verdict
from pipelines.errors import Stop, StorageError
from pipelines.padding import Padding
from pipelines.schema import pack, requests_of, unpack
from pipelines.sections import BestOfSection, QualitySection, StoppingSection
from pipelines.speed import SpeedKey, SpeedTable
from pipelines.storage import Storage
from pipelines.watchdog import Watchdog
from pipelines.work import Work

logger = logging.getLogger(__name__)

GENERATED = pa.schema(
    [
        pa.field("batch", pa.string()),
        pa.field("bucket", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("request", pa.binary()),
        pa.field("outcome", pa.string()),
        pa.field("waveform", pa.large_binary()),
        pa.field("latents", pa.large_binary()),
        pa.field("actor", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("stop", pa.string()),
    ]
)
"""One song on its way to be encoded: its planned row packed, float32 samples `[2, W]` or none, and the rest as JSON.

Samples beside an outcome that is a failure are those of a song that failed the quality gate. `engine` is JSON of what
the engine did for the whole batch, on the first song's row.
"""

_FIRST_BATCHES = 8
"""More than wait for one engine."""
_LEAVING_SECONDS = 1.0
"""For Ray to hear that the last batch is over; otherwise it is made again."""


class GenerateStage:
    """Holds an engine for as long as the execution lasts.

    An engine that cannot be loaded stops the job with the reason: raised here, Ray would say it in a page of its own.

    Args:
        run, storage: where the last words of a process that has to end are left.
        speed_key: what to look up speeds by, but for the device, which only this process knows.
        is_draining: whether the job is to end; batches that have not begun are left for another time then.
        recycle_after: replace this process after so many batches.
        arguments: of `EngineActor`.
    """

    def __init__(
        self,
        *,
        run: str,
        storage: Storage,
        quality: QualitySection,
        best_of: BestOfSection,
        stopping: StoppingSection,
        speed_key: SpeedKey,
        is_draining: Callable[[], bool] = lambda: False,
        recycle_after: int | None = None,
        keep_latents: bool = False,
        **arguments: Any,
    ):
        self.name = f"{os.uname().nodename}-{os.getpid()}-{time.time_ns()}"
        self.stop: Stop | None = None
        self._run = run
        self._storage = Storage(storage.url, storage.options, attempts=2)
        self._is_draining = is_draining
        self._recycle_after = recycle_after
        self._keep_latents = keep_latents
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._inside = 0
        self._batches = 0
        self._batch = ""
        self._lora: str | None = None
        self._ended_at: float | None = None
        try:
            self._attempts = Attempts(quality, best_of)
            self.actor = EngineActor(**arguments)
            self.actor.last_words = self._last_words
            self._stopping = stopping
            self._speed_key = dataclasses.replace(speed_key, device=self.actor.device_name + speed_key.device)
            self._speeds = SpeedTable.load(self._storage)
            self._watchdog = self._new_watchdog()
        except Exception as error:
            logger.exception("the engine cannot be loaded")
            ours = error.error_class if isinstance(error, ACEStepError) else "device"
            error_class = "input" if isinstance(error, ValueError) else ours
            self.stop = Stop(error_class, f"the engine cannot be loaded on {os.uname().nodename}: {error}")

    def _new_watchdog(self) -> Watchdog:
        self._speed = self._speeds.find(self._speed_key)
        return Watchdog(
            self._speed,
            factor=self._stopping.batch_timeout_factor,
            min_seconds=max(
                self._stopping.batch_timeout_min_seconds,
                # An engine that others have, too, may be busy with them for long, and nothing is wrong.
                getattr(self.actor.engine, "patience_seconds", 0.0),
            ),
            give_up=lambda reason: self.actor.die("timeout", reason),
        )

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One planned batch in (a row of `cutting.BATCH`), its songs out, one by one."""
        for row in batch.to_pylist():
            if stop := row["stop"] or (self.stop and self.stop.text()):
                row["stop"] = stop
                yield self._row(row, 0, b"", {}, None)
                continue
            if self._is_draining():
                continue
            with self._counting:
                self._batches += 1
                over = self._recycle_after is not None and self._batches > self._recycle_after
                self._inside += not over
            if over:
                self._leave()
            try:
                yield from self._hung_before(row) or self._songs(row)
            except Exception:  # Ray would drop the batch without a word.
                row["stop"] = Stop("internal", traceback.format_exc()).text()
                yield self._row(row, 0, b"", {}, None)
            finally:
                with self._counting:
                    self._inside -= 1

    def _leave(self) -> NoReturn:
        """End this process, for another one to take its place, once what it works on is handed over."""
        while self._inside:
            time.sleep(0.05)
        time.sleep(_LEAVING_SECONDS)
        logger.info("this process made %d batches and is replaced", self._recycle_after)
        logging.shutdown()
        os._exit(1)

    def _hung_before(self, row: dict[str, Any]) -> Iterator[pa.Table] | None:
        """What becomes of a batch on which a process hung: a single song fails, more are left to be tried one by one.

        A batch that killed its process comes to the one in its place, among its first.
        """
        if self._batches > _FIRST_BATCHES:
            return None
        try:
            words = json.loads(self._storage.get(layout.last_words_key(self._run, row["batch"])))
        except (FileNotFoundError, StorageError, ValueError):
            return None
        if words["error_class"] != "timeout":
            return None
        plan = unpack(row["requests"])
        if plan.num_rows > 1:
            return iter(())
        verdict = Verdict(
            GenerationFailure(request=requests_of(plan)[0], error_class="timeout", message=words["message"])
        )
        facts = _facts(verdict.outcome.request, verdict, 0.0, self.actor.device_name)
        return iter([self._row(row, 1, pack(plan), facts, None)])

    def _songs(self, row: dict[str, Any]) -> Iterator[pa.Table]:
        plan = unpack(row["requests"])
        requests, parents = requests_of(plan), plan.column("parent").to_pylist()
        work = _BatchWork()
        verdicts = self._attempts.make(requests, parents, lambda asked: self._made(asked, row["batch"], work))
        frames = sum(request.num_frames for request in requests)
        engine: str | None = json.dumps(work.facts(self.actor, len(requests)))
        for position, (request, verdict) in enumerate(zip(requests, verdicts, strict=True)):
            assert verdict.outcome.request.id == request.id, "verdicts in the order of the requests"
            facts = _facts(request, verdict, work.seconds * request.num_frames / frames, self.actor.device_name)
            song = verdict.outcome if isinstance(verdict.outcome, GenerationResult) else verdict.rejected
            latents = None
            if self._keep_latents and isinstance(verdict.outcome, GenerationResult):
                kept = np.ascontiguousarray(np.asarray(verdict.outcome.latents, dtype=np.float32))
                latents = save({LATENTS_KEY: kept})
            waveform = _packed(song) if song is not None else None
            yield self._row(row, len(requests), pack(plan.slice(position, 1)), facts, waveform, latents, engine)
            engine = None

    def _made(self, requests: list[GenerationRequest], batch: str, work: _BatchWork) -> Sequence[Outcome]:
        outcomes = self._generate(requests, batch, work)
        if len(requests) > 1 and all(map(_timed_out, outcomes)):
            logger.warning("trying the songs of batch %s one by one", batch)
            outcomes = [outcome for request in requests for outcome in self._generate([request], batch, work)]
        return outcomes

    def _generate(self, requests: list[GenerationRequest], batch: str, work: _BatchWork) -> Sequence[Outcome]:
        with self._lock:
            started = time.monotonic()
            if self._ended_at is not None:
                work.waited += started - self._ended_at
            work.switches += self._lora != requests[0].lora
            self._lora, self._batch = requests[0].lora, batch
            cost = Work.of(requests)
            with self._watchdog.watch(cost) as callback:
                outcomes = self.actor.generate(requests, callback)
            self._ended_at = time.monotonic()
            whole = all(isinstance(outcome, GenerationResult) for outcome in outcomes)
            if whole and not self._speed.is_measured:  # One batch says more than nothing.
                self._speeds.observe(self._speed_key, cost, self._ended_at - started, len(requests))
                self._watchdog = self._new_watchdog()
        work.whole &= whole
        work.calls += 1
        work.seconds += self._ended_at - started
        work.done += cost
        work.padding.count(requests)
        logger.info("batch %s: %d songs in %.1f s", batch, len(requests), self._ended_at - started)
        return outcomes

    def _last_words(self, error_class: str, reason: str) -> None:
        text = json.dumps({"error_class": error_class, "message": reason, "process": self.name})
        self._storage.put(layout.last_words_key(self._run, self._batch), text.encode())

    def _row(
        self,
        batch: dict[str, Any],
        size: int,
        request: bytes,
        facts: dict[str, Any],
        waveform: pa.Array | None,
        latents: bytes | None = None,
        engine: str | None = None,
    ) -> pa.Table:
        columns = {
            "batch": [batch["batch"]],
            "bucket": [batch["bucket"]],
            "size": [size],
            "request": [request],
            "outcome": [json.dumps(facts)],
            "waveform": pa.nulls(1, pa.large_binary()) if waveform is None else waveform,
            "latents": [latents],
            "actor": [self.name],
            "engine": [engine],
            "stop": [batch["stop"]],
        }
        return pa.table(columns, schema=GENERATED)


class _BatchWork:
    """What the engine did for one batch."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.done = Work()
        self.padding = Padding()
        self.switches = 0
        self.whole = True
        """Whether nothing in it failed, so that what it took says how fast this engine is."""

    def facts(self, actor: EngineActor, songs: int) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "waited": self.waited,
            "work": self.done.parts,
            "padding": (self.padding.padded, self.padding.computed),
            "calls": self.calls,
            "switches": self.switches,
            "whole": self.whole,
            "songs": songs,
            "device": actor.device_name,
            "load_seconds": actor.load_seconds,
        }


def _timed_out(outcome: Outcome) -> bool:
    return isinstance(outcome, GenerationFailure) and outcome.error_class == "timeout"


def _packed(song: GenerationResult) -> pa.Array:
    samples = np.ascontiguousarray(np.asarray(song.waveform, dtype=np.float32))
    ends = pa.py_buffer(np.array([0, samples.nbytes], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(samples.reshape(-1))])


def _facts(request: GenerationRequest, verdict: Verdict, seconds: float, device: str) -> dict[str, Any]:
    """What the row of a song will say, beside its plan."""
    song = verdict.outcome if isinstance(verdict.outcome, GenerationResult) else verdict.rejected
    facts: dict[str, Any] = {
        "generate_seconds": seconds,
        "attempt": verdict.attempt,
        "requested_seed": request.seed,
        "evidence": json.dumps(verdict.evidence) if verdict.evidence else None,
        "device": device,
    }
    if isinstance(verdict.outcome, GenerationFailure):
        facts |= {"error_class": verdict.outcome.error_class, "message": verdict.outcome.message}
    if song is None:
        return facts
    measures = verdict.assessment.measures if verdict.assessment else {}
    return facts | {
        "seed": song.seed,
        "sample_rate": song.sample_rate,
        "quality": json.dumps(measures),
        "acoustic_hash": verdict.assessment.acoustic_hash if verdict.assessment else None,
        "score": verdict.score,
        "candidates": json.dumps(verdict.candidates) if verdict.candidates else None,
        "model": song.model.name,
        "model_fingerprint": song.model.fingerprint,
        "dtype": song.model.dtype,
        "random_weights": song.model.random_weights,
        "timings": song.timings,
        "batch_size": song.batch_size,
        "warnings": list(song.warnings),
        "tags": song.tags(),
    }
