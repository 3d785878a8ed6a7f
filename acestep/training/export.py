"""Trained weights as a checkpoint: a folder in the published layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acestep.checkpoint import FOLDERS, Checkpoint, Part
from acestep.loading import build_network
from acestep.weight_files import STEMS
from acestep.weights import tied_names


def write_checkpoint(
    source: Checkpoint,
    folder: Path,
    parts: Mapping[Part, Mapping[str, Tensor]],
    dtype: torch.dtype | None = None,
    configs: Mapping[Part, Mapping[str, Any]] | None = None,
) -> Path:
    """A copy of a checkpoint in which some parts have other weights.

    Args:
        parts: tensors by the names of the part's network; what is missing is an error.
        dtype: that the other weights are stored in; None: as they are.
        configs: keys to change in the `config.json` of parts.

    Raises:
        ValueError: if weights do not fit the part's network, naming what.
    """
    for name, path in source.files().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not any(name.startswith(f"{FOLDERS[part]}/") and path.suffix != ".json" for part in parts):
            shutil.copyfile(path, target)
    for part, changes in (configs or {}).items():
        _write_json(folder / FOLDERS[part] / "config.json", source.config(part) | dict(changes))
    for part, tensors in parts.items():
        write_part(folder, part, source.config(part) | dict((configs or {}).get(part, {})), tensors, dtype)
    return folder


def write_part(
    folder: Path, part: Part, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """The config and the weights of one part, under their published names.

    Raises:
        ValueError: as `write_checkpoint`.
    """
    kept = _complete(part, build_network(part, dict(config)).weights_of, tensors)
    if part == "vocoder":
        kept = _with_weight_norm(kept)
    place = folder / FOLDERS[part]
    place.mkdir(parents=True, exist_ok=True)
    _write_json(place / "config.json", config)
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in kept.items()}
    save_file(stored, place / f"{STEMS[part == 'text_encoder']}.safetensors", metadata={"format": "pt"})


def _complete(part: Part, module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network, tied ones once, under the first of their names."""
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    kept = {}
    for group in tied_names(module):
        name = next((name for name in group if name in tensors), None)
        if name is None or tensors[name].shape != shapes[name]:
            found = "is missing" if name is None else f"is {list(tensors[name].shape)}"
            raise ValueError(f"{group[0]} of the {part} {found}, the network has {list(shapes[group[0]])}")
        kept[group[0]] = tensors[name]
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ValueError(f"the {part} has no {', '.join(unknown[:5])} ({len(unknown)} such names)")
    return kept


def _with_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's convolutions as magnitudes and directions, which the published file has."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("head.") and name.endswith(".weight"):
            dims = tuple(range(1, tensor.ndim))
            stored[f"{name}_g"] = torch.linalg.vector_norm(tensor.float(), dim=dims, keepdim=True)
            stored[f"{name}_v"] = tensor
        else:
            stored[name] = tensor
    return stored


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), indent=1) + "\n")
