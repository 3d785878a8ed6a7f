"""The safetensors files of a model folder, read by their headers: which there are, what they hold, whether whole.

No torch here: a driver locates, sizes and fingerprints checkpoints without it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.errors import CheckpointError

STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers name the weights of a folder."""

_MAX_HEADER_BYTES = 100_000_000  # The format's own limit.


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as a file's header describes it."""

    dtype: str
    """As safetensors writes it: F32, BF16, ..."""
    shape: tuple[int, ...]
    file: Path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: if it cannot be read or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object; fetch it again")
    return value


def index_file(folder: Path) -> Path | None:
    """The index of a sharded model folder; None where the weights are one file."""
    for stem in STEMS:
        if (folder / f"{stem}.safetensors").is_file():
            return None
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return index
    return None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder: the one file, or the shards that the index names.

    Raises:
        CheckpointError: if there are none, or a shard is missing.
    """
    for stem in STEMS:
        if (single := folder / f"{stem}.safetensors").is_file():
            return [single]
    if index := index_file(folder):
        return _shards(index)
    # A variant such as `model.fp16.safetensors`, if there is no doubt which.
    variants = sorted({path for stem in STEMS for path in folder.glob(f"{stem}.*.safetensors")})
    if len(variants) == 1:
        return variants
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    raise CheckpointError(
        f"no weights in {folder}: looked for {' or '.join(f'{stem}.safetensors' for stem in STEMS)}, or shards with "
        f"their .safetensors.index.json; the folder holds {', '.join(present) or 'nothing'}"
    )


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a model folder by name, from the headers of its files.

    Raises:
        CheckpointError: if a file is missing, cut short or not safetensors.
    """
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(folder):
        for name, entry in read_header(file).items():
            tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), file)
    return tensors


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: tensor name -> dtype, shape, data_offsets.

    Raises:
        CheckpointError: if the file is shorter or longer than its header says, or not safetensors at all.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if length > _MAX_HEADER_BYTES:
                raise CheckpointError(f"{file} ({size:,} bytes) is not a safetensors file; fetch it again")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(start) < 8 or len(text) < length:
        raise CheckpointError(
            f"{file} is cut short: it has {size:,} bytes, its header alone needs {8 + length:,}; fetch it again"
        )
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file} ({size:,} bytes) is not a safetensors file; fetch it again") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        what = "is cut short" if size < expected else "is too long"
        raise CheckpointError(f"{file} {what}: it has {size:,} bytes, its header says {expected:,}; fetch it again")
    return header


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; fetch it again")
    shards = [index.parent / name for name in sorted(set(weight_map.values()))]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of the {len(shards)} files that {index.name} names: "
            f"{', '.join(missing)}; fetch them"
        )
    return shards
