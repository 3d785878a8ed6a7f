"""What of a plan exists already, bucket by bucket: ids and fingerprints only, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from pipelines import layout
from pipelines.catalog import Catalog, keys_of
from pipelines.storage import Storage

_THREADS = 8


@dataclass(frozen=True, slots=True)
class BucketState:
    """One bucket of a plan against the catalog."""

    bucket: int
    planned: int
    missing: int
    """Songs of the plan that are not there."""
    missing_seconds: float
    """Of audio."""


def take_census(storage: Storage, plan: str, buckets: Iterable[int], *, run: str | None = None) -> list[BucketState]:
    """Count what is missing of a plan in each of `buckets`; with `run`, what it recorded as failed is not missing."""
    count = partial(_count, storage, plan, run)
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(count, buckets))


def _count(storage: Storage, plan: str, run: str | None, bucket: int) -> BucketState:
    table = storage.read_table(layout.plan_key(bucket, plan), ["id", "fingerprint", "duration"])
    catalog = Catalog(storage)
    over = catalog.done(bucket)
    if run is not None:
        over |= catalog.failed(bucket, run)
    durations = table.column("duration").to_pylist()
    missing = [seconds for key, seconds in zip(keys_of(table), durations, strict=True) if key not in over]
    return BucketState(bucket, table.num_rows, len(missing), sum(missing))
