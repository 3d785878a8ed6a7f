"""Rows of one bucket as they lie in storage: read beside a compaction, united over runs, one of each key.

A bucket's folder holds many small files, one a commit, or after a compaction one big one, whose name sorts behind
theirs: a listing that takes long and is overtaken by a compaction sees the old files, or the new one, or both.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import StorageError
from pipelines.spill import Spill
from pipelines.storage import Storage

KEY_COLUMNS = ["id", "fingerprint"]
WHOLE = "whole-"
"""How the name of a bucket's one file begins after a compaction."""

_READERS = 16
_LISTINGS = 5
_BUCKET = re.compile(r"/bucket=(\d+)/")


def files_by_bucket(storage: Storage, kind: str) -> dict[int, list[str]]:
    """The Parquet objects below `songs`, `failed`, `retried` or `plan`, by bucket; from one listing."""
    found: dict[int, list[str]] = defaultdict(list)
    for key in storage.keys(kind, ".parquet"):
        if match := _BUCKET.search(key):
            found[int(match[1])].append(key)
    return dict(sorted(found.items()))


def read_files(storage: Storage, folder: str, columns: Sequence[str] | None = None) -> dict[str, pa.Table]:
    """Every file of a folder by its key; `columns` that a file lacks are not in its table.

    Files that a compaction takes away meanwhile are looked for again.

    Raises:
        StorageError: when they keep disappearing.
    """
    tables: dict[str, pa.Table] = {}
    for _ in range(_LISTINGS):
        keys = storage.keys(folder, ".parquet")
        tables = {key: tables[key] for key in keys if key in tables}
        new = [key for key in keys if key not in tables]
        read = partial(_read_if_there, storage, list(columns) if columns else None)
        tables.update((key, table) for key, table in zip(new, _each(read, new), strict=True) if table is not None)
        if len(tables) == len(keys):
            return {key: tables[key] for key in keys}
    raise StorageError(f"cannot read {storage.url}/{folder}: its files disappeared {_LISTINGS} times while being read")


def united(tables: Iterable[pa.Table], columns: pa.Schema) -> pa.Table:
    """One table of all columns that any has, `columns` at least; runs may have carried different ones."""
    with Spill() as spill:
        for table in tables:
            spill.add(0, table)
        return spill.table(0, columns)


def newest(table: pa.Table, by: Sequence[str] = KEY_COLUMNS) -> pa.Table:
    """The last row, by `created_at`, of each group of equal values in the columns `by`."""
    times = table.column("created_at")
    table = table.take(pc.sort_indices(pc.fill_null(times, pa.scalar(0, times.type))))
    columns = [table.column(name).to_pylist() for name in by]
    last = {key: position for position, key in enumerate(zip(*columns, strict=True))}
    return table if len(last) == table.num_rows else table.take(pa.array(sorted(last.values()), pa.int64()))


def joined_keys(table: pa.Table, by: Sequence[str] = KEY_COLUMNS) -> pa.ChunkedArray:
    """The columns `by` of each row as one text, to be compared in bulk."""
    columns = [table.column(name).cast(pa.string()) for name in by]
    return pc.binary_join_element_wise(*columns, "\0", null_handling="replace", null_replacement="")


def rows_in(table: pa.Table, others: pa.ChunkedArray, by: Sequence[str] = KEY_COLUMNS) -> pa.ChunkedArray:
    """Whether each row's key is among `others`, which `joined_keys` made."""
    return pc.is_in(joined_keys(table, by), value_set=others.combine_chunks())


def without(keys: pa.ChunkedArray) -> Callable[[pa.Table], pa.Table]:
    """A function that gives the rows of a table whose key is not among `keys`."""
    return lambda rows: rows.filter(pc.invert(rows_in(rows, keys)))


def write_whole_bucket(storage: Storage, folder: str, table: pa.Table, instead_of: Iterable[str]) -> str | None:
    """Put one file into a folder, then take away exactly those that it replaces; its key, None without rows.

    Whoever dies in between leaves rows twice, which readers do not mind.
    """
    key = None
    if table.num_rows:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        data = buffer.getvalue()
        key = f"{folder}/{WHOLE}{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        storage.put(key, data)
    old = [each for each in instead_of if each != key]
    _each(lambda each: storage.delete([each]), old)
    return key


def _read_if_there(storage: Storage, columns: list[str] | None, key: str) -> pa.Table | None:
    try:
        if columns and key.rpartition("/")[2].startswith(WHOLE):
            return storage.read_table(key, columns)
        # A commit is small: one request for all of it is quicker than several for parts.
        return pq.ParquetFile(pa.BufferReader(storage.get(key))).read(columns=columns, use_threads=False)
    except FileNotFoundError:
        return None


def _each(action: Callable, keys: Sequence[str]) -> list:
    if len(keys) < 2:
        return [action(key) for key in keys]
    with ThreadPoolExecutor(min(_READERS, len(keys))) as pool:
        return list(pool.map(action, keys))
