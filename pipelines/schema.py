"""The columns of plan, songs and failed rows, as Arrow types derived from `GenerationRequest`.

Rows travel between processes as Arrow IPC bytes, so that the manifest's own columns keep their types whatever they are.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa

from acestep.request import GenerationRequest

_SCALARS: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
}
TIME = pa.timestamp("us", tz="UTC")


def _arrow_type(annotation: Any) -> pa.DataType | None:
    """The type of a field, or None for one that is stored as JSON text."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _arrow_type(get_args(annotation)[0])
    if origin in (list, tuple):
        kind = _arrow_type(get_args(annotation)[0])
        return pa.list_(kind) if kind else None
    if origin is Literal:
        return _SCALARS[type(get_args(annotation)[0])]
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _arrow_type(kinds[0]) if len(kinds) == 1 else None
    return _SCALARS.get(annotation)


def _request_fields() -> list[pa.Field]:
    fields = []
    for name, info in GenerationRequest.model_fields.items():
        kind = _arrow_type(info.annotation) or pa.string()
        limits = [limit for each in info.metadata if (limit := getattr(each, "le", None)) is not None]
        if kind == pa.int64() and any(limit >= 2**63 for limit in limits):
            kind = pa.uint64()
        fields.append(pa.field(name, kind))
    return fields


REQUEST = pa.schema(_request_fields())
"""One column for each field of a request."""

AS_JSON = frozenset(name for name, info in GenerationRequest.model_fields.items() if not _arrow_type(info.annotation))
"""Fields that have no Arrow type, stored as JSON text."""

PLAN = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("fingerprint", pa.string()),
        pa.field("num_frames", pa.int64()),
        pa.field("parent", pa.string()),
        pa.field("adapter_fingerprint", pa.string()),
        *REQUEST,
    ]
)
"""A planned request: where it came from, what names its sound, what it costs, and all its settings.

`parent` is the id in the manifest where one row became several songs, else null.
"""

_MADE_INSTEAD = ("id", "duration", "sample_rate")
_SETTINGS = [field for field in REQUEST if field.name not in _MADE_INSTEAD]

SONG = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("path", pa.string()),
        pa.field("latents", pa.string()),
        pa.field("format", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("duration", pa.float64()),
        pa.field("requested_duration", pa.float64()),
        pa.field("sample_rate", pa.int64()),
        pa.field("num_samples", pa.int64()),
        pa.field("parent", pa.string()),
        *_SETTINGS,
        pa.field("requested_seed", pa.uint64()),
        pa.field("attempt", pa.int64()),
        pa.field("lufs", pa.float64()),
        pa.field("quality", pa.string()),
        pa.field("acoustic_hash", pa.string()),
        pa.field("scorer", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("candidates", pa.string()),
        pa.field("adapter_fingerprint", pa.string()),
        pa.field("model", pa.string()),
        pa.field("model_fingerprint", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("device", pa.string()),
        pa.field("random_weights", pa.bool_()),
        pa.field("ai_generated", pa.bool_()),
        pa.field("signed", pa.string()),
        pa.field("version", pa.string()),
        pa.field("sound_version", pa.int64()),
        pa.field("batch", pa.string()),
        pa.field("batch_size", pa.int64()),
        pa.field("generate_seconds", pa.float64()),
        pa.field("encode_seconds", pa.float64()),
        pa.field("upload_seconds", pa.float64()),
        pa.field("timings", pa.string()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("run", pa.string()),
        pa.field("created_at", TIME),
    ]
)
"""A finished song, before the manifest's own columns. The bucket is in the path, as hive partitions have it.

`seed` is the one that made it, `requested_seed` the planned one: they differ after a reroll (`attempt` over 1) and
where the best of several was kept. `quality` is JSON of what was measured; `candidates` is JSON, a list of
`{seed, score, problems}`, of those that were made and not kept; `lufs` is the loudness as delivered.
"""

FAILED = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("attempts", pa.int64()),
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("request", pa.string()),
        pa.field("path", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("evidence", pa.string()),
        pa.field("batch", pa.string()),
        pa.field("run", pa.string()),
        pa.field("created_at", TIME),
    ]
)
"""A row that could not be read or made; `request` is JSON, `fingerprint` is empty when the row was refused.

Of a song that failed the quality gate, `path` is its audio in quarantine, and `evidence` JSON: a list of
`{attempt, seed, problems, quality}`, one for each time it was made.
"""

_TAKEN = {"bucket", *(name.lower() for schema in (PLAN, SONG, FAILED) for name in schema.names)}


def carried_name(name: str) -> str:
    """What a column of the manifest that is no setting is called in the catalog: its own name, unless that is taken."""
    return f"manifest_{name}" if name.lower() in _TAKEN else name


def carried_columns(plan: pa.Table) -> list[str]:
    """The manifest's own columns in a plan."""
    return [name for name in plan.column_names if name not in PLAN.names]


def request_values(request: GenerationRequest) -> dict[str, Any]:
    """A request as the columns of `REQUEST`."""
    values = request.model_dump(mode="python")
    return {name: json.dumps(value) if name in AS_JSON else value for name, value in values.items()}


def requests_of(plan: pa.Table) -> list[GenerationRequest]:
    """The requests of planned rows."""
    rows = plan.select(REQUEST.names).to_pylist()
    for row in rows:
        for name in AS_JSON:
            row[name] = json.loads(row[name]) if row[name] is not None else None
    return [GenerationRequest.parse(row) for row in rows]


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of exactly this schema."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def pack(table: pa.Table) -> bytes:
    """A table as bytes, types and all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(data: bytes | pa.Buffer) -> pa.Table:
    """The table that `pack` was given."""
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()
