"""What of a plan exists already, bucket by bucket: ids and fingerprints only, so that memory stays flat.

A bucket of which nothing is left to do has a marker (`finished/`), which spares reading its plan and rows. It names
the plan that it is for, and the requests to try failures again that it knew of: with another plan, or after such a
request, it counts for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.rows import files_by_bucket, joined_keys, rows_in
from pipelines.storage import Storage

_THREADS = 4
_MARKER_THREADS = 16


@dataclass(frozen=True, slots=True)
class BucketState:
    """One bucket of a plan against the catalog."""

    bucket: int
    planned: int
    missing: int
    """Songs of the plan that are not there and are to be made."""
    missing_seconds: float
    """Of audio."""
    failed: int = 0
    """Songs of the plan whose failure stands: they are not tried again."""
    changed: int = 0
    """Missing songs whose id is there with another fingerprint: the model or a setting changed."""
    retried: tuple[str, ...] = ()
    """Requests to try failures again that this takes into account."""

    @property
    def made(self) -> int:
        """Songs of the plan that exist."""
        return self.planned - self.missing - self.failed


def take_census(
    storage: Storage, plan: str, buckets: Iterable[int], *, run: str | None = None, markers: bool = True
) -> list[BucketState]:
    """Count what is missing of a plan in each of `buckets`.

    Args:
        run: that takes it: all that it recorded as failed is not missing, and it leaves markers where nothing is left.
        markers: whether those that are there are believed.
    """
    buckets = list(buckets)
    retried = {bucket: tuple(keys) for bucket, keys in files_by_bucket(storage, layout.RETRIED).items()}
    known = _marked(storage, plan, set(buckets), retried) if markers else {}
    rest = [bucket for bucket in buckets if bucket not in known]
    count = partial(_count, storage, plan, run, retried)
    with ThreadPoolExecutor(_THREADS) as pool:
        counted = dict(zip(rest, pool.map(count, rest), strict=True))
    if run is not None:
        for state in counted.values():
            if not state.missing:
                mark_finished(storage, state, plan, run)
    return [known[bucket] if bucket in known else counted[bucket] for bucket in buckets]


def mark_finished(storage: Storage, state: BucketState, plan: str, run: str) -> None:
    """Leave the marker of a bucket of which nothing is left to do."""
    assert not state.missing
    marker = {
        "plan": plan,
        "planned": state.planned,
        "made": state.made,
        "failed": state.failed,
        "missing_seconds": 0,
        "run": run,
        "retried": list(state.retried),
    }
    storage.put(layout.finished_key(state.bucket), json.dumps(marker).encode())


def read_markers(storage: Storage, plan: str) -> list[BucketState]:
    """Buckets of which nothing is left to do, as far as markers tell; reads no rows."""
    retried = {bucket: tuple(keys) for bucket, keys in files_by_bucket(storage, layout.RETRIED).items()}
    return list(_marked(storage, plan, None, retried).values())


def _marked(
    storage: Storage, plan: str, buckets: set[int] | None, retried: dict[int, tuple[str, ...]]
) -> dict[int, BucketState]:
    found = {_bucket_of(key): key for key in storage.keys(layout.FINISHED, ".json")}
    keys = [key for bucket, key in found.items() if bucket >= 0 and (buckets is None or bucket in buckets)]
    with ThreadPoolExecutor(_MARKER_THREADS) as pool:
        states = pool.map(partial(_read_marker, storage, plan, retried), keys)
        return {state.bucket: state for state in states if state is not None}


def _read_marker(storage: Storage, plan: str, retried: dict[int, tuple[str, ...]], key: str) -> BucketState | None:
    bucket = _bucket_of(key)
    try:
        marker = json.loads(storage.get(key))
        if marker["plan"] != plan or not set(retried.get(bucket, ())) <= set(marker["retried"]):
            return None
        return BucketState(bucket, int(marker["planned"]), 0, 0.0, int(marker["failed"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # Gone, or not ours: the rows tell.
        return None


def _bucket_of(key: str) -> int:
    number = key.rpartition("bucket=")[2].partition(".")[0]
    return int(number) if number.isdigit() else -1


def _count(
    storage: Storage, plan: str, run: str | None, retried: dict[int, tuple[str, ...]], bucket: int
) -> BucketState:
    planned = storage.read_table(layout.plan_key(bucket, plan), ["id", "fingerprint", "duration"])
    catalog = Catalog(storage)
    done = catalog.done_keys(bucket)
    failures = [catalog.failed_keys(bucket)]
    if run is not None:
        failures.append(catalog.failed_keys(bucket, run))
    made = rows_in(planned, joined_keys(done))
    failed = pc.and_not(rows_in(planned, joined_keys(pa.concat_tables(failures))), made)
    missing = planned.filter(pc.invert(pc.or_(made, failed)))
    changed = pc.is_in(missing.column("id"), value_set=done.column("id").combine_chunks())
    return BucketState(
        bucket,
        planned.num_rows,
        missing.num_rows,
        pc.sum(missing.column("duration")).as_py() or 0.0,
        _count_true(failed),
        _count_true(changed),
        retried.get(bucket, ()),
    )


def _count_true(values: pa.ChunkedArray) -> int:
    return pc.sum(values).as_py() or 0
