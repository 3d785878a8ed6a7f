"""`GenerateStage`: batches in, songs out, one by one; an `EngineActor` as Ray Data maps over it."""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from acestep.errors import ACEStepError
from acestep.frames import LATENTS_KEY
from acestep.result import GenerationFailure, GenerationResult
from pipelines.actors import EngineActor
from pipelines.errors import Stop
from pipelines.schema import pack, requests_of, unpack

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
        pa.field("load_seconds", pa.float64()),
        pa.field("stop", pa.string()),
    ]
)
"""One song on its way to be encoded: its planned row packed, float32 samples `[2, W]` or none, and the rest as JSON."""


class GenerateStage:
    """Holds an engine for as long as the execution lasts; takes the arguments of `EngineActor`.

    An engine that cannot be loaded stops the job with the reason: raised here, Ray would say it in a page of its own.
    """

    def __init__(self, keep_latents: bool = False, **arguments: Any):
        self.keep_latents = keep_latents
        self.name = f"{os.uname().nodename}-{os.getpid()}-{time.time_ns()}"
        self.stop: Stop | None = None
        try:
            self.actor = EngineActor(**arguments)
        except Exception as error:
            logger.exception("the engine cannot be loaded")
            ours = error.error_class if isinstance(error, ACEStepError) else "device"
            error_class = "input" if isinstance(error, ValueError) else ours
            self.stop = Stop(error_class, f"the engine cannot be loaded on {os.uname().nodename}: {error}")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """One planned batch in (a row of `cutting.BATCH`), its songs out, one by one."""
        for row in batch.to_pylist():
            if stop := row["stop"] or (self.stop and self.stop.text()):
                row["stop"] = stop
                yield self._row(row, 0, b"", {}, None)
                continue
            try:
                yield from self._songs(row)
            except Exception:  # Ray would drop the batch without a word.
                row["stop"] = Stop("internal", traceback.format_exc()).text()
                yield self._row(row, 0, b"", {}, None)

    def _songs(self, row: dict[str, Any]) -> Iterator[pa.Table]:
        plan = unpack(row["requests"])
        requests = requests_of(plan)
        started = time.perf_counter()
        outcomes = self.actor.generate(requests)
        seconds = time.perf_counter() - started
        frames = sum(request.num_frames for request in requests)
        for position, (request, outcome) in enumerate(zip(requests, outcomes, strict=True)):
            assert outcome.request.id == request.id, "outcomes in the order of the requests"
            facts, waveform = _facts(outcome, seconds * request.num_frames / frames)
            latents = None
            if self.keep_latents and isinstance(outcome, GenerationResult):
                latents = save({LATENTS_KEY: np.ascontiguousarray(np.asarray(outcome.latents, dtype=np.float32))})
            yield self._row(row, len(requests), pack(plan.slice(position, 1)), facts, waveform, latents)

    def _row(
        self,
        batch: dict[str, Any],
        size: int,
        request: bytes,
        facts: dict[str, Any],
        waveform: pa.Array | None,
        latents: bytes | None = None,
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
            "load_seconds": [0.0 if self.stop else self.actor.load_seconds],
            "stop": [batch["stop"]],
        }
        return pa.table(columns, schema=GENERATED)


def _facts(outcome: GenerationResult | GenerationFailure, seconds: float) -> tuple[dict[str, Any], pa.Array | None]:
    if isinstance(outcome, GenerationFailure):
        return {"error_class": outcome.error_class, "message": outcome.message, "generate_seconds": seconds}, None
    samples = np.ascontiguousarray(np.asarray(outcome.waveform, dtype=np.float32))
    ends = pa.py_buffer(np.array([0, samples.nbytes], dtype=np.int64))
    waveform = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(samples.reshape(-1))])
    model = outcome.model
    facts = {
        "sample_rate": outcome.sample_rate,
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "dtype": model.dtype,
        "random_weights": model.random_weights,
        "generate_seconds": seconds,
        "timings": outcome.timings,
        "batch_size": outcome.batch_size,
        "warnings": list(outcome.warnings),
        "tags": outcome.tags(),
    }
    return facts, waveform
