"""Which songs the report plays: the same ones for the same catalog, from every language and length."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

Kept = TypeVar("Kept")

EXTREMES = 2
"""Songs shown with the highest score, with the lowest, and that were made again."""


def draw(seed: int, id: str) -> int:
    """A number that looks random and is the same every time."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8, key=str(seed).encode()).digest(), "big")


class Smallest(Generic[Kept]):
    """The `count` items of the lowest rank that came by."""

    def __init__(self, count: int):
        self._count = count
        self._heap: list[tuple[float, int, Kept]] = []
        self._order = 0

    def takes(self, rank: float) -> bool:
        """Whether an item of this rank would be kept now."""
        return len(self._heap) < self._count or (bool(self._heap) and -rank > self._heap[0][0])

    def offer(self, rank: float, item: Kept) -> None:
        """Keep an item if it ranks among the lowest; of equal ranks the first stays."""
        self._order += 1
        entry = (-rank, -self._order, item)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def ranked(self) -> list[tuple[float, Kept]]:
        """Ranks and items, lowest first."""
        return [(-rank, item) for rank, _, item in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]


@dataclass(frozen=True, slots=True)
class Pick:
    """A song to play, and why."""

    bucket: int
    id: str
    fingerprint: str
    why: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What no other song has."""
        return self.id, self.fingerprint


@dataclass(slots=True)
class Picks:
    """Chooses `sample` songs while rows go by, a few of each group, and the extremes."""

    sample: int
    seed: int = 0
    _groups: dict[Hashable, Smallest[Pick]] = field(default_factory=dict)
    _extremes: dict[str, Smallest[Pick]] = field(default_factory=dict)

    def offer(
        self, bucket: int, ids: Sequence[str], fingerprints: Sequence[str], groups: Sequence[Hashable]
    ) -> list[int]:
        """Consider songs; `groups` says of what kind each is. Returns the number drawn for each."""
        drawn = [draw(self.seed, id) for id in ids]
        if self.sample:
            for id, fingerprint, group, rank in zip(ids, fingerprints, groups, drawn, strict=True):
                self._groups.setdefault(group, Smallest(self.sample)).offer(rank, Pick(bucket, id, fingerprint))
        return drawn

    def offer_extreme(self, why: str, rank: float, pick: Pick) -> None:
        """Consider a song as the one of lowest `rank` among those called `why`."""
        if self.sample and math.isfinite(rank):
            self._extremes.setdefault(why, Smallest(EXTREMES)).offer(rank, pick)

    def chosen(self) -> list[Pick]:
        """The sample, one of each group in turn, then the extremes that are not in it."""
        queues = [group.ranked() for group in self._groups.values()]
        turns = [(turn, rank, pick) for queue in queues for turn, (rank, pick) in enumerate(queue)]
        turns.sort(key=lambda entry: entry[:2])
        picks = {pick.key: pick for _, _, pick in turns[: self.sample]}
        for why, lowest in self._extremes.items():
            for _, pick in lowest.ranked():
                earlier = picks.get(pick.key, pick)
                picks[pick.key] = replace(earlier, why=earlier.why or why)
        return list(picks.values())
