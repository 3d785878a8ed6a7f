"""Compaction: one file a bucket for songs and for failures, instead of one for each commit.

The new file is put there whole, then exactly those are deleted that it was made of. Whoever dies in between leaves rows
twice, which every reader does away with anyway: at no moment does the catalog say anything else than before or after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import layout, schema
from pipelines.catalog import Catalog, is_refused
from pipelines.rows import KEY_COLUMNS, files_by_bucket, newest, read_files, united, write_whole_bucket
from pipelines.storage import Storage

Keep = Callable[[pa.Table], pa.Table]
"""Gets rows, gives those that stay."""


@dataclass(slots=True)
class CompactionReport:
    """What a compaction did; files of songs, failures and requests to try again."""

    buckets: int = 0
    files_before: int = 0
    files_after: int = 0


def compact(
    storage: Storage, *, check: Callable[[], None] = lambda: None, on_bucket: Callable[[int], object] = lambda _: None
) -> CompactionReport:
    """Make one file of each bucket's songs, and one of its failures; those that do not stand any longer are left out.

    Nobody else may write meanwhile.

    Args:
        check: called before anything is changed, again and again; raises what is to end the work.
        on_bucket: called with each bucket that is done.
    """
    report = CompactionReport()
    songs = files_by_bucket(storage, layout.SONGS)
    failed = files_by_bucket(storage, layout.FAILED)
    retried = files_by_bucket(storage, layout.RETRIED)
    for bucket in sorted({*songs, *failed, *retried}):
        files = [songs.get(bucket, []), own_files(failed.get(bucket, [])), retried.get(bucket, [])]
        report.files_before += sum(map(len, files))
        is_compact = len(files[0]) <= 1 and len(files[1]) <= 1 and not files[2]
        if is_compact:
            report.files_after += sum(map(len, files))
        else:
            check()
            if len(files[0]) > 1:
                rewrite_songs(storage, bucket)
                check()
            compact_failed(storage, bucket, files[2])
            report.buckets += 1
            report.files_after += sum(
                len(own_files(storage.keys(layout.bucket_folder(kind, bucket), ".parquet")))
                for kind in (layout.SONGS, layout.FAILED)
            )
        on_bucket(bucket)
    return report


def rewrite_songs(storage: Storage, bucket: int, keep: Keep = lambda rows: rows) -> int:
    """Make one file of a bucket's songs, of the rows that stay; how many songs do not.

    Songs that are left out exist until the last of their old files is deleted.
    """
    folder = layout.bucket_folder(layout.SONGS, bucket)
    tables = read_files(storage, folder)
    songs = newest(united(tables.values(), schema.SONG))
    kept = keep(songs).sort_by([(name, "ascending") for name in KEY_COLUMNS])
    write_whole_bucket(storage, folder, kept, instead_of=tables)
    return songs.num_rows - kept.num_rows


def rewrite_failed(storage: Storage, bucket: int, keep: Keep) -> None:
    """Make one file of a bucket's failures, of the rows that stay; those that the plan refused are not touched."""
    folder = layout.bucket_folder(layout.FAILED, bucket)
    tables = read_files(storage, folder)
    own = {key: tables[key] for key in own_files(tables)}
    if not own:
        return
    kept = keep(united(own.values(), schema.FAILED)).sort_by([(name, "ascending") for name in [*KEY_COLUMNS, "run"]])
    write_whole_bucket(storage, folder, kept, instead_of=own)


def compact_failed(storage: Storage, bucket: int, retried: list[str]) -> None:
    """Leave those failures of a bucket that stand, then delete the requests to try others again: `retried`."""

    def standing(rows: pa.Table) -> pa.Table:
        failures = Catalog(storage).failures_of(bucket)
        return failures.filter(pc.invert(is_refused(failures)))

    rewrite_failed(storage, bucket, standing)
    # Last: without them, failures that do not stand would stand again.
    storage.delete(retried)


def own_files(keys: Iterable[str]) -> list[str]:
    """Without those that the plan writes, and replaces, by itself."""
    return [key for key in keys if not key.endswith(f"/{layout.REJECTED_FILE}")]
