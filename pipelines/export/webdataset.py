"""`WebDatasetFormat`: tar files of samples, read from the first byte to the last."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.export.hub_features import card_features
from pipelines.export.json_rows import json_line
from pipelines.export.names import file_name, key_of
from pipelines.export.rendering import Song


class WebDatasetFormat:
    """A sample is `<key>.<ext>` for each audio file, `<key>.json` with the row, `<key>.txt` with the prompt."""

    needs_audio = True
    how_to_load = (
        "import webdataset\n\n"
        'for sample in webdataset.WebDataset("{shards}", shardshuffle=False).decode():\n'
        '    print(sample["__key__"], sample["json"]["prompt"], len(sample["{extension}"]))'
    )

    def keys(self, split: str, count: int) -> list[str]:
        return [f"{split}-{index:06d}.tar" for index in range(count)]

    @staticmethod
    def owns(key: str, split: str) -> bool:
        return re.fullmatch(rf"{split}-\d{{6}}\.tar", key) is not None

    def paths(self, split: str) -> str:
        return f"{split}-*.tar"

    def features(self, rows: pa.Schema, audio: Mapping[str, str]) -> list[dict[str, Any]] | None:
        row = card_features(rows, {}, as_json=True)
        if row is None or not audio:
            return None
        names = [file_name("", name, extension).removeprefix(".") for name, extension in audio.items()]
        files: list[dict[str, Any]] = [{"name": name, "dtype": "audio"} for name in names]
        texts = ["txt", "__key__", "__url__"] if "prompt" in rows.names else ["__key__", "__url__"]
        return [*files, {"name": "json", "struct": row}, *({"name": name, "dtype": "string"} for name in texts)]

    def write(self, key: str, rows: pa.Table, songs: Iterable[Song]) -> bytes:
        tar = _Tar()
        for row, song in zip(rows.to_pylist(), songs, strict=True):
            row = {name: song.facts.get(name, value) for name, value in row.items()}
            name = key_of(row["id"])
            for file in song.files:
                tar.add(file_name(name, file.rendition, file.extension), file.data)
            tar.add(f"{name}.json", json_line(row))
            if "prompt" in row:
                tar.add(f"{name}.txt", (row["prompt"] or "").encode())
        return tar.finish()


class _Tar:
    """A tar file whose bytes are a function of names and contents: members have no owner and no time."""

    def __init__(self) -> None:
        self._sink = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._sink, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def finish(self) -> bytes:
        self._tar.close()
        return self._sink.getvalue()
