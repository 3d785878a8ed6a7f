"""`ExportPlan`: which songs go into which shard, cut by what their rows say, so that every run cuts alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.errors import UnusableInputError
from pipelines.export.columns import delivered
from pipelines.export.facts import Facts
from pipelines.export.options import ExportOptions
from pipelines.export.selection import Selection
from pipelines.sizes import bytes_per_second

FORMAT = 1
"""Raised when the same options and rows make other bytes than before."""

MOST_SONGS = 10_000
"""In a shard: the Hub wants no more files in one folder."""
LOSSLESS = ("wav", "flac")
OPUS_HZ = 48_000

_ROW_BYTES = 4_096
"""About so much a song takes besides its audio."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of the selection that becomes one object, or one folder."""

    index: int
    first: int
    songs: int
    bytes: int
    """About."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What an export will be.

    Attributes:
        rows: names the songs, their columns and how they are cut: with the options, all that decides the bytes.
        columns: what is delivered of the rows, types and all; a renditions' facts replace some.
        sample_rate: of all songs in the catalog, in Hz; None where they differ.
        models: (fingerprint, dtype) of the models of songs that are to be decoded from latents.
    """

    shards: tuple[Shard, ...]
    rows: str
    columns: pa.Schema
    facts: Facts
    sample_rate: int | None
    models: frozenset[tuple[str, str]]

    @property
    def songs(self) -> int:
        """Songs in all shards."""
        return sum(shard.songs for shard in self.shards)

    def extensions(self, options: ExportOptions) -> dict[str, str]:
        """The extension of each rendition's files; nothing where the catalog's own files are of several kinds."""
        if options.renditions:
            several = len(options.renditions) > 1
            return {each.name if several else "": each.format.format for each in options.renditions}
        formats = list(self.facts.values.get("format", {}))
        return {"": formats[0]} if len(formats) == 1 else {}

    def file_rate(self, options: ExportOptions) -> int | None:
        """Hz of all files; None where they differ. Opus is always 48 kHz."""
        formats: set[str] = {each.format.format for each in options.renditions}
        formats = formats or set(self.facts.values.get("format", {}))
        rate = options.sample_rate or self.sample_rate
        if "opus" not in formats:
            return rate
        return OPUS_HZ if formats == {"opus"} or rate == OPUS_HZ else None


def make_plan(selection: Selection, options: ExportOptions) -> ExportPlan:
    """Look at every selected song, once.

    Raises:
        UnusableInputError: for a column that does not exist, or for songs that no rendition can be made of.
    """
    digest, facts, sizes, lossy = hashlib.sha256(), Facts(), [], []
    rates: set[int] = set()
    models: set[tuple[str, str]] = set()
    columns = pa.schema([])
    for table in selection.tables():
        columns = delivered(table.slice(0, 0), options).schema
        facts.add(table)
        names = ["id", "fingerprint", "sha256", "bytes", "created_at", "duration", "format", "latents", "task"]
        for row in table.select([*names, "sample_rate", "model_fingerprint", "dtype"]).to_pylist():
            what = [row["id"], row["fingerprint"], row["sha256"], row["bytes"], row["created_at"].isoformat()]
            digest.update(json.dumps(what).encode())
            sizes.append(_ROW_BYTES + _audio_bytes(row, options))
            rates.add(row["sample_rate"])
            if options.renditions and from_latents(row, options):
                models.add((row["model_fingerprint"], row["dtype"]))
            elif options.renditions and row["format"] not in LOSSLESS:
                lossy.append(row)
    _refuse_lossy(lossy, options)
    shards = tuple(_cut(sizes, options.shard_bytes))
    digest.update(f"{columns} {[shard.first for shard in shards]}".encode())
    rate = rates.pop() if len(rates) == 1 else None
    return ExportPlan(shards, digest.hexdigest()[:16], columns, facts, rate, frozenset(models))


def from_latents(row: Mapping[str, Any], options: ExportOptions) -> bool:
    """Whether a song's renditions are decoded from its latents.

    Behind a repaint or an extension stands the source's own waveform, which no latents hold: its lossless file is
    truer.
    """
    if not options.use_latents or row["latents"] is None:
        return False
    return row["format"] not in LOSSLESS or row["task"] not in ("repaint", "extend")


def _audio_bytes(row: dict, options: ExportOptions) -> int:
    if options.kind == "jsonl":
        return 0
    if not options.renditions:
        return row["bytes"] or 0
    rate = options.sample_rate or row["sample_rate"]
    return sum(round(row["duration"] * bytes_per_second(each.format, rate).middle) for each in options.renditions)


def _cut(sizes: list[int], shard_bytes: int) -> Iterator[Shard]:
    index = first = held = 0
    for position, size in enumerate(sizes):
        if position > first and (held + size > shard_bytes or position - first >= MOST_SONGS):
            yield Shard(index, first, position - first, held)
            index, first, held = index + 1, position, 0
        held += size
    if sizes:
        yield Shard(index, first, len(sizes) - first, held)


def _refuse_lossy(rows: list[dict], options: ExportOptions) -> None:
    if not rows:
        return
    formats = ", ".join(sorted({row["format"] for row in rows}))
    shown = ", ".join(repr(row["id"]) for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
    unused = " and latents are not to be used" if not options.use_latents else " and no latents were kept"
    raise UnusableInputError(
        f"rendition: no good one can be made of {len(rows):,} songs ({shown}): their files are lossy ({formats})"
        f"{unused}. Export them as they are (no --rendition), or generate with --set keep_latents=true"
    )
