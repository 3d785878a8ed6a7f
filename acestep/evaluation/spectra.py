"""Short-time spectra in numpy, for measures of sound at 44.1 kHz."""

from __future__ import annotations

from functools import cache

import numpy as np

from acestep.frames import SAMPLE_RATE

HOP = 512
"""Samples between frames, unless said otherwise."""


def mono(waveform: np.ndarray) -> np.ndarray:
    """The mean of the channels of `[2, W]` (or `[W]`): float32 `[W]`; samples that are not finite count as 0.

    Raises:
        ValueError: for another shape.
    """
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[0] != 2):
        raise ValueError(f"a waveform must be [2, W] or [W], not {list(samples.shape)}")
    samples = samples if samples.ndim == 1 else samples.mean(axis=0)
    return np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)


def power(samples: np.ndarray, size: int = 2048, hop: int = HOP) -> np.ndarray:
    """Power spectra of `[W]` with a Hann window of `size` samples: `[frames, size // 2 + 1]`.

    A full-scale sine has a power of 1 in its bin. Frame n is centred on sample n * hop; silence lies beyond both ends.
    """
    padded = np.pad(samples, size // 2)
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    spectra = np.fft.rfft(frames * (2 * window / window.sum()), axis=1)
    return np.square(np.abs(spectra)).astype(np.float32)


def log_mel(samples: np.ndarray, bands: int = 64, low: float = 50.0, high: float = 16000.0) -> np.ndarray:
    """Natural logarithm of the power in mel bands of `[W]`: `[frames, bands]`, not below -80 dB of full scale."""
    return np.log(power(samples) @ mel_filters(2048, bands, low, high) + 1e-8)


@cache
def mel_filters(size: int, bands: int, low: float, high: float) -> np.ndarray:
    """Triangles `[size // 2 + 1, bands]`, equally wide in mel, that add up to 1 between the outer two."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 2595 * np.log10(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(low), mel(high), bands + 2)
    bins = mel(np.fft.rfftfreq(size, 1 / SAMPLE_RATE))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)
