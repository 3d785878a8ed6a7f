"""`Facts`: what can be said of many songs at once; collected table by table, added up split by split."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema

_NOT_TOLD = {
    *("id", "prompt", "lyrics", "duration", "sample_rate", "seed", "variation_seed"),
    *("source", "target_prompt", "target_lyrics", "oss_steps"),
}
SETTINGS = [field for field in schema.REQUEST if field.name in schema.SONG.names and field.name not in _NOT_TOLD]
"""Columns of settings of which a range or a few values say something."""

_RANGES = ["duration", "created_at", "lufs", "score"]
_VALUES = [
    *("format", "sample_rate", "model", "model_fingerprint", "dtype", "random_weights", "signed"),
    *("adapter_fingerprint", "version", "sound_version", "scorer"),
]
MOST_VALUES = 50
"""Of a column; the rest is counted together."""
OTHERS = "(others)"


@dataclass(slots=True)
class Facts:
    """Plain values only, so that they can be kept as JSON.

    Attributes:
        seconds: of audio.
        instrumental: songs without lyrics.
        ranges: least and greatest value of numbers; times as ISO text.
        values: how many songs have each value; `None` is not counted.
    """

    songs: int = 0
    seconds: float = 0.0
    instrumental: int = 0
    ranges: dict[str, list[Any]] = field(default_factory=dict)
    values: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Count the songs of a table of `schema.SONG` and more."""
        self.songs += table.num_rows
        self.seconds += pc.sum(table.column("duration")).as_py() or 0.0
        self.instrumental += pc.sum(pc.equal(pc.fill_null(table.column("lyrics"), ""), "")).as_py() or 0
        numbers = [each.name for each in SETTINGS if _is_number(each.type)]
        for name in [*_RANGES, *numbers]:
            limits = pc.min_max(table.column(name)).as_py()
            if limits["min"] is not None:
                low, high = (_plain(limits[end]) for end in ("min", "max"))
                self._widen(name, low, high)
        for name in [*_VALUES, *(each.name for each in SETTINGS if not _is_number(each.type))]:
            counts = pc.value_counts(table.column(name).drop_null().cast(pa.string()))
            self._count(name, {each["values"]: each["counts"] for each in counts.to_pylist()})

    def add_facts(self, other: Facts) -> None:
        """Count the songs that `other` counted."""
        self.songs += other.songs
        self.seconds += other.seconds
        self.instrumental += other.instrumental
        for name, (low, high) in other.ranges.items():
            self._widen(name, low, high)
        for name, counts in other.values.items():
            self._count(name, counts)

    def plain(self) -> dict[str, Any]:
        """For JSON; `Facts(**plain)` takes it back."""
        return dataclasses.asdict(self)

    def _widen(self, name: str, low: Any, high: Any) -> None:
        before = self.ranges.get(name, [low, high])
        self.ranges[name] = [min(low, before[0]), max(high, before[1])]

    def _count(self, name: str, counts: dict[str, int]) -> None:
        total = Counter(self.values.get(name, {})) + Counter(counts)
        if not total:
            return
        others = total.pop(OTHERS, 0)
        first = sorted(total.items(), key=lambda item: (-item[1], item[0]))
        self.values[name] = dict(first[:MOST_VALUES])
        if others := others + sum(count for _, count in first[MOST_VALUES:]):
            self.values[name][OTHERS] = others


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if hasattr(value, "isoformat") else value
