"""`Manifest`: the rows that a person asks for, read as a stream from Parquet, JSONL or CSV, wherever they lie.

Nothing is judged here but whether a row can be read at all; `pipelines.plan` says what is wrong with its values.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from acestep.problems import nearest
from pipelines.errors import ManifestError, UnusableInputError
from pipelines.storage import open_filesystem

REQUIRED = ("id", "prompt")
BATCH_ROWS = 16_384
BATCH_BYTES = 64 << 20
"""A batch ends at whichever comes first, so that long lyrics do not fill the memory."""
MAX_COLUMNS = 1000

_KINDS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_KINDS |= {".csv": "csv", ".tsv": "tsv"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
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
class _File:
    path: str
    name: str
    kind: str
    version: str
    """What changes when the file does: its size with its time or ETag."""


class Manifest:
    """A manifest: one file, a folder of them, or a glob; local or any fsspec URL.

    Attributes:
        columns: the names that its files have, as far as their beginnings tell.

    Raises:
        ManifestError: when it is missing, unreadable, empty or lacks `id` or `prompt`.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None):
        self.url = url
        try:
            self._filesystem, self._path = open_filesystem(url, storage_options or {})
        except UnusableInputError as error:
            raise ManifestError(f"manifest {error}") from error
        with self._reading(""):
            self._files = self._find()
        self.columns: list[str] = []
        self._check_columns()

    @property
    def file_names(self) -> list[str]:
        """The files, in the order of reading."""
        return [file.name for file in self._files]

    def identity(self) -> str:
        """Hex digits that change when any file does."""
        what = [[file.name, file.kind, file.version] for file in self._files]
        return hashlib.sha256(json.dumps([self._path, what]).encode()).hexdigest()[:16]

    def max_rows(self) -> int:
        """A number of rows that there are at most: exact for Parquet, lines elsewhere."""
        return sum(self._count(file) for file in self._files)

    def batches(self, rows: int = BATCH_ROWS, columns: Sequence[str] | None = None) -> Iterator[ManifestBatch]:
        """All rows, so many at a time, or fewer where they are long.

        Args:
            columns: all that is wanted; a format that holds whole rows gives the others too.

        Raises:
            ManifestError: when a file cannot be read to its end, or there is no row at all.
        """
        readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_csv}
        found = 0
        for file in self._files:
            with self._reading(file.name), self._open(file) as stream:
                for batch in readers[file.kind](stream, file, rows, columns):
                    found += len(batch.rows) + len(batch.unreadable)
                    yield batch
        if not found:
            raise ManifestError(f"manifest {self.url}: there are no rows in it")

    def _find(self) -> list[_File]:
        filesystem, path = self._filesystem, self._path
        filesystem.invalidate_cache()
        if any(mark in path for mark in "*?[") and not filesystem.exists(path):
            paths = [each for each in sorted(filesystem.glob(path)) if filesystem.isfile(each)]
            base = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
            nothing = "no file matches"
        elif filesystem.isdir(path):
            paths, base = sorted(each for each in filesystem.find(path) if _is_manifest_file(each[len(path) :])), path
            nothing = f"the folder holds no manifest file ({', '.join(_KINDS)})"
        else:
            paths, base = ([path] if filesystem.exists(path) else []), path.rpartition("/")[0]
            nothing = "there is no such file or folder"
        if not paths:
            raise ManifestError(f"manifest {self.url}: {nothing}")
        return [_File(each, each[len(base) :].lstrip("/"), self._kind(each), filesystem.ukey(each)) for each in paths]

    def _kind(self, path: str) -> str:
        name = path.lower()
        for ending in _COMPRESSED:
            name = name.removesuffix(ending)
        for ending, kind in _KINDS.items():
            if name.endswith(ending):
                return kind
        with self._filesystem.open(path, "rb") as stream:
            if stream.read(4) == b"PAR1":
                return "parquet"
        raise ManifestError(f"manifest {path}: the kind of file is unknown; it must end in {', '.join(_KINDS)}")

    def _open(self, file: _File) -> Any:
        if file.kind == "parquet":  # Columns are read side by side: a cache of what follows would be in vain.
            return self._filesystem.open(file.path, "rb", cache_type="none")
        return self._filesystem.open(file.path, "rb", compression="infer")

    def _reading(self, name: str) -> _Reading:
        return _Reading(self.url, name)

    def _check_columns(self) -> None:
        for file in self._files:
            with self._reading(file.name), self._open(file) as stream:
                if (columns := _columns(stream, file)) is None:
                    continue
            self.columns += [name for name in columns if name not in self.columns]
            repeated = [name for name, times in Counter(columns).items() if times > 1]
            if repeated:
                raise ManifestError(f"manifest {self.url}: {file.name} has the column {repeated[0]!r} twice")
            for name in REQUIRED:
                if name not in columns:
                    close = [each for each in columns if each.strip().lower() == name]
                    hint = nearest(close[0], close) if close else nearest(name, columns)
                    raise ManifestError(
                        f"manifest {self.url}: {file.name} has no column {name!r}; "
                        f"its columns are: {', '.join(columns)}" + (f"; {hint}" if hint else "")
                    )

    def _count(self, file: _File) -> int:
        with self._reading(file.name), self._open(file) as stream:
            if file.kind == "parquet":
                return pq.ParquetFile(stream).metadata.num_rows
            return 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))


class _Reading:
    """What storage and parsers raise becomes one error that names the file."""

    def __init__(self, url: str, name: str):
        self._where = f"manifest {url}" + (f": {name}" if name and not url.endswith(name) else "")

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, (UnusableInputError, GeneratorExit, MemoryError)):
            return
        if isinstance(error, UnicodeDecodeError):
            raise ManifestError(f"{self._where} is not UTF-8: {error.reason} at byte {error.start:,}") from error
        if isinstance(error, Exception):
            raise ManifestError(f"{self._where} cannot be read: {type(error).__name__}: {error}") from error


def _is_manifest_file(path: str) -> bool:
    parts = path.strip("/").split("/")
    name = parts[-1].lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return name.endswith(tuple(_KINDS)) and not any(part.startswith((".", "_")) for part in parts)


def _columns(stream: Any, file: _File) -> list[str] | None:
    """Names of the columns; None for a file without any row, which is no fault as long as others have some."""
    if file.kind == "parquet":
        return list(pq.ParquetFile(stream).schema_arrow.names)
    if file.kind == "jsonl":
        first = next(_read_jsonl(stream, file, 1000), None)
        return None if first is None or not first.rows else list(first.table.column_names)
    return next(_csv_rows(stream, file), None)


def _read_parquet(stream: Any, file: _File, rows: int, columns: Sequence[str] | None) -> Iterator[ManifestBatch]:
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


def _read_jsonl(stream: Any, file: _File, rows: int, columns: Sequence[str] | None = None) -> Iterator[ManifestBatch]:
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


def _csv_rows(stream: Any, file: _File) -> Iterator[list[str]]:
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    delimiter = "\t" if file.kind == "tsv" else ","
    yield from (row for row in csv.reader(text, delimiter=delimiter, strict=True) if row)


def _read_csv(stream: Any, file: _File, rows: int, columns: Sequence[str] | None) -> Iterator[ManifestBatch]:
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
