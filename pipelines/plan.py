"""The plan: a manifest's rows, judged and written down by bucket before anything is made.

`make_plan` hands the manifest to this machine's cores in batches, then the buckets; `run.json` comes last and names the
plan's objects, so that a plan is there whole or not at all. What comes out does not depend on how many cores there are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

import pyarrow as pa

from acestep import __version__
from acestep.errors import InvalidRequestError
from acestep.problems import Problem, nearest
from acestep.request import SOUND_VERSION, GenerationRequest
from pipelines import layout, outside, schema
from pipelines.chunks import Chunks, StreamedTable
from pipelines.errors import ManifestError, OutputError
from pipelines.manifest import Manifest
from pipelines.manifest_files import ManifestBatch
from pipelines.planning import (
    REJECTS,
    WARNINGS,
    BatchReport,
    BatchTask,
    BucketTask,
    Desk,
    find_collisions,
    judge_batch,
    songs_of_rows,
    write_bucket,
)
from pipelines.rejects import REJECT, WARNING, Tally
from pipelines.resolution import Resolution, song_sources
from pipelines.spill import unified_types, whole_schema
from pipelines.storage import Storage
from pipelines.variants import NUM_SONGS
from pipelines.workers import Workers, cores

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of run.json and of what it describes."""

_OUTSIDE = ("lora", "source")
"""Rules about what is not in the manifest, and may be there the next time."""
_READ_REJECT = REJECT.remove(REJECT.get_field_index("request"))
_FEW_SONGS = 20_000
"""Below this, one process is done before others have started."""


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """What run.json says."""

    format: int
    plan: str
    """Names the plan's objects: a hash of everything that it depends on."""
    num_buckets: int
    rows: int
    """Of the manifest."""
    planned: int
    """Songs: a row may become several."""
    rejected: int
    """Rows that were refused."""
    warned: int
    """Rows with a warning, refused or not."""
    rules: dict[str, dict[str, int]]
    """For each rule of the preflight and each severity, the rows in which something was found."""
    examples: list[dict[str, Any]]
    """Of each rule and severity, the first rows."""
    adapters: dict[str, str]
    """The adapters that rows name, with the hash of their content; empty: it could not be read."""
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

    def write(self, storage: Storage) -> None:
        """Make this the record of a catalog."""
        storage.put(layout.RUN, json.dumps(dataclasses.asdict(self), indent=2).encode())


def make_plan(
    manifest: Manifest,
    storage: Storage,
    resolution: Resolution,
    *,
    bucket_rows: int,
    about: Mapping[str, Any],
    workers: int | None = None,
) -> PlanRecord:
    """The plan of a manifest, written down in `storage`; nothing is done when that very plan is there already.

    Args:
        bucket_rows: about so many songs go into a bucket; a catalog that exists keeps its number of buckets.
        about: what else run.json is to say: `model` and `config`.
        workers: processes; None: the machine's cores for a long manifest, this process alone for a short one.

    Raises:
        ManifestError: when the manifest turns out to be unreadable or empty; nothing is written then.
    """
    outside.forget()
    before = PlanRecord.read(storage)
    songs = None if before else _most_songs(manifest, resolution)
    num_buckets = before.num_buckets if before else max(1, math.ceil((songs or 0) / bucket_rows))
    name = _plan_name(manifest, resolution, num_buckets)
    if before and before.plan == name and _still_holds(before):
        logger.info("the plan is there already: %d songs", before.planned)
        return before
    _check_columns(manifest, manifest.columns)
    for swept in set(resolution.sweep) & set(manifest.columns):
        logger.warning("the manifest has a column %r: rows with a value there are not swept over it", swept)
    if workers is None:
        songs = _most_songs(manifest, resolution) if songs is None else songs
        workers = 1 if songs < _FEW_SONGS else cores()
    with tempfile.TemporaryDirectory(prefix="acestep-plan-") as folder, Workers(workers) as processes:
        desk = Desk(
            resolution=replace(resolution, kept=None),
            chunks=Chunks(folder),
            storage=storage,
            plan=name,
            num_buckets=num_buckets,
            several=resolution.most_songs_of_a_row() > 1 or NUM_SONGS in manifest.columns,
            now=datetime.now(timezone.utc),
        )
        found = _judge(manifest, desk, resolution, processes)
        written = _write(desk, found, processes)
    record = PlanRecord(
        format=FORMAT,
        plan=name,
        num_buckets=num_buckets,
        rows=found.rows,
        planned=written.planned,
        rejected=found.rejected + written.rejected,
        warned=written.warned,
        rules=found.tally.rules,
        examples=found.tally.examples,
        adapters=dict(sorted(found.adapters.items())),
        manifest={"url": manifest.url, "identity": manifest.identity(), "files": manifest.file_names[:100]},
        model=dict(about["model"]),
        config=dict(about["config"]),
        sound_version=SOUND_VERSION,
        version=__version__,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    record.write(storage)
    ours = (layout.REJECTS, layout.WARNINGS)
    stale = [key for key in storage.keys(layout.PLAN, ".parquet") if key not in ours and name not in key]
    storage.delete(stale)
    return record


def read_rejects(storage: Storage) -> pa.Table:
    """The rows that the plan refused."""
    return _read(storage, layout.REJECTS, _READ_REJECT)


def read_warnings(storage: Storage) -> pa.Table:
    """What the plan warned of: a row for each thing."""
    return _read(storage, layout.WARNINGS, WARNING)


def _read(storage: Storage, key: str, columns: pa.Schema) -> pa.Table:
    try:
        return storage.read_table(key)
    except FileNotFoundError:
        return columns.empty_table()


def _still_holds(before: PlanRecord) -> bool:
    """Whether what the plan names outside the manifest is what it was."""
    if any(before.rules.get(rule) for rule in _OUTSIDE):
        return False
    return all(outside.adapter(name)[0] == fingerprint for name, fingerprint in before.adapters.items())


@dataclass(slots=True)
class _Found:
    """The reports of all batches together."""

    rows: int = 0
    batches: int = 0
    rejected: int = 0
    tally: Tally = field(default_factory=Tally)
    adapters: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, pa.DataType] = field(default_factory=dict)
    ids: list[Any] = field(default_factory=list)

    def add(self, report: BatchReport) -> None:
        self.batches += 1
        self.rejected += report.rejected
        self.tally.merge(report.tally)
        self.adapters |= report.adapters
        for name, kind in report.kinds.items():
            self.kinds = unified_types(self.kinds, pa.schema([(name, kind)]))
        self.ids += report.ids


def _judge(manifest: Manifest, desk: Desk, resolution: Resolution, processes: Workers) -> _Found:
    found = _Found()

    def tasks() -> Iterator[BatchTask]:
        seen = set(manifest.columns)
        for number, batch in enumerate(manifest.batches()):
            found.rows += len(batch.rows) + len(batch.unreadable)
            if new := [name for name in batch.table.column_names if name not in seen]:
                seen.update(new)
                _check_columns(manifest, list(seen), new)
            yield BatchTask(number, batch, _songs_of_the_catalog(batch, resolution))

    for report in processes.map(partial(judge_batch, desk), tasks()):
        found.add(report)
    return found


@dataclass(slots=True)
class _Written:
    """What lies in the storage: songs, rows that were refused for their id alone, rows with a warning."""

    planned: int = 0
    rejected: int = 0
    warned: int = 0


def _write(desk: Desk, found: _Found, processes: Workers) -> _Written:
    storage, written = desk.storage, _Written()
    columns, collisions = whole_schema(schema.PLAN, found.kinds), find_collisions(found.ids)
    kept = set()
    buckets = (BucketTask(bucket, columns, collisions) for bucket in range(desk.num_buckets))
    for report in processes.map(partial(write_bucket, desk), buckets):
        written.planned += report.planned
        written.rejected += report.rejected
        found.tally.merge(report.tally)
        kept.add(report.failed)
    storage.delete([key for key in storage.keys(layout.FAILED, layout.REJECTED_FILE) if key not in kept])
    _write_in_order(desk, REJECTS, layout.REJECTS, _READ_REJECT, found.batches)
    written.warned = _write_in_order(desk, WARNINGS, layout.WARNINGS, WARNING, found.batches)
    return written


def _write_in_order(desk: Desk, kind: str, key: str, columns: pa.Schema, batches: int) -> int:
    """Write what people read in the order of the manifest, or nothing when there is nothing; how many rows it is of."""
    rows = 0
    with StreamedTable(desk.storage, key, columns) as stream:
        for number in range(batches):
            if tables := [table for _, table in desk.chunks.take(kind, number)]:
                stream.write(pa.concat_tables(tables).sort_by("row"))
                rows += len({row for table in tables for row in table.column("row").to_pylist()})
    if not rows:
        desk.storage.delete([key])
    return rows


def _songs_of_the_catalog(batch: ManifestBatch, resolution: Resolution) -> dict[str, str | Problem]:
    """Where the sources lie that name songs of the catalog, or why they cannot be had."""
    if resolution.kept is None:
        return {}
    values = batch.table.column("source").to_pylist() if "source" in batch.table.column_names else []
    found: dict[str, str | Problem] = {}
    for source in song_sources(values, resolution):
        try:
            found[source] = resolution.kept.address(source)
        except InvalidRequestError as error:
            found[source] = error.problems[0]
    return found


def _most_songs(manifest: Manifest, resolution: Resolution) -> int:
    """A number of songs that there are at most, for Parquet without a column `num_songs` found without reading rows."""
    if NUM_SONGS not in manifest.columns:
        return manifest.max_rows() * resolution.most_songs_of_a_row()
    return sum(sum(songs_of_rows(batch, resolution)) for batch in manifest.batches(columns=[NUM_SONGS]))


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


def _check_columns(manifest: Manifest, columns: Sequence[str], new: Sequence[str] | None = None) -> None:
    """A setting's name misspelt is only another column to carry: worth a word, of the `new` columns.

    Raises:
        ManifestError: when two columns would get one name in the catalog.
    """
    settings = [*schema.REQUEST.names, NUM_SONGS]
    names = {name: schema.carried_name(name) for name in columns if name not in settings}
    for name, renamed in names.items():
        if renamed != name and renamed in names:
            raise ManifestError(
                f"manifest {manifest.url}: {name!r} would be {renamed!r} in the catalog, another column"
            )
        hint = nearest(name.strip().lower(), settings)
        if (hint or renamed != name) and (new is None or name in new):
            logger.warning(
                "the manifest's column %r is no setting of a song and goes to the catalog as %r%s",
                name,
                renamed,
                f"; {hint}" if hint else "",
            )
