"""Orphans: objects that no row names, left behind by runs that died between a song's sound and its row."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipelines import layout
from pipelines.listing import among, hashed, objects_below
from pipelines.plan import PlanRecord
from pipelines.rows import files_by_bucket, read_files
from pipelines.storage import Storage

_NAMED = {layout.SONGS: ["path", "latents"], layout.FAILED: ["path"]}
"""Columns that hold keys of objects."""
_OTHERS = (layout.PLAN, layout.SONGS, layout.FAILED, layout.RETRIED, layout.FINISHED, layout.RUNS)
_UNFINISHED = re.compile(r"(^|/)\.[0-9a-f]{32}\.tmp$")
_PROBE = re.compile(r"^probe-[0-9a-f]{32}$")
_LINES = 10_000
_THREADS = 16
_DELETED_BETWEEN_CHECKS = 200


@dataclass(slots=True)
class Orphans:
    """What can be deleted."""

    keys: list[str] = field(default_factory=list)
    """Sound that no row names, then `leftovers`: unfinished files, probes, plans that are not the current one."""
    bytes: int = 0
    leftovers: int = 0
    objects: int = 0
    """Looked at."""


def find_orphans(storage: Storage) -> Orphans:
    """Objects that nothing in the catalog needs; what a run at work has not committed yet is among them.

    Objects are listed before rows are read, so that a song that is finished in between is none. The listing waits on
    local disk, and of the rows only hashes are kept: equal ones would spare an orphan, never cost a song.
    """
    orphans = Orphans()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as listing:
        for folder in layout.SOUND_FOLDERS:
            for key, size in objects_below(storage, folder):
                listing.write(json.dumps([key, size]) + "\n")
        leftovers = list(_leftovers(storage))
        named = _named(storage)
        listing.seek(0)
        while lines := [json.loads(line) for _, line in zip(range(_LINES), listing, strict=False)]:
            orphans.objects += len(lines)
            for (key, size), is_named in zip(lines, among(hashed(key for key, _ in lines), named), strict=True):
                if not is_named:
                    orphans.keys.append(key)
                    orphans.bytes += size
    orphans.leftovers = len(leftovers)
    orphans.keys += (key for key, _ in leftovers)
    orphans.bytes += sum(size for _, size in leftovers)
    return orphans


def delete_orphans(
    storage: Storage,
    orphans: Orphans,
    *,
    check: Callable[[], None] = lambda: None,
    on_deleted: Callable[[int], object] = lambda _: None,
) -> None:
    """Delete what `find_orphans` found. Nobody else may write meanwhile, nor since it was found.

    Args:
        check: called before each few hundred; raises what is to end the work.
        on_deleted: called with how many more are gone.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(orphans.keys), _DELETED_BETWEEN_CHECKS):
            check()
            keys = orphans.keys[first : first + _DELETED_BETWEEN_CHECKS]
            list(pool.map(lambda key: storage.delete([key]), keys))
            on_deleted(len(keys))


def _named(storage: Storage) -> np.ndarray:
    """Hashes of all keys that rows name, sorted `[N]`."""
    hashes = [np.zeros(0, np.uint64)]
    for kind, columns in _NAMED.items():
        for bucket in files_by_bucket(storage, kind):
            for table in read_files(storage, layout.bucket_folder(kind, bucket), columns).values():
                there = [name for name in columns if name in table.column_names]
                hashes += [hashed(table.column(name).drop_null().to_pylist()) for name in there]
    return np.unique(np.concatenate(hashes))


def _leftovers(storage: Storage) -> Iterator[tuple[str, int]]:
    record = PlanRecord.read(storage)
    for key, size in objects_below(storage, "", deep=False):
        if _PROBE.search(key) or _UNFINISHED.search(key):
            yield key, size
    for folder in _OTHERS:
        for key, size in objects_below(storage, folder):
            if _UNFINISHED.search(key) or (folder == layout.PLAN and record and _is_old_plan(key, record.plan)):
                yield key, size


def _is_old_plan(key: str, plan: str) -> bool:
    return "/bucket=" in key and key.endswith(".parquet") and not key.endswith(f"/{plan}.parquet")
