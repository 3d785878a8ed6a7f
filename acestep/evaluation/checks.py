"""What else is asked of a model beside songs that are what their prompts say: that its settings do what they should."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from acestep.evaluation.distances import log_mel_error, stft_distance
from acestep.evaluation.findings import Share
from acestep.evaluation.judge import judge, listen
from acestep.evaluation.prompts import HeldOut
from acestep.evaluation.songs import Song, Studio
from acestep.result import GenerationResult
from acestep.synth import render

OTHER_SEED = 1_000_000
"""Added to a seed, it gives another song of the same prompt."""
SPEED_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Rendered pieces through the codec and back.

    Attributes:
        log_mel_error, stft_distance: means over the pieces, see `acestep.evaluation.distances`.
        shares: what is still heard in them, which no song of the model can do better than.
    """

    log_mel_error: float
    stft_distance: float
    shares: tuple[Share, ...]

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "log_mel_error": round(self.log_mel_error, 4),
            "stft_distance": round(self.stft_distance, 4),
            "shares": [share.row() for share in self.shares],
        }


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds that a song took, made alone."""

    audio_seconds: float
    steps: int
    seconds: float

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {"audio_seconds": round(self.audio_seconds, 2), "steps": self.steps, "seconds": round(self.seconds, 2)}


def repeatability(studio: Studio, items: Sequence[HeldOut], songs: Sequence[Song]) -> list[Share]:
    """Whether each of `items`, made alone twice and once with another seed, is twice the same and then another.

    `songs` are all that were made; no two of them may be the same sound.
    """
    same = other = 0
    for item in items:
        first, again = (studio.songs([item])[0] for _ in range(2))
        changed = studio.songs([item], seed=item.generation_seed + OTHER_SEED)[0]
        same += bool(first.sha256) and first.sha256 == again.sha256
        other += bool(changed.sha256) and first.sha256 != changed.sha256
    made = [song.sha256 for song in songs if song.sha256]
    return [
        Share("same seed, same sha256", same, len(items), 1.0),
        Share("other seed, other song", other, len(items), 1.0),
        Share("no song is another's copy", len(set(made)), len(songs), 1.0),
    ]


def round_trip(
    there_and_back: Callable[[np.ndarray], np.ndarray], items: Sequence[HeldOut], duration: float
) -> RoundTrip:
    """Render pieces of `duration` seconds and send each `[2, W]` through a codec."""
    errors, distances, verdicts = [], [], []
    for item in items:
        rendered = render(item.piece, duration)
        returned = there_and_back(rendered)
        errors.append(log_mel_error(returned, rendered))
        distances.append(stft_distance(returned, rendered))
        verdicts.append(judge(listen(returned), item.piece))
    shares = tuple(
        Share(f"codec: {name}", sum(getattr(verdict, name) for verdict in verdicts), len(items))
        for name in ("tempo", "key", "instrument")
    )
    return RoundTrip(float(np.mean(errors)), float(np.mean(distances)), shares)


def speed(studio: Studio, item: HeldOut, steps: int) -> Speed | None:
    """How long a song of 30 s takes, made alone with a warm engine; None where it could not be made."""
    request = studio.request(item, duration=SPEED_SECONDS, num_inference_steps=steps)
    started = time.perf_counter()
    outcome = next(iter(studio.make([request])))
    elapsed = time.perf_counter() - started
    return Speed(outcome.duration, steps, elapsed) if isinstance(outcome, GenerationResult) else None
