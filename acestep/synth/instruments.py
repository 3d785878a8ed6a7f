"""How each instrument sounds: its overtones in groups that die away together, and the shape of a note."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from acestep.synth.grid import HIGHEST, SAMPLE_RATE, Wave, along, turn_of, wheel

Overtones = dict[float, float]
"""Amplitudes by multiples of the pitch; each sounds as the nearest semitone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """What notes of it have in common. Times in seconds."""

    groups: tuple[tuple[Overtones, float | None], ...]
    """Overtones, and the time in which they fall to 1/e; None: they last as long as the note."""
    attack: float
    release: float
    tremolo: float = 0.0
    """Share by which the loudness swells to either side, five times a second."""


def _harmonics(first: int, last: int, power: float, step: int = 1) -> Overtones:
    return {float(n): n**-power for n in range(first, last + 1, step)}


def _plucked(first: int, last: int) -> Overtones:
    # At a fifth of the string: overtones that have a node there are missing.
    return {float(n): abs(float(np.sin(np.pi * n / 5))) / n**0.8 for n in range(first, last + 1)}


INSTRUMENTS: dict[str, Instrument] = {
    "piano": Instrument(
        groups=((_harmonics(1, 1, 1.2), 1.0), (_harmonics(2, 3, 1.2), 0.6), (_harmonics(4, 10, 1.2), 0.3)),
        attack=0.006,
        release=0.2,
    ),
    "guitar": Instrument(
        groups=((_plucked(1, 2), 0.5), (_plucked(3, 6), 0.3), (_plucked(7, 16), 0.15)), attack=0.004, release=0.15
    ),
    "flute": Instrument(groups=(({1.0: 1.0, 2.0: 0.2, 3.0: 0.04}, None),), attack=0.07, release=0.09, tremolo=0.2),
    "organ": Instrument(
        groups=(({1.0: 1.0, 2.0: 0.8, 3.0: 0.6, 4.0: 0.4, 6.0: 0.3, 8.0: 0.3}, None),), attack=0.015, release=0.06
    ),
    "strings": Instrument(groups=((_harmonics(1, 14, 1.1), None),), attack=0.11, release=0.15, tremolo=0.1),
    "marimba": Instrument(
        groups=(({1.0: 1.0}, 0.2), ({4.0: 0.45}, 0.07), ({9.9: 0.15}, 0.03)), attack=0.003, release=0.1
    ),
    "synth": Instrument(
        groups=((_harmonics(1, 3, 1.0, 2), None), (_harmonics(5, 21, 0.8, 2), 0.25)), attack=0.006, release=0.08
    ),
    "music box": Instrument(groups=(({2.0: 1.0}, 0.9), ({4.0: 0.3, 12.6: 0.35}, 0.25)), attack=0.003, release=0.5),
    "bass": Instrument(groups=((_harmonics(1, 3, 1.0), 0.9), (_harmonics(4, 8, 1.0), 0.3)), attack=0.008, release=0.08),
}


def play(instrument: str, midi: int, start: int, seconds: float) -> Wave:
    """A note from sample `start` of a song on, with its release, float32; steady it would be 0.2 RMS.

    Raises:
        KeyError: for an instrument that there is not.
    """
    kind = INSTRUMENTS[instrument]
    size = round((seconds + kind.release) * SAMPLE_RATE)
    time = np.arange(size, dtype=np.float32) / SAMPLE_RATE
    shape = np.sin(np.minimum(1, time / kind.attack) * (np.pi / 2)) ** 2
    shape *= np.cos(np.clip((time - seconds) / kind.release, 0, 1) * (np.pi / 2)) ** 2
    if kind.tremolo:
        shape *= 1 + kind.tremolo * np.sin(2 * np.pi * 5 * time)
    wave = np.zeros(size, dtype=np.float32)
    for turn, decay in _turns(instrument, midi):
        wave += along(turn, start, size) * (shape if decay is None else shape * np.exp(-time / decay))
    return wave


@cache
def _turns(instrument: str, midi: int) -> tuple[tuple[Wave, float | None], ...]:
    """The turns of a note's groups, and how these die away."""
    turns = []
    for overtones, decay in INSTRUMENTS[instrument].groups:
        lines: dict[int, float] = {}
        for multiple, amplitude in overtones.items():
            semitone = midi + round(12 * math.log2(multiple))
            if semitone <= HIGHEST:
                lines[wheel(semitone)] = lines.get(wheel(semitone), 0.0) + amplitude
        turns.append((turn_of(lines), decay))
    power = np.mean(np.square(np.sum([turn for turn, _ in turns], axis=0)))
    gain = np.float32(0.2 / np.sqrt(max(float(power), 1e-9)))
    return tuple((turn * gain, decay) for turn, decay in turns)
