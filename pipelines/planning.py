"""The two steps of planning that processes share: rows are judged and sorted into buckets, then buckets are written.

Between the two, everything lies in `Chunks` on local disk.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from acestep.errors import InvalidRequestError
from acestep.problems import Problem
from pipelines import layout, schema
from pipelines.chunks import Chunks, StreamedTable
from pipelines.judging import plan_rows
from pipelines.manifest_files import ManifestBatch
from pipelines.rejects import DUPLICATE_ID, REJECT, WARNING, Finding, Tally, reject, warning
from pipelines.resolution import Resolution
from pipelines.spill import as_schema, unified_types
from pipelines.storage import Storage
from pipelines.variants import MAX_SONGS, NUM_SONGS, number_of_songs

PLANNED, REFUSED = "planned", "refused"
"""Chunks by bucket: songs, and rows that are none."""
REJECTS, WARNINGS = "rejects", "warnings"
"""Chunks by batch of the manifest: what people read."""

_SONGS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class Desk:
    """What every process needs to know; small, for it travels with each task.

    Attributes:
        several: rows may become several songs each.
        now: when all this happens.
    """

    resolution: Resolution
    chunks: Chunks
    storage: Storage
    plan: str
    num_buckets: int
    several: bool
    now: datetime


@dataclass(frozen=True, slots=True)
class BatchTask:
    """A batch of the manifest, its number, and where the songs of the catalog lie that it names."""

    number: int
    batch: ManifestBatch
    songs: Mapping[str, str | Problem]


@dataclass(slots=True)
class BatchReport:
    """What was found in a batch.

    Attributes:
        kinds: types of all columns of its songs.
        rejected: rows.
        adapters: fingerprints of those that rows name.
        ids: where rows may become several songs: hashes of the songs' ids beside their buckets, uint64 `[N, 2]`.
    """

    kinds: dict[str, pa.DataType] = field(default_factory=dict)
    rejected: int = 0
    tally: Tally = field(default_factory=Tally)
    adapters: dict[str, str] = field(default_factory=dict)
    ids: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BucketTask:
    """A bucket, all columns of the plan, and hashes of ids that songs of several buckets have."""

    bucket: int
    columns: pa.Schema
    collisions: frozenset[int]


@dataclass(slots=True)
class BucketReport:
    """What became of a bucket.

    Attributes:
        planned: songs.
        rejected: rows with an id that others have.
        failed: the object of refused rows, if there are any.
    """

    planned: int = 0
    rejected: int = 0
    tally: Tally = field(default_factory=Tally)
    failed: str | None = None


def judge_batch(desk: Desk, task: BatchTask) -> BatchReport:
    """Judge the rows of a batch, and put them down by bucket."""
    report = BatchReport()
    for part, rows in enumerate(task.batch.parts(_part_starts(task.batch, desk.resolution))):
        judged = plan_rows(rows, desk.resolution, task.songs)
        report.kinds = unified_types(report.kinds, judged.planned.schema)
        report.rejected += judged.rejects.num_rows
        report.tally.merge(judged.tally)
        report.adapters |= judged.adapters
        number = (task.number, part)
        buckets = _put_by_bucket(desk, PLANNED, number, judged.planned)
        _put_by_bucket(desk, REFUSED, number, judged.rejects)
        desk.chunks.put(REJECTS, task.number, number, judged.rejects.drop_columns(["request"]))
        desk.chunks.put(WARNINGS, task.number, number, judged.warnings)
        if desk.several:
            report.ids.append(np.stack([_hashes(judged.planned), buckets.astype(np.uint64)], axis=1))
    return report


def write_bucket(desk: Desk, task: BucketTask) -> BucketReport:
    """Write a bucket of the plan, in the order of the ids; of rows with one id, the first has it."""
    report = BucketReport()
    severity = desk.resolution.preflight.duplicate_id
    first: dict[str, tuple[str, int]] = {}
    songs: list[pa.Table] = [task.columns.empty_table()]
    key = f"{layout.bucket_folder(layout.FAILED, task.bucket)}/{layout.REJECTED_FILE}"
    with StreamedTable(desk.storage, key, schema.FAILED) as failed:
        for _, table in desk.chunks.take(REFUSED, task.bucket):
            failed.write(_as_failed(table, desk))
        for number, table in desk.chunks.take(PLANNED, task.bucket):
            again = _taken(table, first, task.collisions)
            if again and severity != "off":
                rejects, warnings = _again(table, again, severity, report)
                failed.write(_as_failed(rejects, desk))
                place = (*number, task.bucket)
                desk.chunks.put(REJECTS, number[0], place, rejects.drop_columns(["request"]))
                desk.chunks.put(WARNINGS, number[0], place, warnings)
            if again and severity == "error":
                table = table.filter(pa.array([position not in again for position in range(table.num_rows)]))
            songs.append(as_schema(table, task.columns))
    report.failed = key if failed.rows else None
    planned = pa.concat_tables(songs).combine_chunks().sort_by([("id", "ascending"), ("fingerprint", "ascending")])
    if severity != "error":
        planned = _each_once(planned)
    report.planned = planned.num_rows
    desk.storage.write_table(layout.plan_key(task.bucket, desk.plan), planned)
    return report


def find_collisions(ids: Collection[np.ndarray]) -> frozenset[int]:
    """Hashes of ids that songs of more than one bucket have."""
    if not ids:
        return frozenset()
    pairs = np.unique(np.concatenate(list(ids)), axis=0)
    hashes, counts = np.unique(pairs[:, 0], return_counts=True)
    return frozenset(hashes[counts > 1].tolist())


def songs_of_rows(batch: ManifestBatch, resolution: Resolution) -> list[int]:
    """How many songs each row makes, at most; a row that says something impossible is refused and makes none."""
    combinations = resolution.most_songs_of_a_row() // resolution.num_songs
    if NUM_SONGS not in batch.table.column_names:
        return [combinations * resolution.num_songs] * len(batch.rows)
    counts = []
    for value in batch.table.column(NUM_SONGS).to_pylist():
        try:
            counts.append(combinations * number_of_songs(value, resolution.num_songs))
        except InvalidRequestError:
            counts.append(0)
    return counts


def _part_starts(batch: ManifestBatch, resolution: Resolution) -> list[int]:
    """Positions before which a batch is cut, so that not too many songs are in memory at once."""
    starts, songs = [0], 0
    for position, count in enumerate(songs_of_rows(batch, resolution)):
        if songs and songs + count > _SONGS_AT_ONCE:
            starts.append(position)
            songs = 0
        songs += min(count, MAX_SONGS)
    return starts


def _put_by_bucket(desk: Desk, kind: str, number: tuple[int, ...], table: pa.Table) -> np.ndarray:
    """Put the rows down; returns their buckets. Songs of one row share that of the row's id."""
    names = table.column("id").to_pylist()
    if "parent" in table.column_names:
        names = [parent or id for parent, id in zip(table.column("parent").to_pylist(), names, strict=True)]
    else:  # Rows without an id are spread as if they had one.
        names = [f"{number}-{place}" if id is None else id for place, id in enumerate(names)]
    buckets = np.array([layout.bucket_of(name, desk.num_buckets) for name in names], dtype=np.int64)
    order = np.argsort(buckets, kind="stable")
    table, ordered = table.take(pa.array(order)), buckets[order]
    for bucket in np.unique(ordered):
        start, end = np.searchsorted(ordered, [bucket, bucket + 1])
        desk.chunks.put(kind, int(bucket), number, table.slice(start, end - start))
    return buckets


def _hashes(songs: pa.Table) -> np.ndarray:
    digests = (hashlib.sha256(id.encode()).digest()[:8] for id in songs.column("id").to_pylist())
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _taken(
    songs: pa.Table, first: dict[str, tuple[str, int]], collisions: Collection[int]
) -> dict[int, tuple[int, str]]:
    """Positions of songs whose rows have an id that another has: the row's first position, and what is wrong."""
    columns = [songs.column(name).to_pylist() for name in ("file", "row", "parent", "id")]
    hashes = _hashes(songs).tolist() if collisions else [0] * songs.num_rows
    again: dict[int, tuple[int, str]] = {}
    numbered = enumerate(zip(*columns, strict=True))
    for place, group in itertools.groupby(numbered, key=lambda each: each[1][:2]):
        rows = list(group)
        position, (file, _, parent, id) = rows[0]
        names = [parent or id, *(each[3] for _, each in rows)]
        elsewhere = any(each[2] is not None and hashes[at] in collisions for at, each in rows)
        if earlier := next((first[name] for name in names if name in first), None):
            where = f"row {earlier[1]}" + (f" of {earlier[0]}" if earlier[0] != file else "")
            reason = f"{where} has it already; every row needs its own"
        elif elsewhere:
            reason = "one of its songs would have the id of another row; every row needs its own"
        else:
            first.update(dict.fromkeys(names, place))
            continue
        again |= {at: (position, reason) for at, _ in rows}
    return again


def _again(
    songs: pa.Table, again: Mapping[int, tuple[int, str]], severity: str, report: BucketReport
) -> tuple[pa.Table, pa.Table]:
    """Of songs that `_taken` found, each row once, as rejects or as warnings; counted in the report."""
    rejects, warnings = [], []
    first = dict(again.values())
    for values, reason in zip(songs.take(pa.array(list(first), pa.int64())).to_pylist(), first.values(), strict=True):
        id = values["parent"] or values["id"]
        where = (values["file"], values["row"], id)
        finding = Finding(DUPLICATE_ID, severity, Problem("id", id, reason))
        if severity == "error":
            request = {name: values[name] for name in schema.REQUEST.names} | {"id": id}
            rejects.append(reject(*where, [finding], request))
        else:
            warnings.append(warning(*where, finding))
        report.tally.add(*where, [finding])
    report.rejected += len(rejects)
    return schema.table_of(rejects, REJECT), schema.table_of(warnings, WARNING)


def _each_once(songs: pa.Table) -> pa.Table:
    """Without songs that are there already: the same id and the same sound. They lie side by side."""
    keys = list(zip(songs.column("id").to_pylist(), songs.column("fingerprint").to_pylist(), strict=True))
    return songs.filter(pa.array([not at or key != keys[at - 1] for at, key in enumerate(keys)], pa.bool_()))


def _as_failed(rejects: pa.Table, desk: Desk) -> pa.Table:
    same: dict[str, Any] = {"fingerprint": "", "error_class": "input", "attempts": 0, "batch": ""}
    same |= {"run": desk.plan, "created_at": desk.now}
    columns = [
        rejects.column(each.name)
        if each.name in rejects.column_names
        else pa.repeat(pa.scalar(same.get(each.name), each.type), rejects.num_rows)
        for each in schema.FAILED
    ]
    return pa.table(columns, schema=schema.FAILED)
