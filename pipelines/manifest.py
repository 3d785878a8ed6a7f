"""`Manifest`: the rows that a person asks for, read as a stream from Parquet, JSONL or CSV, wherever they lie.

Nothing is judged here but whether a row can be read at all; `pipelines.plan` says what is wrong with its values.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from acestep.problems import nearest
from pipelines.errors import ManifestError, UnusableInputError
from pipelines.manifest_files import ManifestBatch, ManifestFile, columns_of, read_batches
from pipelines.storage import open_filesystem

REQUIRED = ("id", "prompt")
BATCH_ROWS = 16_384

_KINDS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_KINDS |= {".csv": "csv", ".tsv": "tsv"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


class Manifest:
    """A manifest: one file, a folder of them, or a glob; local or any fsspec URL.

    Attributes:
        columns: the names that its files have, as far as their beginnings tell.

    Raises:
        ManifestError: when it is missing, unreadable, empty or lacks a column of `required`.
    """

    def __init__(
        self, url: str, storage_options: Mapping[str, Any] | None = None, *, required: Sequence[str] = REQUIRED
    ):
        self.url = url
        self._required = required
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
        found = 0
        for file in self._files:
            with self._reading(file.name), self._open(file) as stream:
                for batch in read_batches(stream, file, rows, columns):
                    found += len(batch.rows) + len(batch.unreadable)
                    yield batch
        if not found:
            raise ManifestError(f"manifest {self.url}: there are no rows in it")

    def _find(self) -> list[ManifestFile]:
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
        return [
            ManifestFile(each, each[len(base) :].lstrip("/"), self._kind(each), filesystem.ukey(each)) for each in paths
        ]

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

    def _open(self, file: ManifestFile) -> Any:
        if file.kind == "parquet":  # Columns are read side by side: a cache of what follows would be in vain.
            return self._filesystem.open(file.path, "rb", cache_type="none")
        return self._filesystem.open(file.path, "rb", compression="infer")

    def _reading(self, name: str) -> _Reading:
        return _Reading(self.url, name)

    def _check_columns(self) -> None:
        for file in self._files:
            with self._reading(file.name), self._open(file) as stream:
                if (columns := columns_of(stream, file)) is None:
                    continue
            self.columns += [name for name in columns if name not in self.columns]
            repeated = [name for name, times in Counter(columns).items() if times > 1]
            if repeated:
                raise ManifestError(f"manifest {self.url}: {file.name} has the column {repeated[0]!r} twice")
            for name in self._required:
                if name not in columns:
                    close = [each for each in columns if each.strip().lower() == name]
                    hint = nearest(close[0], close) if close else nearest(name, columns)
                    raise ManifestError(
                        f"manifest {self.url}: {file.name} has no column {name!r}; "
                        f"its columns are: {', '.join(columns)}" + (f"; {hint}" if hint else "")
                    )

    def _count(self, file: ManifestFile) -> int:
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
