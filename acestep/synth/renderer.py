"""A piece as sound."""

from __future__ import annotations

import numpy as np

from acestep.synth.composer import BEATS, Note, compose
from acestep.synth.drums import hit
from acestep.synth.grid import SAMPLE_RATE, Wave, pilot
from acestep.synth.instruments import play
from acestep.synth.piece import Piece

_GAINS = {"melody": 0.55, "chord": 0.2, "bass": 0.5, "kick": 0.5, "snare": 0.3, "hat": 0.15}
_PANS = {"melody": 0.1, "chord": -0.2, "hat": 0.35}
"""-1 is left, 1 is right; whoever is not here stands in the middle."""

FADE_SECONDS = 0.2


def render(piece: Piece, seconds: float) -> Wave:
    """The first `seconds` of a piece: float32 `[2, W]` at 44.1 kHz, within -1..1, faded at the end.

    Raises:
        ValueError: for a length that is not above 0.
    """
    if seconds <= 0:
        raise ValueError(f"seconds must be above 0, not {seconds}")
    beat = 60 / piece.tempo
    size = round(seconds * SAMPLE_RATE)
    mix = np.zeros((2, size + 8 * SAMPLE_RATE), dtype=np.float32)
    for played in compose(piece, int(np.ceil(seconds / (BEATS * beat)))):
        start = round(played.start * beat * SAMPLE_RATE)
        if start < size:
            wave = _sound(piece, played, start, played.length * beat)
            pan = _PANS.get(played.voice, 0.0)
            gain = _GAINS[played.voice] * played.velocity
            mix[0, start : start + len(wave)] += gain * (1 - max(0.0, pan)) * wave
            mix[1, start : start + len(wave)] += gain * (1 + min(0.0, pan)) * wave
    mix = np.clip(mix[:, :size], -0.99, 0.99)
    fade = min(size, int(FADE_SECONDS * SAMPLE_RATE))
    mix[:, size - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return mix + pilot(size)


def _sound(piece: Piece, played: Note, start: int, seconds: float) -> Wave:
    if played.voice in ("kick", "snare", "hat"):
        return hit(played.voice, start)
    return play("bass" if played.voice == "bass" else piece.instrument, played.pitch, start, seconds)
