"""Pruning: songs and failures that the current plan does not have are taken out of the catalog, rows before sound.

Whoever dies between a row and its sound leaves an orphan, which `acestep sweep` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import layout
from pipelines.catalog import Catalog, is_refused
from pipelines.compaction import rewrite_failed, rewrite_songs
from pipelines.errors import OutputError
from pipelines.plan import PlanRecord
from pipelines.rows import files_by_bucket, joined_keys, read_files, rows_in, without
from pipelines.storage import Storage

EXAMPLES = 20
_THREADS = 16
_SOURCE = "/latents/"


@dataclass(slots=True)
class PruneReport:
    """What was pruned, or would be."""

    songs: int = 0
    left: int = 0
    """Of them, songs whose id is not in the plan any longer; the others are there with another fingerprint."""
    failures: int = 0
    bytes: int = 0
    """Of sound, as the rows tell."""
    kept_sources: int = 0
    """Songs that left the plan and stay, for the plan has songs that begin with their latents."""
    examples: list[str] = field(default_factory=list)
    """Ids of the first few songs."""

    @property
    def changed(self) -> int:
        """Songs whose id is in the plan with another fingerprint: the model or a setting changed."""
        return self.songs - self.left

    def text(self) -> str:
        """For a person, one line."""
        sources = f"; {self.kept_sources:,} more stay as sources of others" if self.kept_sources else ""
        return (
            f"{self.songs:,} songs pruned ({self.left:,} left the manifest, {self.changed:,} were made by another "
            f"model or with other settings), {self.bytes / 1e6:,.1f} MB; {self.failures:,} failures{sources}"
        )


def prune(
    storage: Storage, plan: PlanRecord, *, dry_run: bool = False, check: Callable[[], None] = lambda: None
) -> PruneReport:
    """Take out songs and failures that a plan does not have, with their sound.

    Nobody else may write meanwhile.

    Args:
        dry_run: only say what would go.
        check: called before anything is changed, again and again; raises what is to end the work.

    Raises:
        OutputError: when a part of the plan is gone: its songs would look as if they had left it.
    """
    report = PruneReport()
    keys = {bucket: layout.plan_key(bucket, plan.plan) for bucket in range(plan.num_buckets)}
    if gone := set(keys.values()) - set(storage.keys(layout.PLAN, ".parquet")):
        raise OutputError(f"output {storage.url}: a part of the plan is gone, so nothing is pruned: {min(gone)}")
    catalog = Catalog(storage)
    sources = _sources(storage, keys.values())
    failed = files_by_bucket(storage, layout.FAILED)
    for bucket in sorted(keys.keys() & set(catalog.buckets())):
        planned = storage.read_table(keys[bucket], ["id", "fingerprint"])
        leaving = _songs_leaving(catalog, bucket, planned, sources, report)
        if leaving.num_rows and not dry_run:
            check()
            rewrite_songs(storage, bucket, without(joined_keys(leaving)))
            check()
            _delete(storage, leaving, ["path", "latents"])
        if bucket in failed:
            _prune_failures(catalog, bucket, planned, report, dry_run, check)
    return report


def _songs_leaving(
    catalog: Catalog, bucket: int, planned: pa.Table, sources: pa.Array, report: PruneReport
) -> pa.Table:
    songs = catalog.songs_of(bucket, ["id", "fingerprint", "path", "latents", "bytes"])
    leaving = songs.filter(pc.invert(rows_in(songs, joined_keys(planned))))
    needed = pc.is_in(leaving.column("latents"), value_set=sources, skip_nulls=True)
    report.kept_sources += pc.sum(needed).as_py() or 0
    leaving = leaving.filter(pc.invert(needed))
    changed = pc.is_in(leaving.column("id"), value_set=planned.column("id").combine_chunks())
    report.songs += leaving.num_rows
    report.left += leaving.num_rows - (pc.sum(changed).as_py() or 0)
    report.bytes += pc.sum(leaving.column("bytes")).as_py() or 0
    room = EXAMPLES - len(report.examples)
    report.examples += leaving.column("id").slice(0, room).to_pylist()
    return leaving


def _prune_failures(
    catalog: Catalog, bucket: int, planned: pa.Table, report: PruneReport, dry_run: bool, check: Callable[[], None]
) -> None:
    storage = catalog.storage
    keys = joined_keys(planned)
    folder = layout.bucket_folder(layout.FAILED, bucket)
    tables = read_files(storage, folder, ["id", "fingerprint", "path"]).values()
    empty = pa.schema([(name, pa.string()) for name in ("id", "fingerprint", "path")]).empty_table()
    rows = pa.concat_tables([empty, *tables], promote_options="default")
    leaving = rows.filter(pc.and_not(pc.invert(rows_in(rows, keys)), is_refused(rows)))
    report.failures += len(set(joined_keys(leaving).to_pylist()))
    if leaving.num_rows and not dry_run:
        check()
        rewrite_failed(storage, bucket, lambda rows: rows.filter(rows_in(rows, keys)))
        check()
        _delete(storage, leaving, ["path"])


def _delete(storage: Storage, rows: pa.Table, columns: list[str]) -> None:
    keys = {key for name in columns for key in rows.column(name).to_pylist() if key}
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda key: storage.delete([key]), sorted(keys)))


def _sources(storage: Storage, plan_keys: Iterable[str]) -> pa.Array:
    """Latents that songs of the plan begin with, whatever the output was called when they were planned."""
    found: set[str] = set()
    for key in plan_keys:
        for source in storage.read_table(key, ["source"]).column("source").drop_null().unique().to_pylist():
            _, sign, name = source.rpartition(_SOURCE)
            if sign:
                found.add(f"{_SOURCE[1:]}{name}")
    return pa.array(sorted(found), pa.string())
