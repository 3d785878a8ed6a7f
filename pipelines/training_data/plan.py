"""`DataPlan`: which songs go into which shard, written down once, so that a restart makes the same files."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from acestep.cache import file_sha256
from acestep.checkpoint import FOLDERS, Checkpoint
from pipelines.errors import OutputError, UnusableInputError
from pipelines.manifest import Manifest
from pipelines.storage import Storage, open_filesystem
from pipelines.training_data.config import PrepareConfig
from pipelines.training_data.items import (
    ITEM,
    REJECT,
    REQUIRED,
    Item,
    Listing,
    folder_items,
    is_folder_of_audio,
    manifest_items,
    synth_items,
)
from pipelines.training_data.layout import DATA_RECORD, PLAN_REJECTS, SONGS, plan_key, songs_key
from pipelines.training_data.songs import RESERVED_PROBLEM, uses_reserved_seeds

_NO_SOURCE = "there is nothing to prepare: name a source, or set synth.pieces"


@dataclass(frozen=True, slots=True)
class DataPlan:
    """What is to be made.

    Attributes:
        identity: of the source, the settings and the encoder; other ones would make other files.
        sizes: songs of each shard.
        rejected: songs that could not be planned.
    """

    identity: dict[str, Any]
    sizes: list[int]
    rejected: int

    @classmethod
    def read(cls, output: Storage) -> DataPlan | None:
        """The plan of an output; None where there is none."""
        try:
            return cls(**json.loads(output.get(DATA_RECORD)))
        except FileNotFoundError:
            return None

    def missing(self, output: Storage) -> list[int]:
        """Shards that are still to be made."""
        there = set(output.keys(SONGS, ".parquet"))
        return [shard for shard in range(len(self.sizes)) if songs_key(shard) not in there]


def current_plan(config: PrepareConfig, source: str | None, output: Storage) -> DataPlan:
    """The plan that the output has, or a new one.

    Raises:
        UnusableInputError: for a source that cannot be used, or none.
        OutputError: where other data was prepared.
        CheckpointError: for an encoder that cannot be found.
    """
    if (source is None) == (config.synth.pieces == 0):
        raise UnusableInputError(_NO_SOURCE if source is None else f"source {source!r} goes without synth.pieces")
    if source is None and uses_reserved_seeds(config.synth):
        raise UnusableInputError(RESERVED_PROBLEM)
    options = config.storage.storage_options
    identity = {
        "source": None if source is None else _identity_of(source, options),
        "settings": config.settings(),
        "encoder": _encoder_identity(config),
    }
    identity = json.loads(json.dumps(identity))
    if (before := DataPlan.read(output)) is not None:
        if differing := [name for name in identity if before.identity.get(name) != identity[name]]:
            raise OutputError(
                f"output {output.url}: data was prepared there with another {' and another '.join(differing)}; use "
                "another output, or delete that one"
            )
        return before
    listing = Listing()
    sizes = [_write_shard(output, shard, items) for shard, items in enumerate(_shards(config, source, listing))]
    if not sizes:
        why = f"; the first reason: {listing.rejects[0]['message']}" if listing.rejects else ""
        raise UnusableInputError(f"source {source!r}: there is no song in it that can be used{why}")
    if listing.rejects:
        output.write_table(PLAN_REJECTS, pa.Table.from_pylist(listing.rejects, REJECT))
    plan = DataPlan(identity, sizes, len(listing.rejects))
    output.put(DATA_RECORD, json.dumps(asdict(plan), indent=1).encode())
    return plan


def _shards(config: PrepareConfig, source: str | None, listing: Listing) -> Iterator[list[Item]]:
    options = config.storage.storage_options
    items: Iterable[Item]
    if source is None:
        items = synth_items(config.synth)
    elif is_folder_of_audio(source, options):
        items = folder_items(source, options, listing)
    else:
        items = manifest_items(source, options, listing)
    items = iter(items)
    while shard := list(itertools.islice(items, config.shard_songs)):
        yield shard


def _write_shard(output: Storage, shard: int, items: list[Item]) -> int:
    output.write_table(plan_key(shard), pa.Table.from_pylist(items, ITEM))
    return len(items)


def _identity_of(source: str, options: dict[str, Any]) -> str:
    if not is_folder_of_audio(source, options):
        return Manifest(source, options, required=REQUIRED).identity()
    filesystem, path = open_filesystem(source, options)
    files = [(name[len(path) :], about.get("size")) for name, about in filesystem.find(path, detail=True).items()]
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()[:16]


def _encoder_identity(config: PrepareConfig) -> str:
    """Of what latents and tokens depend on; the transformer may be any."""
    model = config.model
    checkpoint = Checkpoint.open(
        model.checkpoint, storage_options=model.storage_options or None, lyric_vocab=model.lyric_vocab
    )
    wanted = (f"{FOLDERS['autoencoder']}/", f"{FOLDERS['vocoder']}/config.json", "tokenizer.json", "vocab.json")
    files = sorted(checkpoint.files().items())
    content = [(name, file_sha256(path)) for name, path in files if any(each in name for each in wanted)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
