"""`Catalog`: the rows of finished and failed songs, which are also the record of what need not be done again.

A song exists when its row stands in `songs/`. Rows are written by one process (`Committer`), after their audio, whole
batches at a time; so a job that was killed and started again cuts the same batches, leaves out those that are there,
and makes the same engine calls as one that was never killed. Readers deduplicate by (id, fingerprint).

Why not Ray Data's own checkpoints: they hold every finished id in memory, on the driver and in each filter actor; they
need a write task for each commit, and the driver keeps the result of every one of those until the end; they know ids
and not settings, so that a changed config would take old songs for its own; they are deleted on success, where blocks
that Ray dropped count as success; and they are beta. One small Parquet object for a group of finished batches has none
of that: the driver holds what is in flight, and a restart reads ids and fingerprints bucket by bucket.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import layout, schema
from pipelines.spill import Spill
from pipelines.storage import Storage

Key = tuple[str, str]
"""(id, fingerprint): one song, exactly."""

_READERS = 16
_KEY_COLUMNS = ["id", "fingerprint"]


class Catalog:
    """The rows of one output."""

    def __init__(self, storage: Storage):
        self.storage = storage

    def done(self, bucket: int) -> set[Key]:
        """The songs of a bucket that exist."""
        folder = layout.bucket_folder(layout.SONGS, bucket)
        return {key for table in self._tables(folder, _KEY_COLUMNS) for key in keys_of(table)}

    def failed(self, bucket: int, run: str) -> set[Key]:
        """The songs of a bucket that failed in one run."""
        folder = layout.bucket_folder(layout.FAILED, bucket)
        tables = self._tables(folder, [*_KEY_COLUMNS, "run"])
        return {key for table in tables for key in keys_of(table.filter(pc.field("run") == run))}

    def add_songs(self, bucket: int, name: str, songs: pa.Table) -> None:
        """Commit finished songs of a bucket, all at once; their audio must be there already."""
        self.storage.write_table(f"{layout.bucket_folder(layout.SONGS, bucket)}/{name}.parquet", songs)

    def add_failed(self, bucket: int, name: str, failed: pa.Table) -> None:
        """Record songs of a bucket that could not be made."""
        self.storage.write_table(f"{layout.bucket_folder(layout.FAILED, bucket)}/{name}.parquet", failed)

    def songs(self) -> pa.Table:
        """Every song once, the newest row of each (id, fingerprint); `bucket` is not a column here."""
        return _newest(_united(self._tables(layout.SONGS), schema.SONG))

    def failures(self) -> pa.Table:
        """The newest row of everything that failed and was not made since."""
        failed = _newest(_united(self._tables(layout.FAILED), schema.FAILED), [*_KEY_COLUMNS, "file", "row"])
        made = {key for table in self._tables(layout.SONGS, _KEY_COLUMNS) for key in keys_of(table)}
        return failed.filter(pa.array([key not in made for key in keys_of(failed)], pa.bool_()))

    def _tables(self, folder: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        keys = self.storage.keys(folder, ".parquet")
        read: Callable[[str], pa.Table] = lambda key: self.storage.read_table(key, columns)  # noqa: E731
        if len(keys) < 2:
            yield from map(read, keys)
            return
        with ThreadPoolExecutor(min(_READERS, len(keys))) as pool:
            yield from pool.map(read, keys)


def keys_of(table: pa.Table) -> list[Key]:
    """(id, fingerprint) of each row."""
    return list(zip(table.column("id").to_pylist(), table.column("fingerprint").to_pylist(), strict=True))


def failed_table(plan: pa.Table, error_class: str, message: str, *, attempts: int, batch: str, run: str) -> pa.Table:
    """Planned rows as rows of `failed/`."""
    same = {
        "error_class": error_class,
        "message": message,
        "attempts": attempts,
        "batch": batch,
        "run": run,
        "created_at": datetime.now(timezone.utc),
    }
    names = schema.REQUEST.names
    return schema.table_of(
        [
            {**row, **same, "request": json.dumps({name: row[name] for name in names}, ensure_ascii=False)}
            for row in plan.to_pylist()
        ],
        schema.FAILED,
    )


def _united(tables: Iterator[pa.Table], columns: pa.Schema) -> pa.Table:
    """One table of all columns that any has; runs may have carried different ones."""
    with Spill() as spill:
        for table in tables:
            spill.add(0, table)
        return spill.table(0, columns)


def _newest(table: pa.Table, by: list[str] | None = None) -> pa.Table:
    """The last row, by time, of each group of equal keys."""
    order = pc.sort_indices(table, sort_keys=[("created_at", "ascending")])
    table = table.take(order)
    columns = [table.column(name).to_pylist() for name in by or _KEY_COLUMNS]
    last = {key: position for position, key in enumerate(zip(*columns, strict=True))}
    return table.take(pa.array(sorted(last.values()), pa.int64()))
