"""The plan: a manifest's rows, judged and written down by bucket before anything is made.

`make_plan` streams a manifest through `plan_rows`, finds duplicate ids, and writes; `run.json` comes last and names the
plan's objects, so that a plan is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa

from acestep import __version__
from acestep.problems import Problem, nearest
from acestep.request import SOUND_VERSION, GenerationRequest
from pipelines import layout, schema
from pipelines.errors import ManifestError, OutputError
from pipelines.manifest import Manifest
from pipelines.resolution import REJECT, Resolution, plan_rows, reject
from pipelines.spill import Spill
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

_OUTSIDE = {"lora", "source"}
"""Settings that name something that is not in the manifest."""

FORMAT = 1
"""Of run.json and of what it describes."""


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """What run.json says."""

    format: int
    plan: str
    """Names the plan's objects: a hash of everything that it depends on."""
    num_buckets: int
    rows: int
    planned: int
    rejected: int
    looks_outside: bool
    """Whether songs name adapters or sources, which may change or appear while their names stay."""
    manifest: dict[str, Any]
    model: dict[str, Any]
    config: dict[str, Any]
    sound_version: int
    version: str
    created_at: str

    @classmethod
    def read(cls, storage: Storage) -> PlanRecord | None:
        """The record of a catalog, None where there is none yet.

        Raises:
            OutputError: when something else lies in its place.
        """
        try:
            values = json.loads(storage.get(layout.RUN))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OutputError(f"output {storage.url}: {layout.RUN} there is not ours: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise OutputError(f"output {storage.url}: {layout.RUN} there is not of format {FORMAT}; use another folder")
        known: dict[str, Any] = {field.name: values.get(field.name) for field in dataclasses.fields(cls)}
        return cls(**known)


def make_plan(
    manifest: Manifest, storage: Storage, resolution: Resolution, *, bucket_rows: int, about: Mapping[str, Any]
) -> PlanRecord:
    """The plan of a manifest, written down in `storage`; nothing is done when that very plan is there already.

    Args:
        bucket_rows: about so many rows go into a bucket; a catalog that exists keeps its number of buckets.
        about: what else run.json is to say: `model` and `config`.

    Raises:
        ManifestError: when the manifest turns out to be unreadable or empty; nothing is written then.
    """
    before = PlanRecord.read(storage)
    num_buckets = before.num_buckets if before else max(1, math.ceil(manifest.max_rows() / bucket_rows))
    name = _plan_name(manifest, resolution, num_buckets)
    # What lies behind the name of an adapter or source may have changed: such a plan is made anew.
    looks_outside = any(resolution.defaults.get(field) is not None for field in _OUTSIDE)
    if before and before.plan == name and not (before.looks_outside or looks_outside):
        logger.info("the plan is there already: %d songs", before.planned)
        return before
    _check_columns(manifest)
    with Spill() as good, Spill() as bad:
        rows = 0
        for batch in manifest.batches():
            planned, rejects = plan_rows(batch, resolution)
            rows += planned.num_rows + rejects.num_rows
            looks_outside = looks_outside or not _OUTSIDE.isdisjoint(batch.table.column_names)
            _by_bucket(good, planned, num_buckets)
            _by_bucket(bad, rejects, num_buckets)
        counts = _write(storage, name, num_buckets, good, bad)
    record = PlanRecord(
        format=FORMAT,
        plan=name,
        num_buckets=num_buckets,
        rows=rows,
        planned=counts[0],
        rejected=counts[1],
        looks_outside=looks_outside,
        manifest={"url": manifest.url, "identity": manifest.identity(), "files": manifest.file_names[:100]},
        model=dict(about["model"]),
        config=dict(about["config"]),
        sound_version=SOUND_VERSION,
        version=__version__,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    storage.put(layout.RUN, json.dumps(dataclasses.asdict(record), indent=2).encode())
    stale = [key for key in storage.keys(layout.PLAN, ".parquet") if key != layout.REJECTS and name not in key]
    storage.delete(stale)
    return record


def read_rejects(storage: Storage) -> pa.Table:
    """The rows that the plan refused."""
    try:
        return storage.read_table(layout.REJECTS)
    except FileNotFoundError:
        return REJECT.remove(REJECT.get_field_index("request")).empty_table()


def _by_bucket(spill: Spill, table: pa.Table, num_buckets: int) -> None:
    buckets = pa.array([layout.bucket_of(id or "", num_buckets) for id in table.column("id").to_pylist()], pa.int64())
    for bucket in set(buckets.to_pylist()):
        spill.add(bucket, table.filter(pa.compute.equal(buckets, bucket)))


def _write(storage: Storage, name: str, num_buckets: int, good: Spill, bad: Spill) -> tuple[int, int]:
    num_planned = num_rejected = 0
    rejects: list[pa.Table] = []
    now = datetime.now(timezone.utc)
    kept = set()
    for bucket in range(num_buckets):
        planned, duplicates = _without_duplicates(good.table(bucket, schema.PLAN))
        refused = pa.concat_tables([bad.table(bucket, REJECT), duplicates])
        storage.write_table(layout.plan_key(bucket, name), planned.sort_by("id"))
        if refused.num_rows:
            key = f"{layout.bucket_folder(layout.FAILED, bucket)}/{layout.REJECTED_FILE}"
            storage.write_table(key, _as_failed(refused, name, now))
            kept.add(key)
            rejects.append(refused.drop_columns(["request"]))
        num_planned += planned.num_rows
        num_rejected += refused.num_rows
    old = [key for key in storage.keys(layout.FAILED, layout.REJECTED_FILE) if key not in kept]
    storage.delete(old)
    if rejects:
        storage.write_table(
            layout.REJECTS, pa.concat_tables(rejects).sort_by([("file", "ascending"), ("row", "ascending")])
        )
    else:
        storage.delete([layout.REJECTS])
    return num_planned, num_rejected


def _without_duplicates(planned: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The first row of each id, and rejects for the others."""
    first: dict[str, int] = {}
    again: list[int] = []
    for position, id in enumerate(planned.column("id").to_pylist()):
        if first.setdefault(id, position) != position:
            again.append(position)
    if not again:
        return planned, REJECT.empty_table()
    rejects = []
    for row in planned.take(again).to_pylist():
        earlier = planned.slice(first[row["id"]], 1).select(["file", "row"]).to_pylist()[0]
        place = f"row {earlier['row']}" + (f" of {earlier['file']}" if earlier["file"] != row["file"] else "")
        problem = Problem("id", row["id"], f"{place} has it already; every row needs its own")
        values = {field: row[field] for field in schema.REQUEST.names}
        rejects.append(reject(row["file"], row["row"], row["id"], [problem], values))
    keep = pa.array(sorted(first.values()), pa.int64())
    return planned.take(keep), schema.table_of(rejects, REJECT)


def _as_failed(rejects: pa.Table, plan: str, now: datetime) -> pa.Table:
    same = {"fingerprint": "", "error_class": "input", "attempts": 0, "batch": "", "run": plan, "created_at": now}
    return schema.table_of([{**row, **same} for row in rejects.to_pylist()], schema.FAILED)


def _plan_name(manifest: Manifest, resolution: Resolution, num_buckets: int) -> str:
    what = {
        "format": FORMAT,
        "sound": SOUND_VERSION,
        "request": GenerationRequest.model_json_schema(),
        "manifest": manifest.identity(),
        "resolution": resolution.identity(),
        "num_buckets": num_buckets,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _check_columns(manifest: Manifest) -> None:
    """A setting's name misspelt is only another column to carry: worth a word.

    Raises:
        ManifestError: when two columns would get one name in the catalog.
    """
    names = {name: schema.carried_name(name) for name in manifest.columns if name not in schema.REQUEST.names}
    for name, renamed in names.items():
        if renamed != name and renamed in names:
            raise ManifestError(
                f"manifest {manifest.url}: {name!r} would be {renamed!r} in the catalog, another column"
            )
        hint = nearest(name.strip().lower(), schema.REQUEST.names)
        if hint or renamed != name:
            logger.warning(
                "the manifest's column %r is no setting of a song and goes to the catalog as %r%s",
                name,
                renamed,
                f"; {hint}" if hint else "",
            )
