"""Which notes music is made of, and whether they belong to a key."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from acestep.evaluation.spectra import mono, power
from acestep.frames import SAMPLE_RATE
from acestep.synth.piece import SCALES

GOAL = 0.8
"""Of the sounding energy that lies in the scale of the key, to call it that key."""

_SIZE, _HOP = 8192, 2048
_LOWEST, _HIGHEST = 60.0, 2000.0


def chroma(waveform: np.ndarray) -> np.ndarray:
    """Shares of the 12 pitch classes (0 = C) in the tones of a waveform `[2, W]`: `[12]`, sum 1; all 0 for silence."""
    spectra = power(mono(waveform), _SIZE, _HOP)[:, : round(_HIGHEST * _SIZE / SAMPLE_RATE) + 2]
    total = np.zeros(12)
    steady = _steady(spectra)
    for frame in steady:
        total += _frame_chroma(frame)
    return total / total.sum() if total.sum() else total


def key_share(waveform: np.ndarray, pitch_classes: Collection[int]) -> float:
    """Share of the tones of `[2, W]` that lie in a scale; 7 notes of 12 have about 0.58 by chance."""
    return float(chroma(waveform)[list(pitch_classes)].sum())


def find_scale(waveform: np.ndarray) -> tuple[int, ...]:
    """The seven pitch classes of the major scale that holds most of the tones of `[2, W]`: a key or its relative."""
    shares = chroma(waveform)
    scales = [tuple((root + step) % 12 for step in SCALES["major"]) for root in range(12)]
    return max(scales, key=lambda scale: float(shares[list(scale)].sum()))


def _steady(spectra: np.ndarray) -> np.ndarray:
    """The spectra without what lasts for less than three frames in one bin, as drums do."""
    padded = np.pad(spectra, ((1, 1), (0, 0)), mode="edge")
    before, now, after = padded[:-2], padded[1:-1], padded[2:]
    return np.maximum(np.minimum(before, now), np.minimum(np.maximum(before, now), after))


def _frame_chroma(frame: np.ndarray) -> np.ndarray:
    """The amplitudes of the peaks of a power spectrum by pitch class, less what overtones account for."""
    inner = frame[1:-1]
    peaks = np.flatnonzero((inner > frame[:-2]) & (inner >= frame[2:])) + 1
    width = SAMPLE_RATE / _SIZE
    peaks = peaks[(peaks * width >= _LOWEST) & (peaks * width <= _HIGHEST)]
    result = np.zeros(12)
    if not len(peaks):
        return result
    peaks = peaks[frame[peaks] > max(1e-8, 1e-4 * frame[peaks].max())]
    if not len(peaks):
        return result
    left, middle, right = (np.log(frame[peaks + shift] + 1e-20) for shift in (-1, 0, 1))
    offset = 0.5 * (left - right) / (left - 2 * middle + right - 1e-12)
    frequency = (peaks + np.clip(offset, -0.5, 0.5)) * width
    amplitude = np.sqrt(frame[peaks])
    for index in range(len(peaks)):
        for multiple in (3, 5, 6, 7):
            near = np.abs(frequency[:index] * multiple / frequency[index] - 1) < 0.015
            if near.any() and amplitude[:index][near].max() > 0.3 * amplitude[index]:
                amplitude[index] = 0
    pitch = 12 * np.log2(frequency / 440) + 69
    np.add.at(result, np.round(pitch).astype(int) % 12, amplitude)
    return result
