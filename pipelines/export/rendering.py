"""What becomes of one song: its file as it is, or new files from its latents or its lossless file.

`fetch` runs in threads, `Renderer` in processes of their own.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import soundfile as sf

from acestep.audio import encode_audio
from acestep.errors import ACEStepError
from acestep.loudness import Loudness, integrated_loudness, normalize
from acestep.request import GenerationRequest
from acestep.result import GenerationResult, ModelInfo
from pipelines.errors import UnusableInputError
from pipelines.export.decoding import Decoder
from pipelines.export.options import ExportOptions
from pipelines.export.planning import OPUS_HZ, from_latents
from pipelines.storage import Storage

COLUMNS = [
    *(
        "id",
        "fingerprint",
        "version",
        "path",
        "latents",
        "format",
        "bytes",
        "sha256",
        "duration",
        "sample_rate",
        "task",
        "resampler",
    ),
    *("prompt", "seed", "model", "model_fingerprint", "dtype", "random_weights"),
]
"""What is asked of a song's row here."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class File:
    """One file of a song.

    Attributes:
        rendition: its name among several; empty for the only one.
        extension: without a dot.
    """

    rendition: str
    extension: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Song:
    """A song ready for delivery: its files, and columns of its row of which more is known now."""

    files: tuple[File, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def fetch(storage: Storage, row: Row) -> Song:
    """The catalog's own file, proven to be whole.

    Raises:
        UnusableInputError: when it is not there or not what its row says.
    """
    return Song((File("", row["format"], _read(storage, row)),))


@dataclass(frozen=True, slots=True)
class Renderer:
    """Makes the renditions of songs; sent to each worker once.

    Attributes:
        loudness: of songs decoded from latents, where the options say none: that of the catalog's files.
    """

    storage: Storage
    options: ExportOptions
    loudness: Loudness
    decoder: Decoder | None = None

    def __call__(self, row: Row) -> Song:
        """The renditions of a song, its row's duration, sample rate and loudness made true for them.

        Raises:
            UnusableInputError: when what they are made from is not there or damaged.
        """
        try:
            waveform, rate = self._waveform(row)
            tags = tags_of(row)
            files = tuple(
                File(each.name, each.format.extension[1:], encode_audio(waveform, rate, each.format, tags))
                for each in self.options.renditions
            )
        except (OSError, UnusableInputError):
            raise
        except (ACEStepError, ValueError, sf.LibsndfileError) as error:
            raise _named(row, str(error)) from error
        opus_only = all(file.extension == "opus" for file in files)
        lufs = integrated_loudness(waveform, rate)
        facts = {
            "duration": waveform.shape[1] / rate,
            "sample_rate": OPUS_HZ if opus_only else rate,
            "lufs": lufs if math.isfinite(lufs) else None,
        }
        if len(files) == 1:
            files = (replace(files[0], rendition=""),)
        return Song(files, facts)

    def _waveform(self, row: Row) -> tuple[np.ndarray, int]:
        """Float32 `[2, W]` as loud as it is to be, and its sample rate in Hz."""
        rate = self.options.sample_rate or row["sample_rate"]
        own = (
            Loudness(mode="lufs", target_lufs=self.options.target_lufs)
            if self.options.target_lufs is not None
            else None
        )
        if from_latents(row, self.options):
            assert self.decoder is not None
            data = _get(self.storage, row, row["latents"])
            kernel = row["resampler"] if rate == row["sample_rate"] else "kaiser"
            waveform, loudness = self.decoder(data, rate, kernel), own or self.loudness
        else:
            samples, file_hz = sf.read(io.BytesIO(_read(self.storage, row)), dtype="float32", always_2d=True)
            waveform, loudness = np.ascontiguousarray(samples.T), own or Loudness()
            if file_hz != rate:
                waveform = _resampled(waveform, file_hz, rate)
        return normalize(waveform, rate, **loudness.model_dump()), rate


def tags_of(row: Row) -> dict[str, str]:
    """What the files say of themselves: what the catalog's own file said."""
    request = GenerationRequest.model_construct(id=row["id"], prompt=row["prompt"] or "", seed=row["seed"] or 0)
    model = ModelInfo(
        row["model"] or "", row["model_fingerprint"] or "", row["dtype"] or "", bool(row["random_weights"])
    )
    nothing: Any = None
    result = GenerationResult(request=request, waveform=nothing, sample_rate=0, latents=nothing, model=model)
    tags = result.tags()
    comment = json.loads(tags["comment"]) | {"fingerprint": row["fingerprint"], "version": row["version"]}
    return tags | {"comment": json.dumps(comment, ensure_ascii=True)}


_renderer: Renderer | None = None
"""Of this worker process."""


def start_worker(renderer: Renderer) -> None:
    """Make this process a worker; it ends with the one that started it, however that ends."""
    global _renderer
    _renderer = renderer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def render(row: Row) -> Song:
    """A song, in a worker."""
    assert _renderer is not None
    return _renderer(row)


def _resampled(waveform: np.ndarray, orig_hz: int, new_hz: int) -> np.ndarray:
    import torch

    from acestep.resample import resample

    torch.set_num_threads(1)
    return resample(torch.from_numpy(waveform), orig_hz, new_hz).numpy()


def _read(storage: Storage, row: Row) -> bytes:
    data = _get(storage, row, row["path"])
    if row["sha256"] and hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise _named(row, f"{row['path']} is damaged: its sha256 is not the one in its row")
    return data


def _get(storage: Storage, row: Row, key: str) -> bytes:
    try:
        return storage.get(key)
    except FileNotFoundError:
        raise _named(row, f"{key} is not there") from None


def _named(row: Row, message: str) -> UnusableInputError:
    return UnusableInputError(f"song {row['id']!r} cannot be exported: {message}")
