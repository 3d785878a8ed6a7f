"""The files of a manifest: Parquet, JSONL, CSV and TSV read as batches of rows, whatever is in them.

A row that cannot be read is told with its number and does not hide the others.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import ManifestError

BATCH_BYTES = 64 << 20
"""A batch ends at whichever comes first, so that long lyrics do not fill the memory."""
MAX_COLUMNS = 1000

_LONGEST_CELL = 1 << 30
_READ_BYTES = 4 << 20
_DEEPEST = 16
"""Lists and structs within each other that stay what they are; Arrow's own files end at 64."""


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row that is no row: broken JSON, or another number of cells than the header has."""

    row: int
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class ManifestBatch:
    """Some rows of one file, in order."""

    file: str
    rows: list[int]
    """The number of each row of `table` within its file, from 1."""
    table: pa.Table
    unreadable: list[UnreadableRow] = field(default_factory=list)

    def parts(self, starts: Sequence[int]) -> Iterator[ManifestBatch]:
        """The same rows, cut before the positions `starts`, of which the first is 0."""
        for start, end in zip(starts, [*starts[1:], len(self.rows)], strict=True):
            unreadable = [] if start else self.unreadable
            yield ManifestBatch(self.file, self.rows[start:end], self.table.slice(start, end - start), unreadable)


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file; `name` is relative to what the person named, `kind` one of parquet, jsonl, csv, tsv."""

    path: str
    name: str
    kind: str
    version: str
    """What changes when the file does: its size with its time or ETag."""


def columns_of(stream: Any, file: ManifestFile) -> list[str] | None:
    """Names of the columns; None for a file without any row, which is no fault as long as others have some."""
    if file.kind == "parquet":
        return list(pq.ParquetFile(stream).schema_arrow.names)
    if file.kind == "jsonl":
        first = next(_read_jsonl(stream, file, 1000), None)
        return None if first is None or not first.rows else list(first.table.column_names)
    return next(_csv_rows(stream, file), None)


def read_batches(
    stream: Any, file: ManifestFile, rows: int, columns: Sequence[str] | None = None
) -> Iterator[ManifestBatch]:
    """The rows of an open file, at most so many at a time.

    Args:
        columns: all that is wanted; a format that holds whole rows gives the others too.

    Raises:
        Exception: whatever storage and parsers raise for a file that cannot be read to its end.
    """
    if file.kind == "parquet":
        return _read_parquet(stream, file, rows, columns)
    return (_read_jsonl if file.kind == "jsonl" else _read_csv)(stream, file, rows)


def _read_parquet(stream: Any, file: ManifestFile, rows: int, columns: Sequence[str] | None) -> Iterator[ManifestBatch]:
    # Buffered, for else whole row groups are read ahead: as a rule that is a million rows.
    source = pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False)
    about = source.metadata
    group_bytes = sum(about.row_group(index).total_byte_size for index in range(about.num_row_groups))
    rows = max(1, min(rows, BATCH_BYTES * about.num_rows // max(group_bytes, 1)))
    first = 1
    for batch in source.iter_batches(batch_size=rows, columns=columns):
        numbers = list(range(first, first + batch.num_rows))
        first += batch.num_rows
        table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
        broken = _unreadable_cells(table)
        if broken:
            table = table.filter(pa.array([position not in broken for position in range(batch.num_rows)]))
        yield ManifestBatch(
            file.name,
            [number for position, number in enumerate(numbers) if position not in broken],
            table,
            [UnreadableRow(numbers[position], *what) for position, what in sorted(broken.items())],
        )


def _unreadable_cells(table: pa.Table) -> dict[int, tuple[str, str]]:
    """Positions of rows with a cell that no program can read: text that is no UTF-8, a date that is none."""
    found: dict[int, tuple[str, str]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            column.validate(full=True)
            if _holds_times(column.type):
                column.to_pylist()
            continue
        except (ValueError, OverflowError):
            pass
        for position in range(table.num_rows):
            cell = column.slice(position, 1)
            try:
                cell.to_pylist()
            except (ValueError, OverflowError) as error:
                shown = repr(cell.cast(pa.binary()).to_pylist()[0]) if _is_text(cell.type) else ""
                found.setdefault(position, (shown, f"the column {name!r} cannot be read: {error}"))
    return found


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _holds_times(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(kind) or any(_holds_times(kind.field(index).type) for index in range(kind.num_fields))


def _read_jsonl(
    stream: Any, file: ManifestFile, rows: int, columns: Sequence[str] | None = None
) -> Iterator[ManifestBatch]:
    def batch() -> ManifestBatch:
        names = dict.fromkeys(name for row in values for name in row)
        if len(names) > MAX_COLUMNS:
            raise ManifestError(
                f"manifest {file.path}: rows {numbers[0]:,} to {numbers[-1]:,} have {len(names):,} different names; "
                f"at most {MAX_COLUMNS:,} can be columns"
            )
        columns = {name: array_of([row.get(name) for row in values]) for name in names}
        return ManifestBatch(file.name, numbers, pa.table(columns), unreadable)

    numbers: list[int] = []
    values: list[dict[str, Any]] = []
    unreadable: list[UnreadableRow] = []
    number = size = 0
    for line in stream:
        if not line.strip():
            continue
        number += 1
        size += len(line)
        if number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            raise ManifestError(f"manifest {file.path} is a JSON list; it must hold one JSON object a line")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError("it is not a JSON object")
            if "\\u" in text:
                json.dumps(row, ensure_ascii=False).encode()  # A lone surrogate is JSON, but no text.
        except (ValueError, RecursionError) as error:
            unreadable.append(
                UnreadableRow(number, line.decode("utf-8", "replace").strip(), f"this line is not JSON: {error}")
            )
        else:
            numbers.append(number)
            values.append(row)
        if len(numbers) + len(unreadable) >= rows or size >= BATCH_BYTES:
            yield batch()
            numbers, values, unreadable, size = [], [], [], 0
    if numbers or unreadable:
        yield batch()


def _csv_rows(stream: Any, file: ManifestFile) -> Iterator[list[str]]:
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    delimiter = "\t" if file.kind == "tsv" else ","
    yield from (row for row in csv.reader(text, delimiter=delimiter, strict=True) if row)


def _read_csv(stream: Any, file: ManifestFile, rows: int) -> Iterator[ManifestBatch]:
    """CSV has no types: all cells are text, empty ones are missing."""

    def batch() -> ManifestBatch:
        cells: Iterable[Sequence[str]] = zip(*values, strict=True) if values else [()] * len(header)
        arrays = [pa.array([cell or None for cell in column], pa.string()) for column in cells]
        return ManifestBatch(file.name, numbers, pa.table(arrays, names=header), unreadable)

    lines = _csv_rows(stream, file)
    header = next(lines, [])
    numbers: list[int] = []
    values: list[Sequence[str]] = []
    unreadable: list[UnreadableRow] = []
    size = 0
    for number, cells in enumerate(lines, start=1):
        size += sum(map(len, cells))
        if len(cells) == len(header):
            numbers.append(number)
            values.append(cells)
        else:
            reason = f"it has {len(cells)} cells, the header has {len(header)}"
            unreadable.append(UnreadableRow(number, ",".join(cells), reason))
        if len(numbers) + len(unreadable) >= rows or size >= BATCH_BYTES:
            yield batch()
            numbers, values, unreadable, size = [], [], [], 0
    if numbers or unreadable:
        yield batch()


def array_of(values: Sequence[Any]) -> pa.Array:
    """Values as one Arrow array; those that have no common type, as text."""
    try:
        array = pa.array(values)
        if _fits_parquet(array.type):
            return array
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        pass  # Of no common type, or a number beyond 64 bits.
    return pa.array([as_text(value) for value in values], pa.string())


def as_text(value: Any) -> str | None:
    """Text as it is, nothing as nothing, everything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _fits_parquet(kind: pa.DataType, depth: int = 0) -> bool:
    if depth > _DEEPEST or (pa.types.is_struct(kind) and kind.num_fields == 0):  # Parquet has no empty groups.
        return False
    return all(_fits_parquet(kind.field(index).type, depth + 1) for index in range(kind.num_fields))
