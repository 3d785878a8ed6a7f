"""How fast music is, heard from when its sounds begin."""

from __future__ import annotations

import numpy as np

from acestep.evaluation.spectra import HOP, log_mel, mono
from acestep.frames import SAMPLE_RATE
from acestep.synth.grid import TURN

TOLERANCE = 0.04
SLOWEST, FASTEST = 50.0, 200.0
"""Beats a minute, of what is found."""

_PULSES = np.geomspace(26, 420, 1200)
"""Per minute: whole bars of slow music up to half beats of fast music, 0.23% apart."""
_TURN_FRAMES = TURN // HOP
_DRIFT_FRAMES = 43
"""Half a second."""
_FRAMES_PER_MINUTE = 60 * SAMPLE_RATE / HOP


def find_tempo(waveform: np.ndarray) -> float:
    """Beats a minute of a waveform `[2, W]` at 44.1 kHz, 50 to 200; 0 when nothing begins in it, or below 3 s.

    Which of half, once and twice is the beat is a matter of taste, and not of much weight here: see `tempo_agrees`.
    """
    strength = onset_strength(waveform)
    if len(strength) < 3 * SAMPLE_RATE / HOP or not strength.any():
        return 0.0
    scores = _periodicity(strength)
    return _as_beat(float(_PULSES[int(np.argmax(scores))]))


def tempo_agrees(found: float, wanted: float, tolerance: float = TOLERANCE) -> bool:
    """Whether a tempo is the wanted one, its half or its double, within a share of it."""
    return found > 0 and any(abs(found - wanted * octave) <= tolerance * wanted * octave for octave in (0.5, 1.0, 2.0))


def beat_phase(waveform: np.ndarray, tempo: float) -> float:
    """Where in the beat, 0 to 1 counted from the first sample, the sounds of `[2, W]` begin on average."""
    strength = onset_strength(waveform)
    turns = np.exp(2j * np.pi * np.arange(len(strength)) * tempo / _FRAMES_PER_MINUTE)
    return float(np.angle((strength * turns).sum()) / (2 * np.pi) % 1)


def onset_strength(waveform: np.ndarray) -> np.ndarray:
    """How much louder the bands of `[2, W]` become from frame to frame, on average, less its drift: `[frames]`."""
    levels = np.maximum(log_mel(mono(waveform), bands=40, high=12000), np.log(1e-6))
    # Against what sounded one turn of the synthesiser's wheel ago: all that beats, beats in that time.
    above = np.zeros_like(levels)
    above[_TURN_FRAMES:] = np.clip(levels[_TURN_FRAMES:] - levels[:-_TURN_FRAMES], 0, 4)
    rise = np.zeros(len(levels))
    # Over two frames, as a window that is four frames long blurs every beginning.
    rise[2:] = np.clip(above[2:] - above[:-2], 0, 3).mean(axis=1)
    width = min(_DRIFT_FRAMES, len(rise))
    drift = np.convolve(rise, np.full(width, 1 / width), mode="same")
    return np.clip(rise - drift, 0, None)


def _periodicity(strength: np.ndarray) -> np.ndarray:
    """How well a pulse at each of `_PULSES` explains the onsets.

    An autocorrelation is high at the period and at its multiples, a spectrum at its rate and at multiples of that; only
    the period itself has both.
    """
    centred = strength - strength.mean()
    size = 2 * len(centred)
    correlation = np.fft.irfft(np.square(np.abs(np.fft.rfft(centred, size))), size)[: len(centred)]
    correlation = correlation / np.arange(len(centred), 0, -1) * len(centred) / max(correlation[0], 1e-12)
    lags = _FRAMES_PER_MINUTE / _PULSES
    comb = np.zeros(len(_PULSES))
    weight = np.zeros(len(_PULSES))
    for multiple in (1, 2, 3, 4):
        usable = lags * multiple < 0.75 * len(centred)
        value = np.interp(lags * multiple, np.arange(len(centred)), correlation)
        comb += np.where(usable, value, 0) / multiple
        weight += np.where(usable, 1 / multiple, 0)
    comb = np.clip(comb / np.maximum(weight, 1e-9), 0, None)
    window = np.hanning(len(centred) + 2)[1:-1]
    phases = np.exp(-2j * np.pi * np.outer(1 / lags, np.arange(len(centred))))
    spectrum = np.abs(phases @ (window * centred)) / (window * strength).sum()
    prior = np.exp(-0.5 * np.square(np.log2(_PULSES / 105) / 1.3))
    return comb * spectrum * prior


def _as_beat(pulse: float) -> float:
    """The pulse, halved or doubled until it is a beat."""
    while pulse < 60:
        pulse *= 2
    while pulse > 180:
        pulse /= 2
    return pulse
