"""Which instrument of the synthesiser music is played on: the nearest of eight centres in a space that parts them.

    python -m acestep.evaluation.instrument     # fits anew, into instruments.json; two minutes

Do so after every change of how the synthesiser sounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from acestep.evaluation.spectra import HOP, log_mel, mono
from acestep.frames import SAMPLE_RATE
from acestep.synth.piece import INSTRUMENTS

FITTED = Path(__file__).with_name("instruments.json")
_TRAINING_PIECES = 640
_TRAINING_SEEDS = 3_000_000_000
"""The first of them."""
_NUM_CEPSTRA = 20
_HIGHEST = 12000.0
"""Hz."""
_SILENT = np.log(1e-7)
"""Of the loudest moment of the loudest band, where a full-scale sine is at 0."""
_FEWEST_FRAMES = 90
"""A second: what is shorter is held at its end, so that every rate has a bin."""
_SHRINKAGE = 0.1
_QUIETEST = np.log(1e-6)
"""Beside the loudest moment of the loudest band."""
_RATES = ((1.0, 2.5), (2.5, 4.4), (4.4, 6.4), (6.4, 9.0), (9.0, 12.0))
"""Hz, of tremor: flutes and strings shake five times a second."""


def find_instrument(waveform: np.ndarray) -> str:
    """The most likely of `INSTRUMENTS` for a waveform `[2, W]` at 44.1 kHz; "" for silence.

    Noise gets a name too, and is right once in eight times.
    """
    if _levels(waveform).max() < _SILENT:
        return ""
    axes, centres, middle = _fitted()
    place = (features(waveform) - middle) @ axes
    return INSTRUMENTS[int(np.argmin(np.square(centres - place).sum(axis=1)))]


def features(waveform: np.ndarray) -> np.ndarray:
    """What describes the timbre of `[2, W]`, whatever its level: 84 numbers.

    The shape of the spectrum at soft, middling and loud moments, how fast bands rise and fall, and how they tremble.
    """
    levels = _levels(waveform)
    levels = np.pad(levels, ((0, max(0, _FEWEST_FRAMES - len(levels))), (0, 0)), mode="edge")
    levels = np.maximum(levels, levels.max() + _QUIETEST)
    soft, middling, loud = np.percentile(levels, (25, 50, 85), axis=0)
    shapes = [_cepstra(loud)[1:], _cepstra(middling)[1:], _cepstra(loud - soft)]
    return np.concatenate([*shapes, _slopes(levels), _tremor(levels)])


def _levels(waveform: np.ndarray) -> np.ndarray:
    """Log-mel `[frames, bands]`, without the synthesiser's pilot, which is above."""
    return log_mel(mono(waveform), high=_HIGHEST)


def _cepstra(spectrum: np.ndarray) -> np.ndarray:
    bands = len(spectrum)
    waves = np.cos(np.pi / bands * np.outer(np.arange(_NUM_CEPSTRA), np.arange(bands) + 0.5))
    return waves @ spectrum / bands


def _slopes(levels: np.ndarray) -> np.ndarray:
    """Quantiles of how fast four registers rise and fall, in nats over four frames."""
    registers = np.stack([part.mean(axis=1) for part in np.array_split(levels, 4, axis=1)])
    change = registers[:, 4:] - registers[:, :-4]
    return np.percentile(change, (10, 35, 65, 95), axis=1).ravel()


def _tremor(levels: np.ndarray) -> np.ndarray:
    """Logarithms of the shares of the movement of the loudest bands' levels at `_RATES`."""
    loudest = np.argsort(levels.mean(axis=0))[-24:]
    moving = np.diff(levels[:, loudest], axis=0)
    spectrum = np.square(np.abs(np.fft.rfft(moving * np.hanning(len(moving))[:, None], axis=0))).mean(axis=1)
    rates = np.fft.rfftfreq(len(moving), HOP / SAMPLE_RATE)
    parts = [spectrum[(rates >= low) & (rates < high)].mean() for low, high in _RATES]
    return np.log(np.array(parts) / max(spectrum[rates >= 1].mean(), 1e-12) + 1e-3)


@cache
def _fitted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes `[features, 7]`, centres `[8, 7]` and the middle of all `[features]`."""
    values = json.loads(FITTED.read_text())
    return np.array(values["axes"]), np.array(values["centres"]), np.array(values["middle"][0])


def training_pieces() -> Iterator[tuple[str, np.ndarray]]:
    """Instruments and waveforms `[2, W]` of pieces whose seeds nothing else has.

    Two in three are marred, as a model's sound is.
    """
    from acestep.evaluation.marring import marred
    from acestep.synth import random_piece, render

    for number in range(_TRAINING_PIECES):
        rng = np.random.default_rng([number, 11])
        piece = random_piece(_TRAINING_SEEDS + number)
        waveform = render(piece, float(rng.uniform(3, 7)))
        yield piece.instrument, marred(waveform, rng) if number % 3 else waveform


def fit(instruments: list[str], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear discriminants of feature rows `[pieces, features]`: axes, centres along them, and the middle.

    The classes share one covariance, drawn a little towards a diagonal one, so that few pieces are enough.
    """
    labels = np.array([INSTRUMENTS.index(name) for name in instruments])
    means = np.stack([rows[labels == index].mean(axis=0) for index in range(len(INSTRUMENTS))])
    middle = means.mean(axis=0)
    rest = rows - means[labels]
    covariance = rest.T @ rest / (len(rows) - len(means))
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance)
    whiten = vectors / np.sqrt(np.maximum(values, 1e-9))
    _, _, directions = np.linalg.svd((means - middle) @ whiten, full_matrices=False)
    axes = whiten @ directions[: len(INSTRUMENTS) - 1].T
    return axes, (means - middle) @ axes, middle


def main() -> None:
    """Fit, and write what was fitted."""
    names, rows = zip(*((name, features(waveform)) for name, waveform in training_pieces()), strict=True)
    FITTED.write_text(_text(*fit(list(names), np.stack(rows))))


def _text(axes: np.ndarray, centres: np.ndarray, middle: np.ndarray) -> str:
    """As JSON, a line for each row."""
    arrays = {"axes": axes, "centres": centres, "middle": middle[None]}
    parts = []
    for name, array in arrays.items():
        lines = ",\n  ".join("[" + ", ".join(f"{value:.5g}" for value in row) + "]" for row in array)
        parts.append(f'"{name}": [\n  {lines}]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
