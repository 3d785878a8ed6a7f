"""Kick, snare and hi-hat."""

from __future__ import annotations

from functools import cache

import numpy as np

from acestep.synth.grid import LINE_HZ, SAMPLE_RATE, TURN, Wave, along, turn_of

_DECAYS = {"kick": 0.09, "snare": 0.06, "hat": 0.02}
"""Seconds to 1/e."""


def hit(drum: str, start: int) -> Wave:
    """One stroke from sample `start` of a song on, float32, peak about 1.

    Raises:
        KeyError: for a drum that there is not.
    """
    decay = _DECAYS[drum]
    time = np.arange(round(5 * decay * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    fade = np.exp(-time / decay) * np.minimum(1, time / 0.002) * (1 - time / time[-1])
    return along(_turn(drum), start, len(time)) * fade


@cache
def _turn(drum: str) -> Wave:
    if drum == "kick":
        wave = turn_of({10: 1.0, 20: 0.35})  # 54 and 108 Hz
    elif drum == "snare":
        wave = turn_of({36: 0.5}) + 0.5 * _noise(1200, 8000, seed=1)  # 194 Hz
    else:
        wave = _noise(5500, 9000, seed=2)
    return (wave / np.abs(wave).max()).astype(np.float32)


def _noise(low: float, high: float, seed: int) -> Wave:
    """A turn of noise between two frequencies in Hz, RMS 1; it is equally loud wherever one enters."""
    hertz = np.arange(TURN // 2 + 1) * LINE_HZ
    rng = np.random.default_rng(seed)
    phases = np.exp(2j * np.pi * rng.random(len(hertz)))
    wave = np.fft.irfft(phases * ((hertz > low) & (hertz < high)), TURN)
    return (wave / np.sqrt(np.mean(np.square(wave)))).astype(np.float32)
