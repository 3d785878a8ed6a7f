"""`Chunks`: tables on local disk between the steps of planning, written by many processes, read in order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage import Storage

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True, slots=True)
class Chunks:
    """A folder of tables: of a kind, in a group, each with a number of its own, such as (batch, part)."""

    folder: str

    def put(self, kind: str, group: int, number: tuple[int, ...], table: pa.Table) -> None:
        """Write a table down; an empty one is none."""
        if not table.num_rows:
            return
        path = Path(self.folder, kind, str(group), "-".join(f"{each:08d}" for each in number) + ".arrow")
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=_OPTIONS) as writer:
            writer.write_table(table)

    def take(self, kind: str, group: int) -> Iterator[tuple[tuple[int, ...], pa.Table]]:
        """The tables of a group in the order of their numbers; read, they are gone."""
        folder = Path(self.folder, kind, str(group))
        for path in sorted(folder.glob("*.arrow")):
            with pa.OSFile(str(path), "rb") as source:
                table = pa.ipc.open_stream(source).read_all()
            yield tuple(map(int, path.stem.split("-"))), table
        shutil.rmtree(folder, ignore_errors=True)


class StreamedTable:
    """One Parquet object of tables that are not in memory together; without any row, nothing is written.

    Attributes:
        rows: written so far.
    """

    def __init__(self, storage: Storage, key: str, schema: pa.Schema):
        self.rows = 0
        self._storage, self._key, self._schema = storage, key, schema
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="acestep-plan-")  # noqa: SIM115 - closed by __exit__
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> StreamedTable:
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        if table.num_rows:
            self._writer = self._writer or pq.ParquetWriter(self._file, self._schema, compression="zstd")
            self._writer.write_table(table)
            self.rows += table.num_rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if self._writer is not None:
                self._writer.close()
                if error is None:
                    self._file.seek(0)
                    self._storage.put(self._key, self._file.read())
