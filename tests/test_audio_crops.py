"""Crops of sound: a function of the step, of the right length, from whatever lies in a folder."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep.training.audio_crops import AudioCrops, SynthCrops


def test_synthesised_crops_are_a_function_of_step_and_worker() -> None:
    crops = SynthCrops(4, pieces_per_batch=2, crops_per_piece=3, seed=1)
    batch = crops(5)
    assert batch.shape == (6, 2, 4 * SAMPLES_PER_FRAME)
    assert batch.dtype == torch.float32
    assert torch.equal(batch, SynthCrops(4, 2, 3, 1)(5))
    assert not torch.equal(batch, crops(6))
    assert not torch.equal(batch, SynthCrops(4, 2, 3, 2)(5))
    # Two workers take the batches of one worker in turn.
    assert torch.equal(crops(2, 1, 2), batch)


def test_crops_may_be_longer_than_pieces_usually_are() -> None:
    assert SynthCrops(80, 1, 1)(0).shape == (1, 2, 80 * SAMPLES_PER_FRAME)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A ramp, which tells where a crop is from; mono at another rate; one shorter than a crop; no audio."""
    ramp = np.linspace(0, 1, 10 * SAMPLE_RATE, dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", np.stack([ramp, -ramp], 1), SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.flac", np.full(48_000, 0.25, np.float32), 24_000)
    soundfile.write(tmp_path / "short.wav", np.full((100, 2), 0.5, np.float32), SAMPLE_RATE, subtype="FLOAT")
    (tmp_path / "broken.mp3").write_bytes(b"nothing")
    return sorted(str(path) for path in tmp_path.iterdir())


def test_crops_of_files(files: list[str], caplog: pytest.LogCaptureFixture) -> None:
    crops = AudioCrops(files, 3, batch_size=24, seed=4)
    with caplog.at_level(logging.WARNING):
        batch = crops(0)
        crops(1)
    assert batch.shape == (24, 2, 3 * SAMPLES_PER_FRAME)
    assert torch.equal(batch, AudioCrops(files[::-1], 3, 24, 4)(0))

    assert sum("broken.mp3" in record.message for record in caplog.records) == 2  # Told once by each of the two.
    starts = set()
    kinds = {"ramp": 0, "mono": 0, "short": 0}
    for left, right in batch.numpy():
        if right[100] < 0 or left[0] < 0:
            kinds["ramp"] += 1
            step = left[1000:1100] - left[999:1099]
            np.testing.assert_allclose(step, 1 / (10 * SAMPLE_RATE - 1), atol=2e-7)
            np.testing.assert_array_equal(right, -left)
            starts.add(float(left[0]))
        elif not left[200:].any():
            kinds["short"] += 1
            assert (left[:100] == 0.5).all()
        else:
            kinds["mono"] += 1
            np.testing.assert_allclose(left[1000:-1000], 0.25, atol=1e-3)
            np.testing.assert_array_equal(left, right)
    assert min(kinds.values()) > 0, kinds
    assert len(starts) == kinds["ramp"]


def test_nothing_but_broken_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.mp3").write_bytes(b"nothing")
    with pytest.raises(OSError, match="in a row cannot be read"):
        AudioCrops([str(tmp_path / "broken.mp3")], 3)(0)
    with pytest.raises(ValueError, match="no audio files"):
        AudioCrops([], 3)
