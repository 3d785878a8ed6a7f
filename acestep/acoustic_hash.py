"""A few bytes that tell whether two songs sound the same, however loud they are and whichever codec they went through.

The hash holds the song's mean spectrum in bands, and how the spectrum's tilt and curvature move over the song. It says
"the same recording", not "the same melody": another seed gives another hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MOMENTS = 20
"""Looked at, spread evenly over the song."""
_BANDS = 24
_MOVEMENTS = 2
"""Followed from moment to moment: the spectrum's tilt and its curvature."""
_WINDOW_S = 0.34
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 8000.0
"""Between them every codec is true to the song."""
_FLOOR_DB = -40.0
"""Below a moment's total, a band counts as empty: what is there is the codec's noise."""
_SILENT_DB = -40.0
"""Below the loudest moment, a moment says nothing."""
_BENT_AT_DB = 0.25
"""Movements far above it count by their logarithm, so that one fade does not outweigh the rest."""
_STEPS = 16
_LEAST = 20.0
"""Of the difference of two hashes: what rounding and a codec make of a song without any movement."""


def moments(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Power spectra `[20, F]` of moments of 0.34 s, evenly spread over a waveform `[2, W]`; of all of a shorter song.

    Both channels are added up. Float32, in no absolute unit.
    """
    length = waveform.shape[1]
    size = 2 ** round(np.log2(_WINDOW_S * sample_rate))
    taken = min(size, length)
    starts = np.linspace(0, length - taken, MOMENTS).astype(np.int64)
    window = np.hanning(taken + 2)[1:-1].astype(np.float32)
    parts = np.stack([waveform[:, start : start + taken] for start in starts], axis=1)
    return np.square(np.abs(np.fft.rfft(parts * window, size))).sum(axis=0)


def hash_of(powers: np.ndarray, sample_rate: int) -> str:
    """The hash of what `moments` gave: 128 hexadecimal digits, or none for silence."""
    bands = powers @ _bands_of(powers.shape[1], sample_rate)
    totals = bands.sum(axis=1)
    sounding = totals > totals.max() * 10 ** (_SILENT_DB / 10)
    if not sounding.any():
        return ""
    floor = totals * 10 ** (_FLOOR_DB / 10)
    levels = np.zeros_like(bands)
    levels[sounding] = 10 * np.log10(bands[sounding] + floor[sounding, None])
    levels -= levels.mean(axis=1, keepdims=True)  # the level itself does not count
    mean = levels[sounding].mean(axis=0)
    movements = np.where(sounding[:, None], (levels - mean) @ _patterns(), 0)
    bent = np.arcsinh(movements / _BENT_AT_DB)
    values = np.concatenate([2 * mean, _STEPS * bent.ravel()])
    return values.round().clip(-127, 127).astype(np.int8).tobytes().hex()


def acoustic_hash(waveform: np.ndarray, sample_rate: int) -> str:
    """128 hexadecimal digits of a finite waveform `[2, W]`; none for silence. Equal samples give an equal hash."""
    return hash_of(moments(waveform, sample_rate), sample_rate) if waveform.shape[1] else ""


def similarity(a: str, b: str) -> float:
    """How alike two hashes are: 1 for the same recording, about 0 for unrelated ones; 0 where one is silence."""
    if not a or not b:
        return 0.0
    spectra, movements = zip(*(_parts(text) for text in (a, b)), strict=True)
    return min(_likeness(*spectra), _likeness(*movements))


def near_duplicates(hashes: Sequence[str], limit: float) -> list[tuple[int, int, float]]:
    """Pairs of positions whose similarity is over `limit`, the earlier one first, with the similarity."""
    pairs = ((a, b, similarity(hashes[a], hashes[b])) for b in range(len(hashes)) for a in range(b))
    return [pair for pair in pairs if pair[2] > limit]


def _parts(text: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.frombuffer(bytes.fromhex(text), dtype=np.int8).astype(np.float64)
    if len(values) != _BANDS + MOMENTS * _MOVEMENTS:
        raise ValueError(f"{text!r} is no acoustic hash")
    return values[:_BANDS], values[_BANDS:]


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """1 for equal vectors, 0 for unrelated ones, whatever their lengths are."""
    between = max(0.0, float(np.square(a - b).sum()) - _LEAST)
    return max(0.0, 1 - between / float(np.square(a).sum() + np.square(b).sum() + _LEAST))


@lru_cache(maxsize=4)
def _bands_of(num_bins: int, sample_rate: int) -> np.ndarray:
    """Overlapping triangles, even on a logarithmic scale: `[F, bands]`, float32."""
    hz = np.arange(num_bins) * sample_rate / (2 * (num_bins - 1))
    span = np.log(_HIGHEST_HZ / _LOWEST_HZ)
    position = np.log(np.maximum(hz, 1e-3) / _LOWEST_HZ) / span * (_BANDS - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(_BANDS))).astype(np.float32)


@lru_cache(maxsize=1)
def _patterns() -> np.ndarray:
    """The first cosines over the bands, of unit length: `[bands, movements]`."""
    band, order = np.arange(_BANDS)[:, None] + 0.5, np.arange(1, _MOVEMENTS + 1)
    return np.sqrt(2 / _BANDS) * np.cos(np.pi * band * order / _BANDS)
