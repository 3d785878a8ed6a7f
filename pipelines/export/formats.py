"""`Format`: what the four kinds of export have in common, and which one an export needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import pyarrow as pa

from pipelines.export.audiofolder import AudioFolderFormat
from pipelines.export.jsonl import JsonlFormat
from pipelines.export.options import ExportOptions, Kind
from pipelines.export.parquet import ParquetFormat
from pipelines.export.rendering import Song
from pipelines.export.webdataset import WebDatasetFormat
from pipelines.storage import Storage


class Format(Protocol):
    """One way to lay out a data set: which objects a shard is, and what is in them.

    A shard is there when its object is; what else belongs to it (the files of audiofolder) is put before.

    Attributes:
        needs_audio: whether songs are read at all.
        how_to_load: lines of Python, `{url}` being the data set's place and `{split}` its split.
    """

    needs_audio: bool
    how_to_load: str

    def keys(self, split: str, count: int) -> list[str]:
        """The objects of `count` shards."""
        ...

    @staticmethod
    def owns(key: str, split: str) -> bool:
        """Whether an object is one that this format writes for the split."""
        ...

    def paths(self, split: str) -> str:
        """The split's data files, as a glob."""
        ...

    def features(self, rows: pa.Schema, audio: Mapping[str, str]) -> list[dict[str, Any]] | None:
        """For the data-set card: the columns that `datasets` will see; None where it finds them out as well itself.

        Args:
            rows: the delivered columns.
            audio: the extension of each rendition's files.
        """
        ...

    def write(self, key: str, rows: pa.Table, songs: Iterable[Song]) -> bytes:
        """The bytes of a shard's object, from its rows and songs in the same order."""
        ...


FORMATS: dict[Kind, type[Format]] = {
    "parquet": ParquetFormat,
    "webdataset": WebDatasetFormat,
    "audiofolder": AudioFolderFormat,
    "jsonl": JsonlFormat,
}


def format_of(options: ExportOptions, sample_rate: int | None, source: Storage, destination: Storage) -> Format:
    """The format of an export; `sample_rate` is that of all its files in Hz, None where they differ."""
    if options.kind == "parquet":
        return ParquetFormat([each.name for each in options.renditions], sample_rate)
    if options.kind == "webdataset":
        return WebDatasetFormat()
    if options.kind == "audiofolder":
        return AudioFolderFormat(destination)
    return JsonlFormat(source)
