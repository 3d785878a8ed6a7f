"""How much an engine has to do for a batch: forward passes and decoded frames, counted from settings alone.

The unit is a TFLOP of the published model, so that one number compares batches of any length, steps and guidance.
Another model only has another speed in it. Cross-attention grows with the lyrics, which is left to the spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, num_latent_frames
from acestep.request import GenerationRequest

FRAME_SECONDS = SAMPLES_PER_FRAME / SAMPLE_RATE
PASS_TFLOP = 1.88 * FRAME_SECONDS / 41
"""Of one row of one forward pass, a latent frame; 1.88 TFLOP make a second of audio in 27 steps, 14 of them guided."""
DECODE_TFLOP = 0.33 * FRAME_SECONDS
"""Of decoding a latent frame."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be computed, in three parts that cost differently on different devices."""

    denoise: float = 0.0
    """TFLOP of the transformer, padding included."""
    decode: float = 0.0
    """TFLOP of decoding; each song alone, so without padding."""
    calls: float = 0.0
    """Calls of the transformer: what each costs beside its arithmetic is most of the time of a small batch."""

    def __add__(self, other: Work) -> Work:
        return Work(self.denoise + other.denoise, self.decode + other.decode, self.calls + other.calls)

    def times(self, factor: float) -> Work:
        """So many times as much."""
        return Work(*(factor * part for part in self.parts))

    @property
    def parts(self) -> tuple[float, float, float]:
        """Denoise, decode, calls."""
        return self.denoise, self.decode, self.calls

    @property
    def tflop(self) -> float:
        """All arithmetic."""
        return self.denoise + self.decode

    @classmethod
    def of(cls, batch: Sequence[GenerationRequest]) -> Work:
        """Of one engine call with requests that share a `batch_key`; resolved or not."""
        if not batch:
            return cls()
        first = batch[0]
        calls, rows = passes(
            task=first.task,
            steps=first.num_steps,
            heun=first.scheduler == "heun",
            interval=first.guidance_interval,
            branches=1 + first.is_guided + first.is_double,
            variance=first.variance,
            strength=first.reference_strength,
            n_min=first.edit_n_min,
            n_max=first.edit_n_max,
            n_avg=first.edit_n_avg,
        )
        frames = [request.num_frames + added_frames(request.extend_left, request.extend_right) for request in batch]
        decodes = 1 if first.source is None else 2
        return cls(
            denoise=PASS_TFLOP * rows * max(frames) * len(frames),
            decode=DECODE_TFLOP * decodes * sum(frames),
            calls=calls,
        )

    @classmethod
    def total(cls, works: Iterable[Work]) -> Work:
        """All of them together."""
        return sum(works, cls())


def added_frames(left: float | None, right: float | None) -> int:
    """Frames that an extended song has beside its source's."""
    return num_latent_frames(left or 0.0) + num_latent_frames(right or 0.0)


@lru_cache(maxsize=4096)
def passes(
    *,
    task: str,
    steps: int,
    heun: bool,
    interval: float,
    branches: int,
    variance: float | None = None,
    strength: float | None = None,
    n_min: float | None = None,
    n_max: float | None = None,
    n_avg: int | None = None,
) -> tuple[int, int]:
    """Calls of the transformer, and rows that they compute for one song: a guided call has `branches` rows.

    The arithmetic of `acestep.sampling`; None is the default of the task.
    """
    if task == "edit":
        first, last = int(steps * (n_min or 0.0)), int(steps * (1.0 if n_max is None else n_max))
        calls = 2 * (n_avg or 1) * max(0, last - first) + steps - max(first, last)
        return calls, min(branches, 2) * calls
    if task == "audio2audio":
        steps = max(1, int(steps * (1.0 - (0.5 if strength is None else strength))))
    skipped = 0
    if task in ("repaint", "extend"):
        skipped = min(int(steps * (1.0 - (1.0 if variance is None else variance))), steps - 1)
    calls, begin = (2 * steps - 1, 2 * skipped) if heun else (steps, skipped)
    start, stop = int(steps * ((1 - interval) / 2)), int(steps * (interval / 2 + 0.5))
    guided = max(0, min(stop, calls) - max(start, begin)) if branches > 1 else 0
    return calls - begin, calls - begin + guided * (branches - 1)
