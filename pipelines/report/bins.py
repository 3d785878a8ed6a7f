"""`Bins`: sums along a line in memory that does not grow: bins become wider as they become many."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

MOST_BINS = 4096
_FAR = 1e15
_LARGEST_INDEX = 2.0**53


class Bins:
    """Sums of values by their place on a line.

    Args:
        width: of a bin at first; it doubles whenever more than 4,096 bins hold something.
        columns: how many sums each bin keeps.
    """

    def __init__(self, width: float, columns: int = 1):
        self.width = width
        self.lowest = math.inf
        self.highest = -math.inf
        self.count = 0
        """Values taken."""
        self.total = 0.0
        """Of the places."""
        self._indices = np.zeros(0, np.int64)
        self._sums = np.zeros((0, columns))

    def add(self, places: np.ndarray, values: np.ndarray | None = None) -> None:
        """Add `values` `[N, columns]` (none: ones) at `places` `[N]`; places that are not finite are left out."""
        places = np.asarray(places, np.float64)
        sums = np.ones((len(places), 1)) if values is None else np.asarray(values, np.float64)
        finite = np.isfinite(places)
        places, sums = places[finite].clip(-_FAR, _FAR), sums[finite]
        if not len(places):
            return
        self.lowest, self.highest = min(self.lowest, places.min()), max(self.highest, places.max())
        self.count += len(places)
        self.total += float(places.sum())
        while max(abs(self.lowest), abs(self.highest)) / self.width > _LARGEST_INDEX:
            self._widen()
        self._merge(np.floor(places / self.width).astype(np.int64), sums)
        while len(self._indices) > MOST_BINS:
            self._widen()

    @property
    def mean(self) -> float:
        """Of the places."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """The place below which `share` of the values lie, to within a bin; NaN where there are none."""
        if not self.count:
            return math.nan
        running = np.cumsum(self._sums[:, 0])
        position = int(np.searchsorted(running, share * running[-1]))
        middle = (self._indices[min(position, len(running) - 1)] + 0.5) * self.width
        return float(min(max(middle, self.lowest), self.highest))

    def occupied(self) -> Iterator[tuple[float, np.ndarray]]:
        """The middle of each bin that holds something, in order, and its sums."""
        for index, sums in zip(self._indices, self._sums, strict=True):
            yield (float(index) + 0.5) * self.width, sums

    def _widen(self) -> None:
        self.width *= 2
        indices, sums = self._indices >> 1, self._sums
        self._indices, self._sums = np.zeros(0, np.int64), np.zeros((0, sums.shape[1]))
        self._merge(indices, sums)

    def _merge(self, indices: np.ndarray, sums: np.ndarray) -> None:
        indices = np.concatenate([self._indices, indices])
        sums = np.concatenate([self._sums, sums])
        self._indices, where = np.unique(indices, return_inverse=True)
        self._sums = np.zeros((len(self._indices), sums.shape[1]))
        np.add.at(self._sums, where.reshape(-1), sums)
