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
BATCH_ROWS = 4096

_KINDS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_KINDS |= {".csv": "csv", ".tsv": "tsv"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_LONGEST_CELL = 1 << 30


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

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[ManifestBatch]:
        """All rows, so many at a time.

        Raises:
            ManifestError: when a file cannot be read to its end, or there is no row at all.
        """
        readers = {"parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_csv}
        found = 0
        for file in self._files:
            with self._reading(file.name), self._open(file) as stream:
                for batch in readers[file.kind](stream, file, rows):
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
        compression = None if file.kind == "parquet" else "infer"
        return self._filesystem.open(file.path, "rb", compression=compression)

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


def _read_parquet(stream: Any, file: _File, rows: int) -> Iterator[ManifestBatch]:
    first = 1
    for batch in pq.ParquetFile(stream).iter_batches(batch_size=rows):
        numbers = list(range(first, first + batch.num_rows))
        first += batch.num_rows
        yield ManifestBatch(file.name, numbers, pa.Table.from_batches([batch]).replace_schema_metadata(None))


def _read_jsonl(stream: Any, file: _File, rows: int) -> Iterator[ManifestBatch]:
    def batch() -> ManifestBatch:
        names = dict.fromkeys(name for row in values for name in row)
        columns = {name: array_of([row.get(name) for row in values]) for name in names}
        return ManifestBatch(file.name, numbers, pa.table(columns), unreadable)

    numbers: list[int] = []
    values: list[dict[str, Any]] = []
    unreadable: list[UnreadableRow] = []
    number = 0
    for line in stream:
        if not line.strip():
            continue
        number += 1
        if number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            raise ManifestError(f"manifest {file.path} is a JSON list; it must hold one JSON object a line")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError("it is not a JSON object")
            if "\\u" in text:
                json.dumps(row, ensure_ascii=False).encode()  # A lone surrogate is JSON, but no text.
        except ValueError as error:
            unreadable.append(
                UnreadableRow(number, line.decode("utf-8", "replace").strip(), f"this line is not JSON: {error}")
            )
        else:
            numbers.append(number)
            values.append(row)
        if len(numbers) + len(unreadable) >= rows:
            yield batch()
            numbers, values, unreadable = [], [], []
    if numbers or unreadable:
        yield batch()


def _csv_rows(stream: Any, file: _File) -> Iterator[list[str]]:
    csv.field_size_limit(_LONGEST_CELL)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    delimiter = "\t" if file.kind == "tsv" else ","
    yield from (row for row in csv.reader(text, delimiter=delimiter, strict=True) if row)


def _read_csv(stream: Any, file: _File, rows: int) -> Iterator[ManifestBatch]:
    """CSV has no types: all cells are text, empty ones are missing."""

    def batch() -> ManifestBatch:
        columns: Iterable[Sequence[str]] = zip(*values, strict=True) if values else [()] * len(header)
        arrays = [pa.array([cell or None for cell in column], pa.string()) for column in columns]
        return ManifestBatch(file.name, numbers, pa.table(arrays, names=header), unreadable)

    lines = _csv_rows(stream, file)
    header = next(lines, [])
    numbers: list[int] = []
    values: list[Sequence[str]] = []
    unreadable: list[UnreadableRow] = []
    for number, cells in enumerate(lines, start=1):
        if len(cells) == len(header):
            numbers.append(number)
            values.append(cells)
        else:
            reason = f"it has {len(cells)} cells, the header has {len(header)}"
            unreadable.append(UnreadableRow(number, ",".join(cells), reason))
        if len(numbers) + len(unreadable) >= rows:
            yield batch()
            numbers, values, unreadable = [], [], []
    if numbers or unreadable:
        yield batch()


def array_of(values: Sequence[Any]) -> pa.Array:
    """Values as one Arrow array; those that have no common type, as text."""
    try:
        array = pa.array(values)
        if _fits_parquet(array.type):
            return array
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        pass
    return pa.array([as_text(value) for value in values], pa.string())


def as_text(value: Any) -> str | None:
    """Text as it is, nothing as nothing, everything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _fits_parquet(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.num_fields == 0:  # Parquet has no empty groups.
        return False
    return all(_fits_parquet(kind.field(index).type) for index in range(kind.num_fields))
