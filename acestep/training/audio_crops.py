"""Batches of short pieces of sound, for the networks of the codec; each a function of the step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import fsspec
import numpy as np
import soundfile
import torch
from torch import Tensor

from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep.resample import resample
from acestep.synth import random_piece, render

logger = logging.getLogger(__name__)

_SEEDS = 1 << 30
"""Of pieces that are drawn; those of the evaluation lie above."""
_TRIES = 20
"""Files in a row that cannot be read."""
_REMEMBERED = 1 << 16


class SynthCrops:
    """Crops of pieces that the synthesiser plays for the purpose.

    Args:
        frames: latent frames of a crop, 93 ms each.
        pieces_per_batch: drawn for each batch.
        crops_per_piece: taken of each; a batch has as many as both multiplied.
        seconds: that are played of each piece.
    """

    def __init__(
        self, frames: int, pieces_per_batch: int = 4, crops_per_piece: int = 2, seed: int = 0, seconds: float = 5.0
    ):
        self._samples = frames * SAMPLES_PER_FRAME
        self._pieces, self._crops, self._seed = pieces_per_batch, crops_per_piece, seed
        self._seconds = max(seconds, self._samples / SAMPLE_RATE)

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """`[B, 2, W]` at 44.1 kHz: a worker's batch of a step."""
        rng = np.random.default_rng([self._seed, 3, step * world_size + rank])
        crops = []
        for _ in range(self._pieces):
            waveform = render(random_piece(int(rng.integers(_SEEDS))), self._seconds)
            crops += [_crop(waveform, self._samples, rng) for _ in range(self._crops)]
        return torch.from_numpy(np.stack(crops))


class AudioCrops:
    """Crops of audio files, each file as often as any other.

    A file that cannot be read is told of once, and another takes its place. What is shorter than a crop is followed by
    silence.

    Args:
        frames: latent frames of a crop, 93 ms each.
        storage_options: for fsspec, of paths with a protocol.
    """

    def __init__(
        self,
        paths: Sequence[str],
        frames: int,
        batch_size: int = 8,
        seed: int = 0,
        storage_options: Mapping[str, Any] | None = None,
    ):
        """Looks at no file yet.

        Raises:
            ValueError: for no paths at all.
        """
        if not paths:
            raise ValueError("there are no audio files to take crops of")
        self.paths = sorted(paths)
        self._samples, self._batch_size, self._seed = frames * SAMPLES_PER_FRAME, batch_size, seed
        self._storage_options = dict(storage_options or {})
        self._length: Callable[[str], tuple[int, int]] = lru_cache(maxsize=_REMEMBERED)(self._read_length)
        self._broken: set[str] = set()

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """`[B, 2, W]` at 44.1 kHz: a worker's batch of a step.

        Raises:
            OSError: when file after file cannot be read.
        """
        rng = np.random.default_rng([self._seed, 3, step * world_size + rank])
        return torch.from_numpy(np.stack([self._drawn(rng) for _ in range(self._batch_size)]))

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        for _ in range(_TRIES):
            # Both are drawn before the file is looked at: a file that is broken for a moment changes nothing else.
            path, place = self.paths[int(rng.integers(len(self.paths)))], float(rng.random())
            try:
                return self._read(path, place)
            except (OSError, ValueError, soundfile.LibsndfileError) as error:
                if path not in self._broken:
                    logger.warning("%s cannot be used: %s", path, error)
                    self._broken.add(path)
        raise OSError(f"{_TRIES} audio files in a row cannot be read, the last {path}")

    def _read(self, path: str, place: float) -> np.ndarray:
        length, rate = self._length(path)
        wanted = -(-self._samples * rate // SAMPLE_RATE)
        with self._open(path) as stream, soundfile.SoundFile(stream) as file:
            file.seek(int(place * (max(0, length - wanted) + 1)))
            samples = file.read(wanted, dtype="float32", always_2d=True)
        if not len(samples) or samples.shape[1] > 2 or not np.isfinite(samples).all():
            raise ValueError("it must be finite audio of one or two channels")
        waveform = torch.from_numpy(np.ascontiguousarray(samples.T)).expand(2, -1)
        crop = resample(waveform, rate, SAMPLE_RATE).numpy()[:, : self._samples]
        return np.pad(crop, ((0, 0), (0, self._samples - crop.shape[1])))

    def _read_length(self, path: str) -> tuple[int, int]:
        """Samples and their rate."""
        with self._open(path) as stream, soundfile.SoundFile(stream) as file:
            return file.frames, file.samplerate

    def _open(self, path: str) -> Any:
        return fsspec.open(path, "rb", **(self._storage_options if "://" in path else {}))


def _crop(waveform: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    start = int(rng.integers(waveform.shape[1] - samples + 1))
    return waveform[:, start : start + samples]
