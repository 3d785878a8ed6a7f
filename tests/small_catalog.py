"""A small catalog as a run leaves it, made by hand: plan, sound of half a second, rows, and what belongs to them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from acestep.audio import encode_audio
from acestep.audio_format import AudioFormat
from pipelines import layout, schema
from pipelines.catalog import Catalog, failed_table
from pipelines.plan import FORMAT, PlanRecord
from pipelines.storage import Storage

PLAN = "0123456789abcdef"
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
RATE = 44_100
NUM_BUCKETS = 2


def plan_rows(ids: Iterable[str], fingerprint: str = "f", **more: Any) -> pa.Table:
    """Rows of a plan."""
    same = {"fingerprint": fingerprint, "duration": 2.0, "prompt": "p", "file": "m", "row": 1}
    return schema.table_of([{"id": id, **same, **more} for id in ids], schema.PLAN)


def write_plan(storage: Storage, plan: pa.Table, name: str = PLAN, num_buckets: int = NUM_BUCKETS) -> None:
    """The plan's objects and run.json."""
    buckets = [layout.bucket_of(id, num_buckets) for id in plan.column("id").to_pylist()]
    for bucket in range(num_buckets):
        rows = plan.filter(pa.array([each == bucket for each in buckets], pa.bool_()))
        storage.write_table(layout.plan_key(bucket, name), rows)
    values: dict[str, Any] = {field.name: {} for field in dataclasses.fields(PlanRecord)}
    values |= {"format": FORMAT, "plan": name, "num_buckets": num_buckets, "rejected": 0, "looks_outside": False}
    values |= {"rows": plan.num_rows, "planned": plan.num_rows}
    storage.put(layout.RUN, json.dumps(values).encode())


def song_row(storage: Storage, id: str, fingerprint: str = "f", *, minutes: int = 0, **more: Any) -> dict[str, Any]:
    """Put a song's sound and latents away; its row."""
    format = AudioFormat(format=more.pop("format", "flac"))
    seed = int.from_bytes(hashlib.sha256(f"{id}{fingerprint}".encode()).digest()[:4], "big")
    samples = (np.random.default_rng(seed).standard_normal((2, RATE // 2)) * 0.1).astype(np.float32)
    data = encode_audio(samples, RATE, format)
    path, latents = layout.audio_key(id, fingerprint, format.extension), layout.latents_key(id, fingerprint)
    storage.put(path, data)
    storage.put(latents, b"latents of " + id.encode())
    row = {"id": id, "fingerprint": fingerprint, "path": path, "latents": latents, "format": format.format}
    row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "duration": 0.5}
    row |= {"num_samples": samples.shape[1], "sample_rate": RATE, "created_at": NOW + timedelta(minutes=minutes)}
    return row | more


def commit(storage: Storage, name: str, rows: list[dict[str, Any]]) -> None:
    """Rows of songs, into the files of one commit."""
    for bucket in range(NUM_BUCKETS):
        own = [row for row in rows if layout.bucket_of(row["id"], NUM_BUCKETS) == bucket]
        if own:
            Catalog(storage).add_songs(bucket, name, schema.table_of(own, schema.SONG))


def fail(
    storage: Storage, ids: Iterable[str], fingerprint: str = "f", run: str = "r1", error_class: str = "quality"
) -> None:
    """Rows of failures, with their sound in quarantine."""
    for id in ids:
        key = layout.quarantine_key(id, fingerprint, ".flac")
        storage.put(key, b"sound of " + id.encode())
        table = failed_table(plan_rows([id], fingerprint), error_class, "why", attempts=1, batch="b", run=run)
        table = table.set_column(table.column_names.index("path"), "path", pa.array([key]))
        Catalog(storage).add_failed(layout.bucket_of(id, NUM_BUCKETS), f"{run}-{id}", table)


def make_catalog(storage: Storage, songs: int = 6) -> list[dict[str, Any]]:
    """A finished catalog: songs `s0`, `s1`, ... in commits of two, one failure `bad`, planned all; the songs' rows."""
    rows = [song_row(storage, f"s{number}", minutes=number) for number in range(songs)]
    write_plan(storage, plan_rows([*(row["id"] for row in rows), "bad"]))
    for number in range(0, songs, 2):
        commit(storage, f"r1-{number:06d}", rows[number : number + 2])
    fail(storage, ["bad"])
    return rows


def visible(storage: Storage) -> dict[str, Any]:
    """All that readers see of a catalog."""
    catalog = Catalog(storage)
    songs, failures = catalog.songs(), catalog.failures()
    return {
        "songs": sorted(songs.to_pylist(), key=lambda row: (row["id"], row["fingerprint"])),
        "failures": sorted(failures.to_pylist(), key=lambda row: (row["id"] or "", row["fingerprint"], row["row"])),
        "over": {bucket: catalog.done(bucket) | catalog.failed(bucket) for bucket in range(NUM_BUCKETS)},
    }


class KilledError(BaseException):
    """The process is no more."""


class Mortal(Storage):
    """Storage of a process that is killed before its change number `lives`, counted from 0."""

    def __init__(self, url: str, lives: int, options: Mapping[str, Any] | None = None):
        super().__init__(url, options)
        self.lives = lives
        self._counting = threading.Lock()

    def _live(self) -> None:
        with self._counting:
            if self.lives <= 0:
                raise KilledError
            self.lives -= 1

    def put(self, key: str, data: bytes) -> None:
        self._live()
        super().put(key, data)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._live()
            super().delete([key])


def killed_after_each_step(storage: Storage, work: Callable[[Storage], object]) -> Iterator[int]:
    """Does `work` again and again, killed one change later each time, until it ends; yields after each time."""
    for lives in range(1000):
        try:
            work(Mortal(storage.url, lives, storage.options))
        except KilledError:
            yield lives
        else:
            yield lives
            return
    raise AssertionError("it never ended")
