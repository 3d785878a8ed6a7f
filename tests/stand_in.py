"""An engine that needs no weights: sine tones, and on demand every way in which an engine can fail.

What it makes depends on the whole batch, so that equal audio proves equal engine calls. Words in a prompt command it:
`raise` fails the whole call, `refuse` only its song (`refuse-until:<path>`: while there is no such file), `nan` makes a
song that cannot be encoded, `slow:<seconds>` takes its time in short steps, `device` breaks the device, `die` ends
the process and `die-once:<path>` too, unless the file is there (it makes it first); `hang` never comes to the end of a
step, and `crawl:<seconds>` takes so long for each of ten; `silent` and `silent-at:<seed>` make a song without a sound.
Songs that are cancelled leave their batch after a step, as they do with the real engine, and stand in `LEFT`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import numpy as np

from acestep.errors import CheckpointError, DeviceError
from acestep.frames import num_samples
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult, ModelInfo

LEFT: dict[str, int] = {}
"""Songs that were cancelled while this process made them, and after how many steps of their batch."""
_STEP_SECONDS = 0.1


class Engine:
    """See the module."""

    seconds_per_call: ClassVar[float] = 0.0
    """What every call takes, in steps that are reported, beside what words command."""

    def __init__(self, model: ModelInfo, calls: str | None):
        self.model = model
        self.calls = calls
        """A file that gets a line of ids for each call, where the checkpoint names one: `stand-in?<path>`."""

    @classmethod
    def describe(cls, checkpoint: str, *, dtype: str, lyric_vocab: Any, storage_options: Any) -> ModelInfo:
        if checkpoint == "missing":
            raise CheckpointError("checkpoint 'missing' does not exist")
        name = checkpoint.partition("?")[0]
        return ModelInfo(name, hashlib.sha256(f"{name} {dtype}".encode()).hexdigest()[:16], dtype, True)

    @classmethod
    def load(cls, checkpoint: str, *, dtype: str, **options: Any) -> Engine:
        if checkpoint == "broken-on-the-node":
            raise CheckpointError("the weights on this node are damaged")
        model = cls.describe(checkpoint, dtype=dtype, lyric_vocab=None, storage_options=None)
        return cls(model, checkpoint.partition("?")[2] or None)

    def warm_up(self) -> float:
        return 0.0

    @property
    def device_name(self) -> str:
        return "stand-in"

    def generate(
        self,
        requests: list[GenerationRequest],
        callback: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], Collection[int]] | None = None,
    ) -> list[GenerationResult | GenerationFailure]:
        if self.calls:
            with open(self.calls, "a", encoding="utf-8") as file:
                file.write(" ".join(str(request.id) for request in requests) + "\n")
        batch = _Batch(requests, callback or (lambda done, total: None), cancelled or (lambda: ()))
        if self.seconds_per_call:
            steps = max(request.num_steps for request in requests)
            batch.take(self.seconds_per_call, steps, set(range(len(requests))))
        for position, request in enumerate(requests):
            if position not in batch.left:
                self._obey(request.prompt, batch, position)
        company = hashlib.sha256(" ".join(str(request.id) for request in requests).encode()).digest()[0]
        return [
            batch.left.get(position) or self._song(request, company, len(requests))
            for position, request in enumerate(requests)
        ]

    def _obey(self, prompt: str, batch: _Batch, position: int) -> None:
        words = prompt.split()
        if "raise" in words:
            raise RuntimeError("told to raise")
        if "device" in words:
            raise DeviceError("told to break")
        for word in words:
            if word.startswith("slow:"):
                seconds = float(word.removeprefix("slow:"))
                batch.take(seconds, max(1, round(seconds / _STEP_SECONDS)), {position})
            if word == "hang":
                time.sleep(3600)
            if word.startswith("crawl:"):
                batch.take(10 * float(word.removeprefix("crawl:")), 10, {position})
            if word == "die":
                os._exit(1)
            if word.startswith("die-once:") and not os.path.exists(path := word.removeprefix("die-once:")):
                open(path, "w").close()
                os._exit(1)

    def _song(self, request: GenerationRequest, company: int, size: int) -> GenerationResult | GenerationFailure:
        words = request.prompt.split()
        until = [word.removeprefix("refuse-until:") for word in words if word.startswith("refuse-until:")]
        if "refuse" in words or not all(map(os.path.exists, until)):
            return GenerationFailure(request=request, error_class="out_of_memory", message="told to refuse")
        count = num_samples(request.duration, request.sample_rate)
        phase = np.arange(count, dtype=np.float32) / request.sample_rate
        pitch = 100 + (request.seed or 0) % 800 + company
        waveform = np.tile(0.5 * np.sin(2 * np.pi * pitch * phase, dtype=np.float32), (2, 1))
        if "nan" in words:
            waveform[0, 5] = np.nan
        if "silent" in words or f"silent-at:{request.seed}" in words:
            waveform[:] = 0
        return GenerationResult(
            request=request,
            waveform=waveform,  # type: ignore[arg-type]
            sample_rate=request.sample_rate,
            latents=None,  # type: ignore[arg-type]
            model=self.model,
            timings={"denoise": 0.01},
            batch_size=size,
            warnings=("made by a stand-in", *_began(request)),
        )


def _began(request: GenerationRequest) -> tuple[str, ...]:
    if request.source is None or not os.path.isfile(request.source):
        return ()
    return (f"begun with {os.path.getsize(request.source)} bytes",)


class LeisurelyEngine(Engine):
    """One that a person could watch."""

    seconds_per_call = 0.5


class _Batch:
    """Who is in a call, and who has left it."""

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        callback: Callable[[int, int], None],
        cancelled: Callable[[], Collection[int]],
    ):
        self.left: dict[int, GenerationFailure] = {}
        self._requests, self._callback, self._cancelled = requests, callback, cancelled

    def take(self, seconds: float, steps: int, of: set[int]) -> None:
        """Let so much time go by for the songs at these positions, while any of them is there."""
        for step in range(1, steps + 1):
            if of <= set(self.left):
                return
            time.sleep(seconds / steps)
            self._callback(step, steps)
            for position in self._cancelled():
                if position not in self.left:
                    request = self._requests[position]
                    message = f"cancelled after step {step} of {steps}"
                    self.left[position] = GenerationFailure(request=request, error_class="cancelled", message=message)
                    LEFT[str(request.id)] = step
