"""What a row names outside the manifest: adapters, and the songs that sources are. Checked once a process and plan.

An adapter is opened and hashed, for its content is part of a song's fingerprint. Of a source only the header is read,
wherever it lies.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from acestep.download import without_credentials
from acestep.errors import CheckpointError
from acestep.frames import LATENT_CHANNELS, LATENT_HEIGHT, LATENTS_KEY
from acestep.lora_files import LoraFiles

LONGEST_SOURCE = 240.0
"""Seconds."""

_BLOCK = 64 << 10
_THREADS = 16
_LARGEST_HEADER = 1 << 20
_CACHED = 1 << 16


def forget() -> None:
    """Look anew: what lies behind a name may have changed since the last plan."""
    adapter.cache_clear()
    source_problem.cache_clear()


@lru_cache(maxsize=_CACHED)
def adapter(lora: str) -> tuple[str, str]:
    """The hash of an adapter's content, or an empty one and why it cannot be read."""
    try:
        return LoraFiles.open(lora, name=lora).fingerprint(), ""
    except (CheckpointError, OSError, ValueError) as error:  # The latter two for names that no file can have.
        return "", str(error)


@lru_cache(maxsize=_CACHED)
def source_problem(address: str) -> str:
    """Why audio or latents at a path or URL cannot be a source; empty when they can."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        # Blocks as they are asked for: the header, and for some formats the end.
        with filesystem.open(path, "rb", block_size=_BLOCK, cache_type="bytes") as file:
            return _latents_problem(file) if address.endswith(".safetensors") else _audio_problem(file)
    except FileNotFoundError:
        return "there is no such file"
    except Exception as error:  # Whatever a store, its driver or libsndfile raise for bytes that are anything.
        return without_credentials(f"it cannot be read: {error or type(error).__name__}")


def check_sources(addresses: Iterable[str]) -> None:
    """Find the problems of many sources side by side, for `source_problem` to know."""
    wanted = list(dict.fromkeys(addresses))
    if len(wanted) > 1:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(source_problem, wanted))


def _audio_problem(file: Any) -> str:
    import soundfile

    about = soundfile.info(file)
    if about.channels > 2:
        return f"it has {about.channels} channels; 1 or 2 can be used"
    if about.frames == 0:
        return "there are no samples in it"
    if about.duration > LONGEST_SOURCE:
        return f"it has {about.duration:.1f} s; the longest source is {LONGEST_SOURCE:.0f} s"
    return ""


def _latents_problem(file: Any) -> str:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= _LARGEST_HEADER:
        return "it is not a safetensors file"
    header = json.loads(file.read(length))
    if LATENTS_KEY not in header:
        return f"the file holds no tensor {LATENTS_KEY!r}"
    shape = header[LATENTS_KEY]["shape"]
    if len(shape) != 3 or shape[:2] != [LATENT_CHANNELS, LATENT_HEIGHT] or not shape[2]:
        return f"its latents are {shape}; they must be [{LATENT_CHANNELS}, {LATENT_HEIGHT}, T]"
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    if file.seek(0, 2) != 8 + length + end:
        return "it is cut short, or longer than its header says"
    return ""
