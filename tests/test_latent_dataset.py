"""Songs dealt out in batches: each once an epoch, to each worker others, in an order that is a function of the seed."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.training.dataset import SCHEMA, LatentDataset
from tests.conftest import S3


def song(number: int) -> dict[str, Any]:
    """Its number stands in all that belongs to it."""
    frames = 3 + number * 7 % 5
    latents = np.random.default_rng(number).standard_normal((8, 16, frames)).astype(np.float16)
    latents[0, 0] = number
    return {
        "id": str(number),
        "prompts": ["a", "b"],
        "num_frames": frames,
        "latents": latents.tobytes(),
        "prompt_ids": [[number + 1] * (1 + number % 3), [number + 1]],
        "lyric_ids": [number + 1] * (number % 4),
    }


def write(folder: Path, counts: list[int], group: int = 4) -> list[str]:
    """Files of so many songs each."""
    numbers, paths = iter(range(sum(counts))), []
    for index, count in enumerate(counts):
        rows = [song(next(numbers)) for _ in range(count)]
        paths.append(str(folder / f"{index}.parquet"))
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), paths[-1], row_group_size=group)
    return paths


def numbers_of(dataset: LatentDataset, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
    return [int(each) for each in dataset(step, rank, world_size).latents[:, 0, 0, 0]]


@settings(max_examples=20)
@given(
    counts=st.lists(st.integers(0, 11), min_size=1, max_size=4),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_an_epoch_deals_every_song_once_among_all_workers(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], batch_size: int, world_size: int, seed: int
) -> None:
    paths = write(tmp_path_factory.mktemp("songs"), counts)
    if sum(counts) < batch_size:
        with pytest.raises(ValueError, match="fewer than a batch"):
            LatentDataset(paths, batch_size, seed=seed)
        return
    dataset = LatentDataset(paths, batch_size, seed=seed)
    batches = sum(counts) // batch_size
    for epoch in range(2):
        dealt: list[int] = []
        for number in range(epoch * batches, (epoch + 1) * batches):
            step, rank = divmod(number, world_size)
            dealt += numbers_of(dataset, step, rank, world_size)
        assert max(Counter(dealt).values()) == 1
        assert len(dealt) == batches * batch_size


def test_the_order_is_a_function_of_the_seed_and_differs_between_epochs(tmp_path: Path) -> None:
    paths = write(tmp_path, [20, 20])
    orders = {seed: [numbers_of(LatentDataset(paths, 4, seed=seed), step) for step in range(20)] for seed in (0, 1)}
    again = LatentDataset(paths[::-1], 4, seed=0)
    # From the end: no batch depends on those before it.
    assert [numbers_of(again, step) for step in reversed(range(20))][::-1] == orders[0]
    assert orders[0] != orders[1]
    assert orders[0][:10] != orders[0][10:]


def test_a_batch_holds_the_exact_arrays_padded_with_zeros(tmp_path: Path) -> None:
    batch = LatentDataset(write(tmp_path, [9]), 4)(0)
    for index in range(4):
        number = int(batch.latents[index, 0, 0, 0])
        wanted = song(number)
        frames = wanted["num_frames"]
        latents = np.frombuffer(wanted["latents"], np.float16).reshape(8, 16, -1).astype(np.float32)
        assert torch.equal(batch.latents[index, ..., :frames], torch.from_numpy(latents))
        assert not batch.latents[index, ..., frames:].any()
        assert batch.frame_mask[index].tolist() == [1.0] * frames + [0.0] * (batch.latents.shape[-1] - frames)
        prompt = batch.prompt_ids[index][batch.prompt_mask[index].bool()].tolist()
        assert prompt in wanted["prompt_ids"]
        assert batch.lyric_ids[index][batch.lyric_mask[index].bool()].tolist() == wanted["lyric_ids"]
    assert batch.targets == []


def test_long_songs_are_cut_to_another_span_each_epoch(tmp_path: Path) -> None:
    rows = [song(number) for number in range(2)]
    frames = np.arange(50, dtype=np.float16)
    for row in rows:
        latents = np.broadcast_to(frames, (8, 16, 50))
        row |= {"num_frames": 50, "latents": latents.tobytes()}
        row |= {"target_0": frames.repeat(2).astype(np.float16).tobytes(), "target_frames_0": 100}
    schema = SCHEMA.append(pa.field("target_0", pa.binary())).append(pa.field("target_frames_0", pa.int32()))
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "x.parquet")
    dataset = LatentDataset([str(tmp_path / "x.parquet")], 2, max_frames=10)
    starts = set()
    for step in range(8):
        batch = dataset(step)
        for index in range(2):
            span = batch.latents[index, 3, 5]
            assert torch.equal(span, span[0] + torch.arange(10.0))
            assert torch.equal(batch.targets[0][index][:, 0], span.repeat_interleave(2))
            starts.add(int(span[0]))
    assert len(starts) > 8


def test_files_may_lie_in_a_store_with_options(moto: S3, tmp_path: Path) -> None:
    import s3fs

    local = write(tmp_path, [6])
    url = f"{moto.url}/{uuid.uuid4().hex}/0.parquet"
    s3fs.S3FileSystem(**moto.options).put_file(local[0], url)
    there = LatentDataset([url], 3, storage_options=moto.options)
    assert numbers_of(there, 0) == numbers_of(LatentDataset(local, 3), 0)
