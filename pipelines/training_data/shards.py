"""`ShardMaker`: a shard of the plan in, a file of rows to learn from out. One lives in each process that encodes.

A shard is read, encoded and written in one process, so that no sound travels between processes: threads of it read
ahead while the device encodes.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from acestep.checkpoint import Checkpoint
from acestep.device import is_out_of_memory, is_poisoned
from acestep.errors import ACEStepError
from acestep.frames import SAMPLES_PER_FRAME
from acestep.training.dataset import ROW_GROUP, SCHEMA
from acestep.training.preparation import SongEncoder
from acestep.training.teachers import Teacher, open_teacher
from pipelines.errors import UnusableInputError
from pipelines.storage import Storage
from pipelines.training_data.config import PrepareConfig
from pipelines.training_data.items import REJECT, Item
from pipelines.training_data.layout import plan_key, rejects_key, songs_key
from pipelines.training_data.songs import SongReader, TrainingSong

logger = logging.getLogger(__name__)

MADE = pa.schema(
    [
        ("shard", pa.int64()),
        ("done", pa.int64()),  # songs of the plan
        ("rows", pa.int64()),
        ("rejects", pa.int64()),
        ("audio_seconds", pa.float64()),
        ("error", pa.string()),  # why the shard could not be written
    ]
)
"""How far a shard is; later rows of a shard replace earlier ones."""

TELL_EVERY = 8
"""Songs between two words about a shard."""


class ShardMaker:
    """Loads the encoder once, then makes shards.

    Args:
        output: where plan and shards lie.
        source_options: of the fsspec filesystem that the audio lies in.
    """

    def __init__(self, config: PrepareConfig, output: Storage, source_options: dict[str, Any] | None = None):
        model = config.model
        checkpoint = Checkpoint.open(
            model.checkpoint, storage_options=model.storage_options or None, lyric_vocab=model.lyric_vocab
        )
        self._encode = SongEncoder.from_checkpoint(checkpoint, config.device)
        self._teachers = _open_teachers(config)
        self._read = SongReader(config, source_options or {})
        self._readers = config.resources.readers
        self._output = output
        self.schema = shard_schema(len(config.teachers))

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Numbers of shards in (`shard`), words about them out (`MADE`). A device that broke ends the process."""
        for shard in table.column("shard").to_pylist():
            for made in self.make(shard):
                yield pa.Table.from_pylist([made], MADE)

    def make(self, shard: int) -> Iterator[dict[str, Any]]:
        """Make one shard, telling now and then how far it is."""
        made: dict[str, Any] = dict.fromkeys(MADE.names, 0) | {"shard": shard, "audio_seconds": 0.0, "error": None}
        try:
            yield from self._make(shard, made)
        except ACEStepError as error:
            yield made | {"error": str(error)}

    def _make(self, shard: int, made: dict[str, Any]) -> Iterator[dict[str, Any]]:
        items = self._output.read_table(plan_key(shard)).to_pylist()
        file, rows = io.BytesIO(), list[dict[str, Any]]()
        rejects: list[dict[str, Any]] = []
        with pq.ParquetWriter(file, self.schema, compression="zstd") as writer:
            for item, songs in self._read_ahead(items):
                try:
                    for song in songs.result():
                        rows.append(self._row(song))
                        made["rows"] += 1
                        made["audio_seconds"] += rows[-1]["num_frames"] * SAMPLES_PER_FRAME / 44_100
                except Exception as error:
                    _end_if_poisoned(error)
                    rejects.append(_reject(item, error))
                made |= {"done": made["done"] + 1, "rejects": len(rejects)}
                while len(rows) >= ROW_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows[:ROW_GROUP], self.schema))
                    del rows[:ROW_GROUP]
                if made["done"] % TELL_EVERY == 0:
                    yield dict(made)
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, self.schema))
        if rejects:
            self._output.write_table(rejects_key(shard), pa.Table.from_pylist(rejects, REJECT))
        # The last thing that is written: a shard whose songs are there is finished.
        self._output.put(songs_key(shard), file.getvalue())
        yield dict(made)

    def _read_ahead(self, items: Sequence[Item]) -> Iterator[tuple[Item, Future[list[TrainingSong]]]]:
        """The items in their order, each with the songs that are being read."""
        waiting: deque[tuple[Item, Future[list[TrainingSong]]]] = deque()
        with ThreadPoolExecutor(self._readers) as pool:
            for item in items:
                waiting.append((item, pool.submit(self._read, item)))
                if len(waiting) > self._readers:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()

    def _row(self, song: TrainingSong) -> dict[str, Any]:
        row = self._encode(song.id, song.waveform, song.prompts, song.lyrics, song.language)
        for index, teacher in enumerate(self._teachers):
            features = teacher(song.waveform)
            row[f"target_{index}"] = features.astype(np.float16).tobytes()
            row[f"target_frames_{index}"] = len(features)
        return row


def shard_schema(teachers: int) -> pa.Schema:
    """The columns of a shard."""
    schema = SCHEMA
    for index in range(teachers):
        schema = schema.append(pa.field(f"target_{index}", pa.binary()))
        schema = schema.append(pa.field(f"target_frames_{index}", pa.int32()))
    return schema


def _open_teachers(config: PrepareConfig) -> list[Teacher]:
    try:
        return [
            open_teacher(name, trust_remote_code=config.trust_remote_code, device=config.device)
            for name in config.teachers
        ]
    except ValueError as error:
        raise error if isinstance(error, ACEStepError) else UnusableInputError(f"teachers: {error}") from error


def _reject(item: Item, error: Exception) -> dict[str, Any]:
    source = item["audio"] or f"seed {item['seed']}"
    if isinstance(error, ACEStepError):
        kind, message = error.error_class, str(error)
    elif is_out_of_memory(error):
        kind, message = "out_of_memory", str(error)
        torch.cuda.empty_cache()
    else:
        kind = "storage" if isinstance(error, OSError) else "input" if isinstance(error, ValueError) else "internal"
        message = f"{type(error).__name__}: {error}"
    logger.warning("song %s cannot be used: %s", item["id"], message)
    return {"id": item["id"], "source": source, "error_class": kind, "message": message}


def _end_if_poisoned(error: Exception) -> None:
    """After such an error every other song would fail too; Ray replaces a process that dies, and tries again."""
    if is_poisoned(error):
        logger.critical("the device is broken: %s; this process ends", error)
        logging.shutdown()
        sys.stderr.flush()
        os._exit(1)
