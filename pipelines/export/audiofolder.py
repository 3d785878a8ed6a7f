"""`AudioFolderFormat`: folders of plain audio files, each folder with a table that names them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.export.columns import with_facts
from pipelines.export.names import audio_column, file_name, key_of
from pipelines.export.ordered import in_order
from pipelines.export.rendering import Song
from pipelines.storage import Storage

_UPLOADS = 8


class AudioFolderFormat:
    """A shard is a folder: files, and `metadata.parquet` with their rows, which comes last."""

    needs_audio = True
    how_to_load = (
        "from datasets import load_dataset\n\n"
        'songs = load_dataset("audiofolder", data_dir="{url}", split="{split}")\n'
        'print(len(songs), songs["prompt"][0])  # songs[0]["{audio}"] is its sound, decoded by torchcodec'
    )

    def __init__(self, destination: Storage):
        self._destination = destination

    def keys(self, split: str, count: int) -> list[str]:
        return [f"{split}/{index:05d}/metadata.parquet" for index in range(count)]

    @staticmethod
    def owns(key: str, split: str) -> bool:
        return re.fullmatch(rf"{split}/\d{{5,}}/[^/.][^/]*", key) is not None

    def paths(self, split: str) -> str:
        return f"{split}/**"

    def features(self, rows: pa.Schema, audio: Mapping[str, str]) -> list[dict[str, Any]] | None:
        return None

    def write(self, key: str, rows: pa.Table, songs: Iterable[Song]) -> bytes:
        folder = key.rpartition("/")[0]
        facts: list[dict[str, Any]] = []
        names: dict[str, list[str]] = {}

        def files() -> Iterator[tuple[str, bytes]]:
            for id, song in zip(rows.column("id").to_pylist(), songs, strict=True):
                facts.append(song.facts)
                for file in song.files:
                    name = file_name(key_of(id), file.rendition, file.extension)
                    column = f"{audio_column(file.rendition)}_file_name" if file.rendition else "file_name"
                    names.setdefault(column, []).append(name)
                    yield f"{folder}/{name}", file.data

        with ThreadPoolExecutor(_UPLOADS) as pool:
            for _ in in_order(pool, lambda file: self._destination.put(*file), files(), most=2 * _UPLOADS):
                pass
        table = with_facts(rows, facts)
        for position, (column, values) in enumerate(names.items()):
            table = table.add_column(position, column, pa.array(values, pa.string()))
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()
