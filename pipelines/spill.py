"""`Spill`: tables by bucket, on local disk until every row has been seen, so that memory stays flat."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from types import TracebackType

import pyarrow as pa

from pipelines.manifest_files import as_text

MEMORY = 64 << 20
"""Bytes held back before they go to disk."""


class Spill:
    """Takes tables for buckets in any order; gives back each bucket whole, in the order of arrival.

    Tables of a bucket may differ in columns and types: what comes back has all columns, each of a type that fits all
    values of all buckets; text when nothing else does.
    """

    def __init__(self, memory: int = MEMORY):
        self._memory = memory
        self._waiting: dict[int, list[pa.Table]] = defaultdict(list)
        self._bytes = 0
        self._flushes = 0
        self._kinds: dict[str, pa.DataType] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="acestep-plan-")

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def add(self, bucket: int, table: pa.Table) -> None:
        """Take rows of one bucket."""
        self._kinds = unified_types(self._kinds, table.schema)
        self._waiting[bucket].append(table)
        self._bytes += table.nbytes
        if self._bytes >= self._memory:
            self._flush()

    def table(self, bucket: int, schema: pa.Schema) -> pa.Table:
        """All rows of a bucket: the columns of `schema`, then the others that any row of any bucket had."""
        whole = whole_schema(schema, self._kinds)
        tables = [*self._on_disk(bucket), *self._waiting.get(bucket, [])]
        return pa.concat_tables([whole.empty_table(), *(as_schema(table, whole) for table in tables)]).combine_chunks()

    def _flush(self) -> None:
        for bucket, tables in self._waiting.items():
            folder = os.path.join(self._folder.name, str(bucket))
            os.makedirs(folder, exist_ok=True)
            for index, table in enumerate(tables):
                path = os.path.join(folder, f"{self._flushes:08d}-{index:08d}.arrow")
                with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
        self._waiting.clear()
        self._bytes = 0
        self._flushes += 1

    def _on_disk(self, bucket: int) -> list[pa.Table]:
        folder = os.path.join(self._folder.name, str(bucket))
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        tables = []
        for name in names:
            with pa.OSFile(os.path.join(folder, name), "rb") as source:
                tables.append(pa.ipc.open_stream(source).read_all())
        return tables


def unified_types(kinds: Mapping[str, pa.DataType], schema: pa.Schema) -> dict[str, pa.DataType]:
    """For each column a type that fits the values of both; text when nothing else does."""
    return dict(kinds) | {field.name: _common(kinds.get(field.name, field.type), field.type) for field in schema}


def whole_schema(first: pa.Schema, kinds: Mapping[str, pa.DataType]) -> pa.Schema:
    """The columns of `first`, then the others; those without any value as text."""
    others = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in kinds.items()}
    return pa.schema([*first, *(pa.field(name, kind) for name, kind in others.items() if name not in first.names)])


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    schemas = [pa.schema([("value", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()


def as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with exactly these columns: missing ones null, others cast, or written as text."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
                column = pa.array([as_text(value) for value in column.to_pylist()], pa.string())
        columns.append(column)
    return pa.table(columns, schema=schema)
