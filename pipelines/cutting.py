"""Cutting a bucket of the plan into batches: which songs share an engine call, and which are left to make.

The whole plan of a bucket is cut, songs that exist included, and those are left out afterwards. So the batches do not
depend on how far an earlier run came, and a job that was killed and started again makes the same engine calls as one
that was not. Batches with the same adapter follow each other, so that an engine switches rarely.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from acestep.batching import BatchItem, form_batches
from pipelines import layout
from pipelines.catalog import Catalog, Key, keys_of
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
        candidates: made for each song, and all in one pass.
        alone: one song a batch.
    """

    plan: str
    frame_budget: int
    max_batch_size: int
    candidates: int = 1
    alone: bool = False

    @property
    def largest_batch(self) -> int:
        """Songs in a batch, at most."""
        return 1 if self.alone else max(1, self.max_batch_size // self.candidates)


def cut_bucket(
    table: pa.Table, storage: Storage, cutting: Cutting, is_draining: Callable[[], bool] = lambda: False
) -> Iterator[pa.Table]:
    """Numbers of buckets in, their batches out (`BATCH`), a row each; none any more once the job is to end."""
    for bucket in table.column("bucket").to_pylist():
        try:
            for batch in batches_of(bucket, storage, cutting):
                if is_draining():
                    return
                yield _batch(batch_name(bucket, keys_of(batch)), bucket, pack(batch), None)
        except StorageError as error:
            yield _batch("", bucket, b"", Stop(error.error_class, str(error)))
        except Exception:  # Ray would drop the bucket without a word.
            yield _batch("", bucket, b"", Stop("internal", traceback.format_exc()))


def batch_name(bucket: int, keys: list[Key]) -> str:
    """A batch is called after its bucket and what is to be made in it."""
    return f"{bucket:06d}-{hashlib.sha256(repr(keys).encode()).hexdigest()[:12]}"


def batches_of(bucket: int, storage: Storage, cutting: Cutting) -> Iterator[pa.Table]:
    """The batches of a bucket that are still to be made, as planned rows."""
    plan = storage.read_table(layout.plan_key(bucket, cutting.plan))
    catalog = Catalog(storage)
    over = catalog.done(bucket) | catalog.failed(bucket)
    keys = keys_of(plan)
    requests = requests_of(plan)
    items = [BatchItem(position, request.num_frames, request.batch_key()) for position, request in enumerate(requests)]
    batches = form_batches(
        items,
        frame_budget=max(1, cutting.frame_budget // cutting.candidates),
        max_batch_size=cutting.largest_batch,
    )
    batches.sort(key=lambda batch: requests[batch[0]].lora or "")
    for batch in batches:
        if missing := [position for position in batch if keys[position] not in over]:
            yield plan.take(pa.array(missing, pa.int64()))


def lost_songs(bucket: int, storage: Storage, plan: str) -> pa.Table:
    """Planned rows of a bucket that are neither made nor recorded as failed."""
    table = storage.read_table(layout.plan_key(bucket, plan))
    catalog = Catalog(storage)
    over = catalog.done(bucket) | catalog.failed(bucket)
    return table.filter(pa.array([key not in over for key in keys_of(table)], pa.bool_()))


def _batch(name: str, bucket: int, requests: bytes, stop: Stop | None) -> pa.Table:
    columns = {"batch": [name], "bucket": [bucket], "requests": [requests], "stop": [stop and stop.text()]}
    return pa.table(columns, schema=BATCH)
