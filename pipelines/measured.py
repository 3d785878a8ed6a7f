"""`Measured`: what batches took, as sums from which a speed is fitted; adding in any order gives the same.

The model is linear: so many seconds for each TFLOP of denoising and of decoding and for each call of the transformer.
It is fitted by least squares of the relative error, so that short batches count like long ones, and then scaled so that
all batches together take what they took.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.work import Work

_PULL = 0.1
"""Of the published model's proportions on the fit, in batches: batches that are all alike do not tell parts apart."""
_PRIOR_SPREAD, _PRIOR_BATCHES = 0.3, 3.0
"""What is believed of the spread before anything is known, and for how many batches that counts."""

_NUMBERS = ("batches", "songs", "seconds", "squares", "loads", "load_seconds")
_ARRAYS = {"work": (3,), "shares": (3,), "products": (3, 3)}


@dataclass(slots=True)
class Files:
    """What songs took on disk, and to encode; times are CPU seconds."""

    songs: float = 0.0
    audio_seconds: float = 0.0
    bytes: float = 0.0
    encode_seconds: float = 0.0

    def add(self, other: Files, factor: float = 1.0) -> None:
        """Add `other`, `factor` times."""
        self.songs += factor * other.songs
        self.audio_seconds += factor * other.audio_seconds
        self.bytes += factor * other.bytes
        self.encode_seconds += factor * other.encode_seconds


@dataclass(slots=True)
class Measured:
    """Batches of one model on one kind of device, summed up.

    Attributes:
        squares: sum of the squares of the batches' seconds.
        shares: sum over batches of work over time, `[3]`; `products`: of that times itself, `[3, 3]`.
        loads, load_seconds: engines loaded, and how long that took all of them together.
        files: by rendition, such as `mp3-320`.
    """

    batches: float = 0.0
    songs: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    work: np.ndarray = field(default_factory=lambda: np.zeros(3))
    shares: np.ndarray = field(default_factory=lambda: np.zeros(3))
    products: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    loads: float = 0.0
    load_seconds: float = 0.0
    files: dict[str, Files] = field(default_factory=dict)

    def observe(self, work: Work, seconds: float, songs: int = 1) -> None:
        """Count one batch; one that took no time says nothing."""
        if seconds <= 0 or work.tflop <= 0:
            return
        parts = np.array(work.parts)
        self.batches += 1
        self.songs += songs
        self.seconds += seconds
        self.squares += seconds**2
        self.work += parts
        self.shares += parts / seconds
        self.products += np.outer(parts, parts) / seconds**2

    def add(self, other: Measured, factor: float = 1.0) -> None:
        """Count what `other` has counted, `factor` times."""
        for name in (*_NUMBERS, *_ARRAYS):
            setattr(self, name, getattr(self, name) + factor * getattr(other, name))
        for rendition, files in other.files.items():
            self.files.setdefault(rendition, Files()).add(files, factor)

    def faded(self, most_batches: float) -> Measured:
        """The same, but counting for `most_batches` at most, so that what comes later still changes something."""
        kept = Measured()
        kept.add(self, min(1.0, most_batches / self.batches) if self.batches else 1.0)
        return kept

    def rates(self) -> np.ndarray:
        """Seconds for a TFLOP of denoising, a TFLOP of decoding, and a call: `[3]`, none of them below zero."""
        assert self.batches, "nothing was measured"
        unit = self.seconds / (self.work[0] + self.work[1])
        products, shares = self.products * unit**2, self.shares * unit
        matrix = products + _PULL * np.eye(3)
        wanted = shares + _PULL * np.array([1.0, 1.0, 0.0])
        rates, free = np.zeros(3), [0, 1, 2]
        while free:
            rates[:] = 0.0
            rates[free] = np.linalg.solve(matrix[np.ix_(free, free)], wanted[free])
            if (rates >= 0).all():
                break
            free = [part for part in free if rates[part] > 0]
        return rates * self.seconds / (rates @ self.work)

    @property
    def evidence(self) -> float:
        """How many batches of equal length would say as much of the total: the long ones decide."""
        return self.seconds**2 / self.squares if self.squares else 0.0

    def spread(self) -> float:
        """Standard deviation of the logarithm of what a batch takes, over what the fit says."""
        rates = self.rates()
        squares = max(0.0, self.batches - 2 * rates @ self.shares + rates @ self.products @ rates)
        measured = math.log1p(squares / self.batches)
        known = max(0.0, self.batches - 1)
        return math.sqrt((_PRIOR_BATCHES * _PRIOR_SPREAD**2 + known * measured) / (_PRIOR_BATCHES + known))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: getattr(self, name) for name in _NUMBERS}
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        files = {
            name: {"songs": each.songs, "audio_seconds": each.audio_seconds, "bytes": each.bytes}
            | {"encode_seconds": each.encode_seconds}
            for name, each in sorted(self.files.items())
        }
        return {**plain, **arrays, "files": files}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measured:
        """What `as_dict` gave.

        Raises:
            ValueError: for anything else.
        """
        try:
            files = {name: Files(**each) for name, each in values["files"].items()}
            numbers: dict[str, Any] = {name: float(values[name]) for name in _NUMBERS}
            arrays: dict[str, Any] = {
                name: np.array(values[name], dtype=float).reshape(_ARRAYS[name]) for name in _ARRAYS
            }
            return cls(**numbers, **arrays, files=files)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not what was measured: {error!r}") from error
