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
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import layout, schema
from pipelines.rows import KEY_COLUMNS, files_by_bucket, joined_keys, newest, read_files, rows_in, united
from pipelines.storage import Storage

Key = tuple[str, str]
"""(id, fingerprint): one song, exactly."""

RETRIED = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("failed_run", pa.string()),
        pa.field("run", pa.string()),
        pa.field("created_at", schema.TIME),
    ]
)
"""A failure that no longer stands: the one that `failed_run` recorded. Naming the run, and not a time, makes it safe
against clocks that differ; `run` is who asked."""

_FAILURE = [*KEY_COLUMNS, "run"]
_KEYS = pa.schema([(name, pa.string()) for name in KEY_COLUMNS])
_FAILURES = pa.schema([(name, pa.string()) for name in _FAILURE])


class Catalog:
    """The rows of one output."""

    def __init__(self, storage: Storage):
        self.storage = storage

    def buckets(self) -> list[int]:
        """Buckets that hold songs or failures."""
        return sorted({*files_by_bucket(self.storage, layout.SONGS), *files_by_bucket(self.storage, layout.FAILED)})

    def done(self, bucket: int) -> set[Key]:
        """The songs of a bucket that exist."""
        return {key for table in self._read(layout.SONGS, bucket, KEY_COLUMNS) for key in keys_of(table)}

    def done_keys(self, bucket: int) -> pa.Table:
        """`done` as a table of id and fingerprint: quicker in bulk; there may be duplicates."""
        tables = self._read(layout.SONGS, bucket, KEY_COLUMNS)
        return pa.concat_tables([_KEYS.empty_table(), *(table.select(KEY_COLUMNS) for table in tables)])

    def failed(self, bucket: int, run: str | None = None) -> set[Key]:
        """The songs of a bucket whose failure stands: it is not tried again until somebody asks.

        With `run`, all that this run recorded, whether or not somebody asked to try it again since.
        """
        return set(keys_of(self.failed_keys(bucket, run)))

    def failed_keys(self, bucket: int, run: str | None = None) -> pa.Table:
        """`failed` as a table of id, fingerprint and run; there may be duplicates."""
        failed = united(self._read(layout.FAILED, bucket, _FAILURE), _FAILURES)
        failed = failed.filter(pc.invert(is_refused(failed)))
        if run is not None:
            return failed.filter(pc.equal(failed.column("run"), run))
        return self._standing(bucket, failed)

    def retry(self, bucket: int, keys: Collection[Key], run: str) -> int:
        """Have these failed songs of a bucket tried again by the next run; how many failures stood.

        Args:
            run: who asks.
        """
        wanted = set(keys)
        standing = [row for row in self.failed_keys(bucket).to_pylist() if (row["id"], row["fingerprint"]) in wanted]
        failures = {tuple(row[name] for name in _FAILURE) for row in standing}
        if not failures:
            return 0
        # The marker first: whoever finds it believes it.
        self.storage.delete([layout.finished_key(bucket)])
        now = datetime.now(timezone.utc)
        rows = [
            {"id": id, "fingerprint": fingerprint, "failed_run": failed_run, "run": run, "created_at": now}
            for id, fingerprint, failed_run in sorted(failures)
        ]
        key = f"{layout.bucket_folder(layout.RETRIED, bucket)}/{run}-{secrets.token_hex(4)}.parquet"
        self.storage.write_table(key, schema.table_of(rows, RETRIED))
        return len({(id, fingerprint) for id, fingerprint, _ in failures})

    def select_failures(self, error_class: str | None = None, ids: Iterable[str] | None = None) -> dict[int, list[Key]]:
        """Failures that stand and can be tried again, by bucket.

        Args:
            error_class: only of this class.
            ids: only these songs, or all that became of these ids of the manifest.
        """
        wanted = None if ids is None else set(ids)
        selected: dict[int, list[Key]] = {}
        for bucket in files_by_bucket(self.storage, layout.FAILED):
            failed = self.failures_of(bucket)
            failed = failed.filter(pc.invert(is_refused(failed)))
            if error_class is not None:
                failed = failed.filter(pc.equal(failed.column("error_class"), error_class))
            keys = keys_of(failed)
            if wanted is not None and keys:
                parents = self._parents(bucket)
                keys = [key for key in keys if key[0] in wanted or parents.get(key[0]) in wanted]
            if keys:
                selected[bucket] = sorted(keys)
        return selected

    def add_songs(self, bucket: int, name: str, songs: pa.Table) -> None:
        """Commit finished songs of a bucket, all at once; their audio must be there already."""
        self.storage.write_table(f"{layout.bucket_folder(layout.SONGS, bucket)}/{name}.parquet", songs)

    def add_failed(self, bucket: int, name: str, failed: pa.Table) -> None:
        """Record songs of a bucket that could not be made."""
        self.storage.write_table(f"{layout.bucket_folder(layout.FAILED, bucket)}/{name}.parquet", failed)

    def songs(self) -> pa.Table:
        """Every song once, the newest row of each (id, fingerprint); `bucket` is not a column here.

        All of it is in memory: `songs_of` reads one bucket.
        """
        return united((self.songs_of(bucket) for bucket in files_by_bucket(self.storage, layout.SONGS)), schema.SONG)

    def songs_of(self, bucket: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Every song of one bucket once; with `columns`, those of them that `SONG` or the bucket has."""
        if columns is None:
            return newest(united(self._read(layout.SONGS, bucket), schema.SONG))
        needed = list(dict.fromkeys([*columns, *KEY_COLUMNS, "created_at"]))
        known = pa.schema([schema.SONG.field(name) for name in needed if name in schema.SONG.names])
        table = newest(united(self._read(layout.SONGS, bucket, needed), known))
        return table.select([name for name in columns if name in table.column_names])

    def failures(self) -> pa.Table:
        """The newest row of every failure that stands and was not made since, and of every refused row."""
        return united(
            (self.failures_of(bucket) for bucket in files_by_bucket(self.storage, layout.FAILED)), schema.FAILED
        )

    def failures_of(self, bucket: int) -> pa.Table:
        """`failures` of one bucket."""
        failed = self._standing(bucket, united(self._read(layout.FAILED, bucket), schema.FAILED))
        refused = newest(failed.filter(is_refused(failed)), ["file", "row"])
        failed = newest(failed.filter(pc.invert(is_refused(failed))))
        made = joined_keys(self.done_keys(bucket))
        return pa.concat_tables([refused, failed.filter(pc.invert(rows_in(failed, made)))])

    def _standing(self, bucket: int, failed: pa.Table) -> pa.Table:
        """Failures that nobody asked to try again."""
        retried = united(self._read(layout.RETRIED, bucket), RETRIED)
        if not retried.num_rows:
            return failed
        return failed.filter(pc.invert(rows_in(failed, joined_keys(retried, [*KEY_COLUMNS, "failed_run"]), _FAILURE)))

    def _parents(self, bucket: int) -> dict[str, str | None]:
        """Which id of the manifest a planned song came from, where that is another."""
        tables = self._read(layout.PLAN, bucket, ["id", "parent"])
        return {row["id"]: row.get("parent") for table in tables for row in table.to_pylist()}

    def _read(self, kind: str, bucket: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        yield from read_files(self.storage, layout.bucket_folder(kind, bucket), columns).values()


def is_refused(failed: pa.Table) -> pa.ChunkedArray:
    """Which rows of `failed/` were refused by the plan: they have no fingerprint, and need another manifest."""
    return pc.equal(pc.fill_null(failed.column("fingerprint"), ""), "")


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
