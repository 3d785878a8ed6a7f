"""The networks of a checkpoint's parts: how each is built from its config, and how its files are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from acestep.checkpoint import FOLDERS, Checkpoint, Part
from acestep.errors import CheckpointError
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.transformer import ACEStepTransformer
from acestep.models.vocoder import Vocoder
from acestep.models.weight_norm import fold_weight_norm
from acestep.weights import Tensors, build_module, load_weights

_CLASSES: dict[Part, type[ACEStepTransformer | MusicAutoencoder | Vocoder | PromptEncoder]] = {
    "transformer": ACEStepTransformer,
    "autoencoder": MusicAutoencoder,
    "vocoder": Vocoder,
    "text_encoder": PromptEncoder,
}

_UMT5_DECODER = (r"decoder\.", r"lm_head\.")
"""What a file of the whole UMT5 has besides its encoder."""


@dataclass(frozen=True, slots=True)
class Network:
    """A part's network without weights, and how its files are read."""

    module: nn.Module
    weights_of: nn.Module
    """The module, or the one inside it, that the published tensor names are relative to."""
    unused: tuple[str, ...]
    transform: Callable[[Tensors], Tensors] | None = None


def build_network(part: Part, config: dict[str, Any]) -> Network:
    """The network of a part from its `config.json`, weights on the meta device.

    Raises:
        CheckpointError: if the config is not one that the network knows.
    """
    kind = _CLASSES[part]
    try:
        module = build_module(lambda: kind.from_config(config))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{FOLDERS[part]}/config.json is not one that this version knows: {error}") from error
    if isinstance(module, PromptEncoder):
        return Network(module, module.model, (*module.UNUSED_TENSORS, *_UMT5_DECODER))
    return Network(module, module, tuple(module.UNUSED_TENSORS), fold_weight_norm if part == "vocoder" else None)


def load_part(
    checkpoint: Checkpoint,
    part: Part,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The network of a part with its weights, ready to generate: in eval mode, without gradients.

    Raises:
        CheckpointError: if config or weights do not fit the network.
    """
    network = build_network(part, checkpoint.config(part))
    load_weights(
        network.weights_of,
        checkpoint.folder(part),
        unused=network.unused,
        dtype=dtype,
        device=device,
        transform=network.transform,
    )
    return network.module.eval().requires_grad_(False)
