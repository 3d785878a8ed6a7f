"""What an evaluation found: shares of songs, held against goals and against chance, and comparisons of settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from acestep.evaluation.judge import Verdict, judge
from acestep.evaluation.songs import Song

GOALS = {"tempo": 0.8, "key": 0.8, "instrument": 0.8, "clean": 1.0}
"""Shares of songs. `clean`: made, and neither silent nor clipped nor with samples that are not finite."""

_MEASURES: dict[str, Callable[[Verdict], bool]] = {
    "tempo": lambda verdict: verdict.tempo,
    "key": lambda verdict: verdict.key,
    "instrument": lambda verdict: verdict.instrument,
    "best key": lambda verdict: verdict.best_key,
    "all three": lambda verdict: verdict.tempo and verdict.key and verdict.instrument,
}
_WORST = ("silent", "clipped", "not finite")


@dataclass(frozen=True, slots=True)
class Share:
    """How many songs of how many are as they should be.

    Attributes:
        goal: the least share that is wanted; None: only told.
        by_chance: the share that the same songs have with each other's prompts.
    """

    name: str
    num_good: int
    num: int
    goal: float | None = None
    by_chance: float | None = None

    @property
    def share(self) -> float:
        """0 to 1; 0 of nothing."""
        return self.num_good / self.num if self.num else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies with 95%, after Wilson."""
        if not self.num:
            return 0.0, 1.0
        z, share, num = 1.96, self.share, self.num
        middle = (share + z * z / (2 * num)) / (1 + z * z / num)
        reach = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
        return max(0.0, middle - reach), min(1.0, middle + reach)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        return None if self.goal is None else self.num > 0 and self.share >= self.goal

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "share": round(self.share, 4),
            "good": self.num_good,
            "of": self.num,
            "interval": [round(end, 4) for end in self.interval],
            "by_chance": None if self.by_chance is None else round(self.by_chance, 4),
            "goal": self.goal,
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same prompts made with less and with more of a setting, of which more should agree better.

    Attributes:
        less, more: the values of the setting, and shares of songs by measure.
    """

    name: str
    less: tuple[float, dict[str, float]]
    more: tuple[float, dict[str, float]]

    @property
    def met(self) -> bool:
        """Whether more is better on the whole, or as good where little is left to gain."""
        less, more = (
            float(np.mean([shares[name] for name in ("tempo", "key", "instrument")]))
            for _, shares in (self.less, self.more)
        )
        return more > less or (more == less and more >= 0.95)

    def row(self) -> dict[str, Any]:
        """For JSON."""
        rounded = [{name: round(share, 4) for name, share in shares.items()} for _, shares in (self.less, self.more)]
        return {
            "name": self.name,
            "met": self.met,
            "values": [
                {"value": value, **shares} for (value, _), shares in zip((self.less, self.more), rounded, strict=True)
            ],
        }


def agreement(songs: Sequence[Song]) -> list[Share]:
    """How many songs are what their prompts say, and how many would be by chance."""
    shares = []
    for name, agrees in _MEASURES.items():
        good = sum(agrees(song.verdict) for song in songs)
        shares.append(Share(name, good, len(songs), GOALS.get(name), _by_chance(songs, agrees)))
    clean = sum(song.heard is not None and not set(song.heard.faults) & set(_WORST) for song in songs)
    return [*shares, Share("clean", clean, len(songs), GOALS["clean"])]


def compared(name: str, less: tuple[float, Sequence[Song]], more: tuple[float, Sequence[Song]]) -> Comparison:
    """Songs of the same prompts, made with two values of a setting."""
    sides = []
    for value, songs in (less, more):
        shares = {share.name: share.share for share in agreement(songs)}
        shares["key share"] = float(np.mean([song.verdict.key_share for song in songs])) if songs else 0.0
        sides.append((value, shares))
    return Comparison(name, *sides)


def _by_chance(songs: Sequence[Song], agrees: Callable[[Verdict], bool]) -> float | None:
    """The share of songs that would agree with the prompt of another one."""
    pairs = [
        agrees(judge(song.heard, other.item.piece)) if song.heard else False
        for song in songs
        for other in songs
        if other is not song
    ]
    return float(np.mean(pairs)) if pairs else None
