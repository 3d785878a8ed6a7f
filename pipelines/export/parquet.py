"""`ParquetFormat`: rows with the audio in them, as the Hub stores data sets."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.export.columns import with_facts
from pipelines.export.hub_features import AUDIO_TYPE, card_features, schema_metadata
from pipelines.export.names import audio_column, file_name, key_of
from pipelines.export.rendering import Song

ROW_GROUP_BYTES = 100_000_000
"""Of audio: what the Hub's viewer reads at once."""
ROW_GROUP_SONGS = 1_000


class ParquetFormat:
    """One file for each shard; the audio of a song is a struct of its bytes and a name.

    Args:
        renditions: their names; a single one, or none, makes the column `audio`.
        sample_rate: of all files in Hz, None where they differ.
    """

    needs_audio = True
    how_to_load = (
        "from datasets import load_dataset\n\n"
        'songs = load_dataset("{url}", split="{split}")\n'
        'print(len(songs), songs["prompt"][0])  # songs[0]["{audio}"] is its sound, decoded by torchcodec'
    )

    def __init__(self, renditions: Sequence[str], sample_rate: int | None):
        self._audio = {name: audio_column(name) for name in renditions} if len(renditions) > 1 else {"": "audio"}
        self._sample_rate = sample_rate

    def keys(self, split: str, count: int) -> list[str]:
        return [f"data/{split}-{index:05d}-of-{count:05d}.parquet" for index in range(count)]

    @staticmethod
    def owns(key: str, split: str) -> bool:
        return re.fullmatch(rf"data/{split}-\d+-of-\d+\.parquet", key) is not None

    def paths(self, split: str) -> str:
        return f"data/{split}-*.parquet"

    def features(self, rows: pa.Schema, audio: Mapping[str, str]) -> list[dict[str, Any]] | None:
        return card_features(self._schema(rows), dict.fromkeys(self._audio.values(), self._sample_rate))

    def write(self, key: str, rows: pa.Table, songs: Iterable[Song]) -> bytes:
        columns, sink = self._schema(rows.schema), io.BytesIO()
        # Audio does not compress, and a dictionary or statistics of it would be copies.
        plain = {f"{name}.bytes" for name in self._audio.values()}
        others = [path for path in _leaves(columns) if path not in plain]
        with pq.ParquetWriter(
            sink,
            columns,
            compression=dict.fromkeys(plain, "NONE") | dict.fromkeys(others, "ZSTD"),
            use_dictionary=others,
            write_statistics=others,
            write_page_index=True,
        ) as writer:
            start, held = 0, 0
            group: list[Song] = []
            for song in songs:
                group.append(song)
                held += sum(len(file.data) for file in song.files)
                if held >= ROW_GROUP_BYTES or len(group) >= ROW_GROUP_SONGS:
                    writer.write_table(self._table(rows.slice(start, len(group)), group))
                    start, held, group = start + len(group), 0, []
            if group:
                writer.write_table(self._table(rows.slice(start, len(group)), group))
        return sink.getvalue()

    def _schema(self, rows: pa.Schema) -> pa.Schema:
        audio = [pa.field(name, AUDIO_TYPE) for name in self._audio.values()]
        return pa.schema([*audio, *rows], metadata=schema_metadata(list(self._audio.values()), self._sample_rate))

    def _table(self, rows: pa.Table, songs: Sequence[Song]) -> pa.Table:
        keys = [key_of(id) for id in rows.column("id").to_pylist()]
        audio = []
        for rendition in self._audio:
            files = [next(file for file in song.files if file.rendition == rendition) for song in songs]
            values = [
                {"bytes": file.data, "path": file_name(key, file.rendition, file.extension)}
                for key, file in zip(keys, files, strict=True)
            ]
            audio.append(pa.array(values, AUDIO_TYPE))
        rows = with_facts(rows, [song.facts for song in songs])
        return pa.Table.from_arrays([*audio, *rows.columns], schema=self._schema(rows.schema))


def _leaves(columns: pa.Schema) -> list[str]:
    """Parquet's names of the columns, as deep as they go."""
    sink = io.BytesIO()
    pq.write_table(columns.empty_table(), sink)
    parquet = pq.ParquetFile(sink).schema
    return [parquet.column(index).path for index in range(len(parquet))]
