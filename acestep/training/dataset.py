"""`LatentDataset`: songs as latents and tokens in Parquet, dealt out in batches that are a function of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from acestep.frames import LATENT_CHANNELS, LATENT_HEIGHT
from acestep.training.flow_matching import LatentBatch

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompts", pa.list_(pa.string())),  # what it may be called; one is drawn each time
        ("num_frames", pa.int32()),
        ("latents", pa.binary()),  # float16 [8, 16, num_frames]
        ("prompt_ids", pa.list_(pa.list_(pa.int32()))),
        ("lyric_ids", pa.list_(pa.int32())),  # empty: instrumental
    ]
)
"""What every row has. `target_0`, `target_1` ... may follow: float16 `[F, D]`, with F in `target_frames_0` ..."""

ROW_GROUP = 64
"""Rows that are read at once; files are written in such groups."""

_CACHED_GROUPS = 64
_SORTED_BATCHES = 16
"""Batches that are cut from one run of rows sorted by length."""


class LatentDataset:
    """Batches of songs of like length from Parquet files, local or at any fsspec address.

    Each epoch deals every song once, but for an incomplete batch at its end, in an order that is a function of seed and
    epoch.

    Args:
        max_frames: longer songs are cut to a span of this length, drawn anew each epoch. None: they stay whole.
        storage_options: for fsspec, of paths with a protocol.
    """

    def __init__(
        self,
        paths: Sequence[str],
        batch_size: int,
        *,
        seed: int = 0,
        max_frames: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ):
        """Reads the files' row counts and the songs' lengths.

        Raises:
            ValueError: when there are fewer songs than a batch takes.
        """
        self.paths, self.batch_size, self.seed, self.max_frames = sorted(paths), batch_size, seed, max_frames
        self._storage_options = dict(storage_options or {})
        self._groups: list[tuple[int, int]] = []
        rows: list[tuple[int, int]] = []
        lengths: list[np.ndarray] = []
        for index, path in enumerate(self.paths):
            with self._open(path) as file:
                parquet = pq.ParquetFile(file)
                for group in range(parquet.num_row_groups):
                    found = parquet.read_row_group(group, columns=["num_frames"])["num_frames"].to_numpy()
                    rows += [(len(self._groups), row) for row in range(len(found))]
                    lengths.append(found)
                    self._groups.append((index, group))
        self._rows = np.array(rows, dtype=np.int64).reshape(-1, 2)
        self._lengths = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
        if len(self) < batch_size:
            raise ValueError(f"{len(self)} songs in {len(self.paths)} files are fewer than a batch of {batch_size}")
        self._read_group = lru_cache(maxsize=_CACHED_GROUPS)(self._read_group_anew)
        self._epoch = lru_cache(maxsize=2)(self._epoch_anew)

    def __len__(self) -> int:
        """Songs."""
        return len(self._rows)

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> LatentBatch:
        """A worker's batch of a step; workers share the batches of an epoch among them."""
        number = step * world_size + rank
        epoch, index = divmod(number, len(self) // self.batch_size)
        rng = np.random.default_rng([self.seed, 2, number])
        return collate([self._read(int(row), rng) for row in self._epoch(epoch)[index]])

    def _epoch_anew(self, epoch: int) -> np.ndarray:
        """Rows of each batch `[batches, batch_size]`."""
        rng = np.random.default_rng([self.seed, 1, epoch])
        # Whole row groups are shuffled, then rows within runs of them: each file is read about once an epoch.
        order = np.argsort(rng.permutation(len(self._groups))[self._rows[:, 0]], kind="stable")
        size = self.batch_size
        order = order[: len(order) // size * size]
        for start in range(0, len(order), _SORTED_BATCHES * size):
            run = rng.permutation(order[start : start + _SORTED_BATCHES * size])
            order[start : start + len(run)] = run[np.argsort(self._lengths[run], kind="stable")]
        batches = order.reshape(-1, size)
        for start in range(0, len(batches), 2 * _SORTED_BATCHES):
            part = batches[start : start + 2 * _SORTED_BATCHES]
            batches[start : start + len(part)] = rng.permutation(part)
        return batches

    def _read(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        """A song with its arrays, cut to a span."""
        group, index = self._rows[row]
        song = dict(self._read_group(int(group))[int(index)])
        latents = np.frombuffer(song["latents"], dtype=np.float16).reshape(LATENT_CHANNELS, LATENT_HEIGHT, -1)
        targets = _targets(song)
        length = latents.shape[-1]
        if self.max_frames and length > self.max_frames:
            start = int(rng.integers(length - self.max_frames + 1))
            stop = start + self.max_frames
            latents = latents[..., start:stop]
            targets = [t[start * len(t) // length : max(stop * len(t) // length, 1)] for t in targets]
        prompt_ids = song["prompt_ids"][int(rng.integers(len(song["prompt_ids"])))]
        return song | {"latents": latents, "targets": targets, "prompt_ids": prompt_ids}

    def _read_group_anew(self, number: int) -> list[dict[str, Any]]:
        index, group = self._groups[number]
        with self._open(self.paths[index]) as file:
            return pq.ParquetFile(file).read_row_group(group).to_pylist()

    def _open(self, path: str) -> Any:
        return fsspec.open(path, "rb", **(self._storage_options if "://" in path else {}))


def collate(songs: Sequence[dict[str, Any]]) -> LatentBatch:
    """Songs with `latents` `[8, 16, T]` and one prompt's ids, padded to one batch."""
    longest = max(song["latents"].shape[-1] for song in songs)
    latents = torch.zeros(len(songs), LATENT_CHANNELS, LATENT_HEIGHT, longest)
    frame_mask = torch.zeros(len(songs), longest)
    for index, song in enumerate(songs):
        length = song["latents"].shape[-1]
        latents[index, ..., :length] = torch.from_numpy(song["latents"].astype(np.float32))
        frame_mask[index, :length] = 1
    prompt_ids, prompt_mask = _padded([song["prompt_ids"] for song in songs])
    lyric_ids, lyric_mask = _padded([song["lyric_ids"] for song in songs])
    return LatentBatch(
        latents=latents,
        frame_mask=frame_mask,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        lyric_ids=lyric_ids,
        lyric_mask=lyric_mask,
        targets=[
            [torch.from_numpy(target.astype(np.float32)) for target in of_songs]
            for of_songs in zip(*(song.get("targets", ()) for song in songs), strict=True)
        ],
    )


def _targets(song: dict[str, Any]) -> list[np.ndarray]:
    """What each audio encoder heard, `[F, D]`."""
    targets: list[np.ndarray] = []
    while (name := f"target_{len(targets)}") in song:
        frames = song[f"target_frames_{len(targets)}"]
        targets.append(np.frombuffer(song[name], dtype=np.float16).reshape(frames, -1))
    return targets


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[B, N]`, padded with 0, N at least 1, and their mask."""
    length = max(1, *(len(row) for row in rows))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids, mask
