"""An engine that only waits as long as a real one would compute: for measuring everything around it.

Its checkpoint says how long: `simulated?batch=2.0` seconds a batch, `song=0.1` more for each song, `load=5` to begin.
Where the environment has `SIMULATED_CALLS`, each call adds a line to that file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from acestep.frames import num_samples
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult, ModelInfo

STEPS = 20
"""That it says it takes."""


class Engine:
    """See the module."""

    device_name = "simulated"

    def __init__(self, model: ModelInfo, settings: dict[str, float]):
        self.model = model
        self._batch_seconds = settings.get("batch", 0.0)
        self._song_seconds = settings.get("song", 0.0)
        self._load_seconds = settings.get("load", 0.0)

    @classmethod
    def describe(cls, checkpoint: str, *, dtype: str, lyric_vocab: Any, storage_options: Any) -> ModelInfo:
        return ModelInfo("simulated", hashlib.sha256(b"simulated").hexdigest()[:16], dtype, True)

    @classmethod
    def load(cls, checkpoint: str, *, dtype: str, **options: Any) -> Engine:
        pairs = (pair.split("=") for pair in checkpoint.partition("?")[2].split("&") if pair)
        model = cls.describe(checkpoint, dtype=dtype, lyric_vocab=None, storage_options=None)
        return cls(model, {name: float(value) for name, value in pairs})

    def warm_up(self) -> float:
        time.sleep(self._load_seconds)
        return self._load_seconds

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        callback: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], Collection[int]] | None = None,
    ) -> list[GenerationResult | GenerationFailure]:
        if calls := os.environ.get("SIMULATED_CALLS"):
            with open(calls, "a", encoding="utf-8") as file:
                file.write(f"{len(requests)}\n")
        ends = time.monotonic() + self._batch_seconds + self._song_seconds * len(requests)
        songs: list[GenerationResult | GenerationFailure] = [self._song(each, len(requests)) for each in requests]
        if callback is None and cancelled is None:
            time.sleep(max(0.0, ends - time.monotonic()))
            return songs
        left: set[int] = set()
        for step in range(1, STEPS + 1):
            time.sleep(max(0.0, (ends - time.monotonic()) / (STEPS + 1 - step)))
            if callback is not None:
                callback(step, STEPS)
            left |= set(cancelled() if cancelled is not None else ())
            if len(left) == len(songs):
                break
        for position in left:
            failure = GenerationFailure(request=requests[position], error_class="cancelled", message="cancelled")
            songs[position] = failure
        return songs

    def _song(self, request: GenerationRequest, size: int) -> GenerationResult:
        """A tone of the seed's own pitch: no two songs are the same bytes."""
        count = num_samples(request.duration, request.sample_rate)
        phase = np.arange(count, dtype=np.float32) * np.float32(2 * np.pi / request.sample_rate)
        tone = 0.5 * np.sin(phase * (100 + (request.seed or 0) % 9973 * 0.1), dtype=np.float32)
        return GenerationResult(
            request=request,
            waveform=np.stack([tone, tone]),  # type: ignore[arg-type]
            sample_rate=request.sample_rate,
            latents=None,  # type: ignore[arg-type]
            model=self.model,
            batch_size=size,
        )
