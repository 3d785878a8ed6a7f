"""`Survey`: what a catalog's songs add up to, read bucket by bucket, so that memory does not grow with the catalog."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from acestep.lyrics.language import languages_of
from acestep.lyrics.tags import tag_of
from pipelines.catalog import Catalog
from pipelines.report.bins import Bins
from pipelines.report.picks import EXTREMES, Pick, Picks, Smallest

COLUMNS = (
    *("id", "fingerprint", "duration", "bytes", "lufs", "language", "lyrics", "generate_seconds", "score", "attempt"),
    *("created_at", "run", "model", "model_fingerprint", "dtype", "device", "format", "version", "random_weights"),
)
PLAYER_COLUMNS = (
    *("id", "fingerprint", "path", "format", "duration", "prompt", "lyrics", "language", "seed", "requested_seed"),
    *("attempt", "lufs", "score", "scorer", "candidates", "quality", "num_inference_steps", "guidance_scale", "lora"),
    *("generate_seconds", "batch_size", "task", "created_at", "warnings"),
)
INSTRUMENTAL = "instrumental"
AUTO = "auto"
"""The language of lyrics that nobody named one for."""
READ_LYRICS = 1000
"""Songs whose language is found out by reading the lyrics; more are estimated from these."""

_LONG_SECONDS = (30.0, 90.0)


@dataclass(slots=True)
class RunSongs:
    """What one run made, as its rows say."""

    songs: int = 0
    audio_seconds: float = 0.0
    first: float = float("inf")
    """Seconds since 1970 of its first row."""
    last: float = 0.0


@dataclass(slots=True)
class Survey:
    """Sums over the songs of a catalog.

    Attributes:
        timeline: songs and seconds of audio by the second of their row.
        engine_seconds: that engines spent on the songs of which it is known, which sound for `timed_seconds`.
        languages: songs by language; `languages_read` of those without a named one were read, if not all.
    """

    picks: Picks
    songs: int = 0
    audio_seconds: float = 0.0
    bytes: int = 0
    engine_seconds: float = 0.0
    timed_seconds: float = 0.0
    random_weights: int = 0
    rerolled: int = 0
    lengths: Bins = field(default_factory=lambda: Bins(1 / 1024))
    loudness: Bins = field(default_factory=lambda: Bins(1 / 1024))
    speeds: Bins = field(default_factory=lambda: Bins(1 / 1024))
    scores: Bins = field(default_factory=lambda: Bins(2.0**-20))
    timeline: Bins = field(default_factory=lambda: Bins(1.0, columns=2))
    runs: dict[str, RunSongs] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    languages_read: int | None = None
    facts: dict[str, Counter[str]] = field(default_factory=dict)
    """Songs by model, device and so on."""
    _unread: Smallest[str] = field(default_factory=lambda: Smallest(READ_LYRICS))

    @classmethod
    def of(cls, catalog: Catalog, picks: Picks) -> Survey:
        """The survey of a catalog; `picks` chooses among the songs that go by."""
        survey = cls(picks)
        for bucket in catalog.buckets():
            survey.take(bucket, catalog.songs_of(bucket, list(COLUMNS)))
        survey._read_languages()
        return survey

    def take(self, bucket: int, table: pa.Table) -> None:
        """Add the songs of one bucket."""
        if not table.num_rows:
            return
        seconds = numbers(table, "duration")
        engine = numbers(table, "generate_seconds")
        timed = (engine > 0) & np.isfinite(seconds)
        self.songs += table.num_rows
        self.audio_seconds += float(np.nansum(seconds))
        self.bytes += int(np.nansum(numbers(table, "bytes")))
        self.engine_seconds += float(engine[timed].sum())
        self.timed_seconds += float(seconds[timed].sum())
        self.lengths.add(seconds)
        self.loudness.add(numbers(table, "lufs"))
        self.scores.add(numbers(table, "score"))
        self.speeds.add(seconds[timed] / engine[timed])
        self.random_weights += int(pc.sum(column(table, "random_weights", pa.bool_())).as_py() or 0)
        self._take_times(table, seconds)
        self._take_picks(bucket, table, seconds)
        for name in ("model", "model_fingerprint", "dtype", "device", "format", "version"):
            self.facts.setdefault(name, Counter()).update(_counted(column(table, name, pa.string())))

    def _take_times(self, table: pa.Table, seconds: np.ndarray) -> None:
        created = column(table, "created_at", pa.timestamp("us", tz="UTC"))
        times = np.array(pc.cast(created, pa.int64()).to_numpy(zero_copy_only=False), np.float64) / 1e6
        known = np.nan_to_num(seconds)
        self.timeline.add(times, np.stack([np.ones_like(known), known], axis=1))
        runs = np.array([run or "" for run in column(table, "run", pa.string()).to_pylist()], dtype=object)
        for run in set(runs.tolist()):
            mine = (runs == run) & np.isfinite(times)
            if mine.any():
                entry = self.runs.setdefault(run, RunSongs())
                entry.songs += int(mine.sum())
                entry.audio_seconds += float(known[mine].sum())
                entry.first, entry.last = min(entry.first, times[mine].min()), max(entry.last, times[mine].max())

    def _take_picks(self, bucket: int, table: pa.Table, seconds: np.ndarray) -> None:
        ids = [id or "" for id in column(table, "id", pa.string()).to_pylist()]
        fingerprints = [each or "" for each in column(table, "fingerprint", pa.string()).to_pylist()]
        silent = pc.fill_null(pc.equal(pc.utf8_length(column(table, "lyrics", pa.string())), 0), True).to_pylist()
        named = column(table, "language", pa.string()).to_pylist()
        languages = [INSTRUMENTAL if quiet else name or AUTO for quiet, name in zip(silent, named, strict=True)]
        self.languages.update(languages)
        lengths = np.searchsorted(_LONG_SECONDS, np.nan_to_num(seconds), side="right").tolist()
        drawn = self.picks.offer(bucket, ids, fingerprints, list(zip(languages, lengths, strict=True)))
        if AUTO in languages:
            lyrics = column(table, "lyrics", pa.string())
            for position, (language, rank) in enumerate(zip(languages, drawn, strict=True)):
                if language == AUTO and self._unread.takes(rank):
                    self._unread.offer(rank, lyrics[position].as_py())
        scores, attempts = numbers(table, "score"), numbers(table, "attempt")
        again = np.flatnonzero(attempts > 1)
        self.rerolled += len(again)
        scored = np.flatnonzero(np.isfinite(scores))
        order = scored[np.argsort(scores[scored], kind="stable")]
        for position in again.tolist():
            pick = Pick(bucket, ids[position], fingerprints[position])
            self.picks.offer_extreme("made again", float(drawn[position]), pick)
        for why, sign, places in (("highest score", -1, order[::-1]), ("lowest score", 1, order)):
            for position in places[:EXTREMES].tolist():
                pick = Pick(bucket, ids[position], fingerprints[position])
                self.picks.offer_extreme(why, sign * float(scores[position]), pick)

    def _read_languages(self) -> None:
        """Replace `auto` by what the lyrics say."""
        found = Counter(_language(lyrics) for _, lyrics in self._unread.ranked())
        total = self.languages.pop(AUTO, 0)
        if total > found.total():
            self.languages_read = found.total()
        for language, count in found.items():
            self.languages[language] += round(count * total / found.total())


def chosen_rows(catalog: Catalog, picks: list[Pick]) -> Iterator[tuple[Pick, dict[str, Any]]]:
    """Each pick with its row of `PLAYER_COLUMNS`, in the order of the picks."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    wanted = {pick.key for pick in picks}
    for bucket in sorted({pick.bucket for pick in picks}):
        table = catalog.songs_of(bucket, list(PLAYER_COLUMNS))
        keys = zip(table.column("id").to_pylist(), table.column("fingerprint").to_pylist(), strict=True)
        places = [place for place, (id, fingerprint) in enumerate(keys) if (id or "", fingerprint or "") in wanted]
        for row in table.take(pa.array(places, pa.int64())).to_pylist():
            rows[row["id"] or "", row["fingerprint"] or ""] = row
    return ((pick, rows[pick.key]) for pick in picks if pick.key in rows)


def column(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as `kind`; nulls where an older table lacks it."""
    if name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, kind)])
    return pc.cast(table.column(name), kind)


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column as float64; NaN for what is not there."""
    return np.array(column(table, name, pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    counts = pc.value_counts(values).to_pylist()
    return {each["values"]: each["counts"] for each in counts if each["values"] is not None}


def _language(lyrics: str) -> str:
    sung = [line for each in lyrics.splitlines() if (line := each.strip()) and not tag_of(line)]
    languages = Counter(languages_of(sung)[0])
    return languages.most_common(1)[0][0] if languages else INSTRUMENTAL
