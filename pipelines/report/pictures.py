"""Pictures of sound: the waveform as an SVG path, the spectrogram as a PNG; both cover the whole song."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

import numpy as np

COLUMNS = 400
"""Of either picture."""
BANDS = 96
"""Rows of the spectrogram, equally spaced in mel."""
FLOOR_DB = -90.0
CEILING_DB = -10.0
"""Levels that are black and white; 0 dB is a sine at full scale."""
LOW_HZ = 30.0

_WINDOW = 4096
_LOOKS = 3
"""Windows in a column: a song of minutes has more samples than a picture can show."""
_SHADES = 64
_MAGMA = ((0, 0, 4), (28, 16, 68), (79, 18, 123), (129, 37, 129), (181, 54, 122), (229, 80, 100), (251, 135, 97),
          (254, 194, 135), (252, 253, 191))  # fmt: skip
_FULL_SCALE = 0.999


def waveform_path(samples: np.ndarray) -> str:
    """The envelope of one channel `[W]` as the `d` of a closed SVG path, 400 wide and from -50 (+1) to 50 (-1) high."""
    columns = np.array_split(samples, min(COLUMNS, len(samples)))
    tops = [round(-50 * min(float(column.max()), 1.0)) for column in columns]
    lows = [round(-50 * max(float(column.min()), -1.0)) for column in columns]
    bottoms = [max(low, top + 1) for low, top in zip(lows, tops, strict=True)]
    step = COLUMNS / len(columns)
    points = [(step * place, y) for place, y in enumerate(tops)] + [(COLUMNS, tops[-1]), (COLUMNS, bottoms[-1])]
    points += [(step * place, bottoms[place]) for place in range(len(columns) - 1, -1, -1)]
    return "M" + "L".join(f"{x:g} {y}" for x, y in points) + "Z"


def clipped_path(samples: np.ndarray) -> str:
    """Marks over the columns of `waveform_path` in which a channel of `[2, W]` is at full scale; empty: none is."""
    columns = np.array_split(samples, min(COLUMNS, samples.shape[1]), axis=1)
    step = COLUMNS / len(columns)
    full = [place for place, each in enumerate(columns) if each.max() >= _FULL_SCALE or each.min() <= -_FULL_SCALE]
    return "".join(f"M{step * place:g} 0h{step:g}" for place in full)


def spectrogram_png(samples: np.ndarray, sample_rate: int) -> bytes:
    """Levels of `[2, W]` in mel bands over time as a PNG of 400 x 96; channels are averaged in power."""
    levels = _levels(samples, sample_rate)
    shares = (levels - FLOOR_DB) / (CEILING_DB - FLOOR_DB)
    shades = np.rint(shares.clip(0, 1) * (_SHADES - 1)).astype(np.uint8)
    return png(shades[::-1], _palette())


def mel(hz: float | np.ndarray) -> np.ndarray:
    """Pitch as it is heard, in mel."""
    return np.asarray(2595 * np.log10(1 + np.asarray(hz) / 700))


def highest_hz(sample_rate: int) -> float:
    """Of the spectrogram."""
    return min(20_000.0, sample_rate / 2)


def png(pixels: np.ndarray, palette: np.ndarray) -> bytes:
    """Indices `[height, width]` uint8 into a palette `[N, 3]` uint8 as a PNG file."""
    height, width = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    data = zlib.compress(lines.tobytes(), 9)
    chunks = [(b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _levels(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """dB `[BANDS, COLUMNS]`."""
    short = max(0, _WINDOW - samples.shape[1])
    samples = np.pad(samples, ((0, 0), (short // 2, short - short // 2)))
    starts = np.linspace(0, samples.shape[1] - _WINDOW, COLUMNS * _LOOKS).astype(np.int64)
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    window *= 2 / window.sum()  # a sine at full scale has 1 in its bin
    bands = _bands(sample_rate)
    power = np.zeros((len(starts), BANDS))
    for first in range(0, len(starts), 96):
        some = starts[first : first + 96]
        frames = samples[:, some[:, None] + np.arange(_WINDOW)] * window
        power[first : first + 96] = (np.abs(np.fft.rfft(frames)) ** 2).mean(axis=0) @ bands.T
    power = power.reshape(COLUMNS, _LOOKS, BANDS).mean(axis=1)
    return 10 * np.log10(power.T + 1e-12)


@lru_cache(maxsize=4)
def _bands(sample_rate: int) -> np.ndarray:
    """Triangles `[BANDS, bins]` that overlap by half; those narrower than a bin take the nearest one."""
    edges = np.linspace(mel(LOW_HZ), mel(highest_hz(sample_rate)), BANDS + 2)
    bins = mel(np.fft.rfftfreq(_WINDOW, 1 / sample_rate))
    half = np.maximum(edges[1] - edges[0], np.diff(bins, append=bins[-1]))
    return np.maximum(0, 1 - np.abs(bins - edges[1:-1, None]) / half).astype(np.float32)


@lru_cache(maxsize=1)
def _palette() -> np.ndarray:
    stops = np.array(_MAGMA, dtype=np.float64)
    places = np.linspace(0, len(stops) - 1, _SHADES)
    channels = [np.interp(places, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)
