"""`JsonlFormat`: rows as lines of JSON; the audio stays where it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.export.json_rows import json_line
from pipelines.export.rendering import Song
from pipelines.storage import Storage


class JsonlFormat:
    """A line for each song; `url` is where its file lies, `path` the same below the catalog."""

    needs_audio = False
    how_to_load = 'import pandas\n\nsongs = pandas.read_json("{url}/{shard}", lines=True)\nprint(songs[["id", "url"]])'

    def __init__(self, source: Storage):
        self._source = source

    def keys(self, split: str, count: int) -> list[str]:
        if count == 1:
            return [f"{split}/metadata.jsonl"]
        return [f"{split}/metadata-{index:05d}-of-{count:05d}.jsonl" for index in range(count)]

    @staticmethod
    def owns(key: str, split: str) -> bool:
        return re.fullmatch(rf"{split}/metadata(-\d+-of-\d+)?\.jsonl", key) is not None

    def paths(self, split: str) -> str:
        return f"{split}/metadata*.jsonl"

    def features(self, rows: pa.Schema, audio: Mapping[str, str]) -> list[dict[str, Any]] | None:
        return None

    def write(self, key: str, rows: pa.Table, songs: Iterable[Song]) -> bytes:
        root = self._source.url.rstrip("/")
        return b"".join(json_line({"url": f"{root}/{row['path']}", **row}) + b"\n" for row in rows.to_pylist())
