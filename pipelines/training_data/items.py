"""Which songs there are to learn from: pieces of the synthesiser, rows of a manifest, or a folder of audio."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.errors import UnusableInputError
from pipelines.manifest import Manifest
from pipelines.storage import open_filesystem
from pipelines.training_data.config import SynthSection

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif")
REQUIRED = ("audio", "prompt")

ITEM = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.string()),  # its address; null: a piece of the synthesiser
        ("seed", pa.int64()),  # of that piece
        ("prompts", pa.list_(pa.string())),
        ("prompt_file", pa.string()),  # where they stand, one a line, if not here
        ("lyrics", pa.string()),
        ("lyrics_file", pa.string()),
        ("language", pa.string()),
    ]
)

REJECT = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("error_class", pa.string()), ("message", pa.string())]
)
"""A song that cannot be used, and why."""

Item = dict[str, Any]


@dataclass(slots=True)
class Listing:
    """Songs in their order, each once: an id that is there already is rejected."""

    rejects: list[Item] = field(default_factory=list)
    """Filled while `items` goes on."""
    _ids: set[str] = field(default_factory=set)

    def keep(self, item: Item, source: str) -> Iterator[Item]:
        """The item, unless its id is taken."""
        if item["id"] in self._ids:
            self.reject(item["id"], source, f"id: {item['id']!r} is not allowed; an earlier song has it")
            return
        self._ids.add(item["id"])
        yield dict.fromkeys(ITEM.names) | item

    def reject(self, id: str | None, source: str, message: str) -> None:
        """Note a song that cannot be used."""
        self.rejects.append({"id": id, "source": source, "error_class": "input", "message": message})


def synth_items(section: SynthSection) -> Iterator[Item]:
    """The pieces of the synthesiser."""
    for seed in range(section.first_seed, section.first_seed + section.pieces):
        yield dict.fromkeys(ITEM.names) | {"id": f"synth-{seed}", "seed": seed}


def is_folder_of_audio(source: str, options: Mapping[str, Any]) -> bool:
    """Whether a source is a folder with audio files in it; else it is a manifest."""
    filesystem, path = open_filesystem(source, options)
    return filesystem.isdir(path) and any(_is_audio(each) for each in filesystem.find(path))


def folder_items(source: str, options: Mapping[str, Any], listing: Listing) -> Iterator[Item]:
    """The audio files below a folder. Beside `a.mp3` stand its tags in `a.txt` or `a_prompt.txt`, one prompt a line,
    and perhaps its words in `a_lyrics.txt`.
    """
    filesystem, path = open_filesystem(source, options)
    found = filesystem.find(path)
    there = set(found)
    for each in sorted(filter(_is_audio, found)):
        stem = os.path.splitext(each)[0]
        id = stem[len(path) :].lstrip("/")
        prompts = [name for name in (f"{stem}_prompt.txt", f"{stem}.txt") if name in there]
        if not prompts:
            message = f"there is neither {id}.txt nor {id}_prompt.txt beside it"
            listing.reject(id, filesystem.unstrip_protocol(each), message)
            continue
        lyrics = f"{stem}_lyrics.txt" if f"{stem}_lyrics.txt" in there else None
        address = filesystem.unstrip_protocol
        item = {"id": id, "audio": address(each), "prompt_file": address(prompts[0])}
        yield from listing.keep(item | {"lyrics_file": lyrics and address(lyrics)}, item["audio"])


def manifest_items(source: str, options: Mapping[str, Any], listing: Listing) -> Iterator[Item]:
    """The rows of a manifest with `audio` and `prompt`, perhaps `lyrics`, `language` and `id`.

    Raises:
        ManifestError: when it cannot be read, or lacks a column.
    """
    manifest = Manifest(source, options, required=REQUIRED)
    filesystem, path = open_filesystem(source, options)
    folder = path if filesystem.isdir(path) else os.path.dirname(path)
    base = filesystem.unstrip_protocol(folder)
    for batch in manifest.batches():
        for bad in batch.unreadable:
            listing.reject(None, f"{batch.file} row {bad.row}", bad.reason)
        for number, row in zip(batch.rows, batch.table.to_pylist(), strict=True):
            where = f"{batch.file} row {number}"
            try:
                item = _item_of(row, base)
            except UnusableInputError as error:
                listing.reject(None if row.get("id") is None else str(row["id"]), where, str(error))
            else:
                yield from listing.keep(item, where)


def _item_of(row: Mapping[str, Any], base: str) -> Item:
    audio, prompt = row["audio"], row["prompt"]
    if not isinstance(audio, str) or not audio:
        raise UnusableInputError(f"audio: {audio!r} is not allowed; it must be a path or URL")
    prompts = _listed(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(each, str) and each for each in prompts):
        raise UnusableInputError(f"prompt: {prompt!r} is not allowed; it must be text, or a list of texts")
    for name in ("lyrics", "language"):
        if not isinstance(row.get(name) or "", str):
            raise UnusableInputError(f"{name}: {row[name]!r} is not allowed; it must be text")
    address = audio if "://" in audio or os.path.isabs(audio) else f"{base}/{audio}"
    id = os.path.splitext(audio)[0] if row.get("id") is None else str(row["id"])
    return {
        "id": id,
        "audio": address,
        "prompts": prompts,
        "lyrics": row.get("lyrics") or None,
        "language": row.get("language") or None,
    }


def _listed(prompt: str) -> Any:
    """A prompt as a list; one that is a JSON list, as CSV and mixed columns have it, becomes that list."""
    if prompt.startswith("["):
        with suppress(ValueError):
            return json.loads(prompt)
    return [prompt]


def _is_audio(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.lower().endswith(AUDIO) and not name.startswith(".")
