"""What a training learns from, found and opened as batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import fsspec
import pyarrow.parquet as pq

from acestep.training.audio_crops import AudioCrops, SynthCrops
from acestep.training.dataset import LatentDataset
from acestep.training.flow_matching import LatentBatch
from acestep.training.trainer import Batches
from pipelines.errors import ConfigError, UnusableInputError
from pipelines.storage import open_filesystem
from pipelines.training.config import TrainingConfig
from pipelines.training_data.items import AUDIO
from pipelines.training_data.layout import DATA_RECORD, SONGS


def open_batches(config: TrainingConfig) -> Batches:
    """What the part that is trained learns from, as batches.

    Raises:
        ConfigError: where there is nothing to learn from, or too little.
        OSError: for data that cannot be read.
    """
    data, options = config.data, config.storage.storage_options
    try:
        if config.part in ("transformer", "lora"):
            songs = LatentDataset(
                song_files(config),
                data.batch_size,
                seed=config.seed,
                max_frames=data.max_frames,
                storage_options=options,
            )
            return songs if config.repa.enabled else WithoutTargets(songs)
        if data.audio:
            found = find_files(data.audio, AUDIO, options, "data.audio")
            return AudioCrops(found, data.crop_frames, data.batch_size, config.seed, options)
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"data: {error}") from error
    pieces = data.batch_size // data.crops_per_piece
    return SynthCrops(data.crop_frames, pieces, data.crops_per_piece, config.seed)


def song_files(config: TrainingConfig) -> list[str]:
    """The Parquet files to learn from.

    Raises:
        ConfigError: for places where there are none.
    """
    if not config.data.songs:
        raise ConfigError(f"data.songs: [] is not allowed; part {config.part} needs data, `acestep prepare` makes it")
    return find_files(config.data.songs, (".parquet",), config.storage.storage_options, "data.songs")


def target_dims(config: TrainingConfig) -> list[int]:
    """Numbers a frame of each audio encoder's features, as the first song has them."""
    if not config.repa.enabled:
        return []
    options = config.storage.storage_options
    for path in song_files(config):
        with fsspec.open(path, "rb", **(options if "://" in path else {})) as stream:
            file = pq.ParquetFile(stream)
            names = [name for name in file.schema_arrow.names if name.startswith("target_")]
            if file.metadata.num_rows:
                row = next(file.iter_batches(1, columns=names)).to_pylist()[0] if names else {}
                kinds = sum(not name.startswith("target_frames_") for name in names)
                return [len(row[f"target_{k}"]) // 2 // row[f"target_frames_{k}"] for k in range(kinds)]
    return []


def find_files(places: Iterable[str], endings: Sequence[str], options: Mapping[str, Any], option: str) -> list[str]:
    """Files with one of the endings: those named, in folders named, of globs; of prepared data, only its songs.

    Raises:
        ConfigError: for a place where there are none.
    """
    found: list[str] = []
    for place in places:
        try:
            filesystem, path = open_filesystem(place, options)
        except UnusableInputError as error:
            raise ConfigError(f"{option}: {error}") from error
        if filesystem.isdir(path):
            inner = f"{path}/{SONGS}" if filesystem.isfile(f"{path}/{DATA_RECORD}") else path
            files = [each for each in filesystem.find(inner) if each.lower().endswith(tuple(endings))]
        else:
            files = filesystem.glob(path) if any(mark in path for mark in "*?[") else [path]
            files = [each for each in files if filesystem.isfile(each)]
        if not files:
            raise ConfigError(f"{option}: {place!r} is not allowed; there is no {' or '.join(endings)} file")
        remote = "file" not in filesystem.protocol
        found += [filesystem.unstrip_protocol(each) if remote else each for each in sorted(files)]
    return list(dict.fromkeys(found))


class WithoutTargets:
    """Songs without what audio encoders hear in them."""

    def __init__(self, songs: LatentDataset):
        self._songs = songs

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> LatentBatch:
        """The batch of a step."""
        return replace(self._songs(step, rank, world_size), targets=())
