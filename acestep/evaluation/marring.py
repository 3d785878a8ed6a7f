"""What a model does to sound without meaning to: measures that are to judge models must bear it."""

from __future__ import annotations

import numpy as np

from acestep.evaluation.spectra import HOP, mel_filters
from acestep.frames import SAMPLE_RATE

_SIZE = 2048
_BANDS = 64


def marred(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A waveform `[2, W]` as if from a codec that is so so: how much of each fault it has is drawn.

    Wrong levels from moment to moment and phases that are a little off, another tone colour, less treble, hiss, another
    loudness.
    """
    blurred = np.stack([_blurred(channel, rng.uniform(0, 0.5), rng.uniform(0, 1.0), rng) for channel in waveform])
    spectrum = np.fft.rfft(blurred, axis=1)
    hertz = np.fft.rfftfreq(waveform.shape[1], 1 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(hertz, 40) / 40)
    decibels = np.interp(octaves, np.arange(10), rng.normal(0, 2, 10))
    spectrum *= 10 ** (decibels / 20) / np.sqrt(1 + (hertz / rng.uniform(7000, 20000)) ** 8)
    hiss = np.fft.rfft(rng.standard_normal(waveform.shape), axis=1) * (np.maximum(hertz, 40) / 1000) ** rng.uniform(
        -1, 0
    )
    sound, hiss = (np.fft.irfft(part, waveform.shape[1], axis=1) for part in (spectrum, hiss))
    hiss *= 10 ** (rng.uniform(-70, -35) / 20) * sound.std() / max(hiss.std(), 1e-9)
    loudest = max(float(np.abs(sound + hiss).max()), 1e-9)
    return ((sound + hiss) * min(10 ** (rng.uniform(-12, 3) / 20), 0.98 / loudest)).astype(np.float32)


def _blurred(channel: np.ndarray, levels: float, phases: float, rng: np.random.Generator) -> np.ndarray:
    """`[W]` with levels of mel bands off by so many nats, and phases by so many radians, anew in every frame."""
    window = np.hanning(_SIZE + 1)[:-1]
    padded = np.pad(channel, _SIZE)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _SIZE)[::HOP]
    spectra = np.fft.rfft(frames * window, axis=1)
    bands = mel_filters(_SIZE, _BANDS, 40.0, 20000.0)
    wrong = levels * rng.standard_normal((len(spectra), _BANDS)) @ bands.T
    spectra *= np.exp(wrong + 1j * phases * rng.standard_normal(spectra.shape))
    pieces = np.fft.irfft(spectra, _SIZE, axis=1) * window
    out = np.zeros(len(pieces) * HOP + _SIZE)
    for shift in range(_SIZE // HOP):  # a quarter of the frames do not overlap
        part = pieces[shift :: _SIZE // HOP]
        begin = shift * HOP
        out[begin : begin + part.size] += part.reshape(-1)
    return out[_SIZE : _SIZE + len(channel)] / (_SIZE / HOP * np.mean(window**2))
