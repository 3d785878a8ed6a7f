"""Cutting a bucket of the plan into batches: which songs share an engine call, and which are left to make.

The whole plan of a bucket is cut, songs that exist included, and those are left out afterwards. So the batches do not
depend on how far an earlier run came, and a job that was killed and started again makes the same engine calls as one
that was not.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from acestep.batching import BatchItem, form_batches
from pipelines import layout
from pipelines.catalog import Catalog, keys_of
from pipelines.errors import Stop, StorageError
from pipelines.schema import pack, requests_of
from pipelines.storage import Storage

BATCH = pa.schema(
    [
        pa.field("batch", pa.string()),
        pa.field("bucket", pa.int64()),
        pa.field("requests", pa.binary()),
        pa.field("stop", pa.string()),
    ]
)
"""One engine call: its planned rows packed; or, in `stop`, the reason why the whole job cannot go on."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a bucket becomes batches.

    Attributes:
        alone: batches of one, of what `run` has neither made nor recorded as failed.
    """

    plan: str
    run: str
    frame_budget: int
    max_batch_size: int
    alone: bool = False


def cut_bucket(table: pa.Table, storage: Storage, cutting: Cutting) -> Iterator[pa.Table]:
    """Numbers of buckets in, their batches out (`BATCH`), a row each."""
    for bucket in table.column("bucket").to_pylist():
        try:
            for batch in batches_of(bucket, storage, cutting):
                name = hashlib.sha256(repr(keys_of(batch)).encode()).hexdigest()[:12]
                yield _batch(f"{bucket:06d}-{name}", bucket, pack(batch), None)
        except StorageError as error:
            yield _batch("", bucket, b"", Stop(error.error_class, str(error)))
        except Exception:  # Ray would drop the bucket without a word.
            yield _batch("", bucket, b"", Stop("internal", traceback.format_exc()))


def batches_of(bucket: int, storage: Storage, cutting: Cutting) -> Iterator[pa.Table]:
    """The batches of a bucket that are still to be made, as planned rows."""
    plan = storage.read_table(layout.plan_key(bucket, cutting.plan))
    catalog = Catalog(storage)
    over = catalog.done(bucket)
    if cutting.alone:
        over |= catalog.failed(bucket, cutting.run)
    keys = keys_of(plan)
    items = [
        BatchItem(position, request.num_frames, request.batch_key())
        for position, request in enumerate(requests_of(plan))
    ]
    size = 1 if cutting.alone else cutting.max_batch_size
    for batch in form_batches(items, frame_budget=cutting.frame_budget, max_batch_size=size):
        if missing := [position for position in batch if keys[position] not in over]:
            yield plan.take(pa.array(missing, pa.int64()))


def lost_songs(bucket: int, storage: Storage, cutting: Cutting) -> pa.Table:
    """Planned rows of a bucket that are neither made nor recorded as failed by this run."""
    plan = storage.read_table(layout.plan_key(bucket, cutting.plan))
    catalog = Catalog(storage)
    over = catalog.done(bucket) | catalog.failed(bucket, cutting.run)
    return plan.filter(pa.array([key not in over for key in keys_of(plan)], pa.bool_()))


def _batch(name: str, bucket: int, requests: bytes, stop: Stop | None) -> pa.Table:
    columns = {"batch": [name], "bucket": [bucket], "requests": [requests], "stop": [stop and stop.text()]}
    return pa.table(columns, schema=BATCH)
