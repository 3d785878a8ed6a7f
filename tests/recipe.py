"""Weights that are a function of their name and shape, as the golden vectors were made with."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

KEYS = Path(__file__).parent / "golden_data" / "state_dict_keys"


def recipe_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The recipe's tensor for a name in the published checkpoint."""
    seed = zlib.crc32(name.encode())
    z = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("weight_g"):
        z = np.float32(1.3) * z
    elif len(shape) >= 2:
        z = (z / np.sqrt(np.prod(shape[1:], dtype=np.float64))).astype(np.float32)
    elif name.rsplit(".", 1)[-1] in ("weight", "gamma"):
        z = np.float32(1) + np.float32(0.1) * z
    else:
        z = np.float32(0.02) * z
    return torch.from_numpy(np.ascontiguousarray(z))


def published_shapes(part: str) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a published part (`ace_step_transformer`, `music_dcae_f8c8`, `music_vocoder`)."""
    return {name: tuple(shape) for name, shape in json.loads((KEYS / f"{part}.json").read_text())["tensors"].items()}


def published_config(part: str) -> dict:
    """The `config.json` of a published part."""
    return json.loads((KEYS / f"{part}.json").read_text())["config"]


def fill_by_recipe(module: nn.Module, prefix: str = "") -> None:
    """Give every parameter the recipe's value for its own name; computed buffers keep theirs."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(recipe_tensor(prefix + name, tuple(parameter.shape)))
