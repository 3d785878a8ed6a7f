"""Networks of the published sizes with random weights, made where they are to compute: nothing is downloaded."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, cast

import torch
from torch import nn

from acestep.checkpoint import FOLDERS, Part
from acestep.codec import MusicCodec
from acestep.device import FLOAT8
from acestep.loading import build_network
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.float8 import to_float8
from acestep.models.mel import LogMel
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.transformer import ACEStepTransformer
from acestep.models.vocoder import Vocoder
from acestep.networks import Networks


def published_config(part: Part) -> dict[str, Any]:
    """The published `config.json` of a part, as it comes with the package."""
    return json.loads((resources.files("acestep") / "published" / f"{FOLDERS[part]}.json").read_text())


def random_part(part: Part, device: torch.device, dtype: torch.dtype, **sizes: Any) -> nn.Module:
    """A part with random weights, ready to generate; `sizes` replace those of the published config."""
    module = build_network(part, published_config(part) | sizes).module
    fill(module, device, dtype)
    return module.eval().requires_grad_(False)


def random_transformer(device: torch.device, dtype: torch.dtype, blocks: int = 24, **sizes: Any) -> ACEStepTransformer:
    """The transformer with so many blocks."""
    return cast(ACEStepTransformer, random_part("transformer", device, dtype, num_layers=blocks, **sizes))


def random_codec(device: torch.device, dtype: torch.dtype) -> MusicCodec:
    """Autoencoder and vocoder."""
    autoencoder, vocoder = (random_part(part, device, dtype) for part in ("autoencoder", "vocoder"))
    log_mel = LogMel.from_config(published_config("vocoder")).to(device)
    return MusicCodec(cast(MusicAutoencoder, autoencoder), cast(Vocoder, vocoder), log_mel)


def random_networks(
    device: torch.device, dtype: torch.dtype, blocks: int = 24, *, torch_compile: bool = False
) -> Networks:
    """All that an engine needs but its tokenizer; for float8 made in bfloat16, as checkpoints are."""
    kind = torch.bfloat16 if dtype == FLOAT8 else dtype
    prompts = cast(PromptEncoder, random_part("text_encoder", device, kind))
    transformer = random_transformer(device, kind, blocks)
    if dtype == FLOAT8:
        to_float8(transformer)
    return Networks(prompts, transformer, random_codec(device, kind), device, torch_compile=torch_compile)


def fill(module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
    """Give a network built without weights random ones that keep what flows through it at its scale."""
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:  # a tied one stays tied
                value = torch.empty(parameter.shape, device=device, dtype=dtype).normal_(generator=generator)
                made[id(parameter)] = nn.Parameter(_scaled(value, name), requires_grad=False)
            owner._parameters[name] = made[id(parameter)]
        for name, buffer in owner._buffers.items():
            owner._buffers[name] = None if buffer is None else buffer.to(device)


def _scaled(value: torch.Tensor, name: str) -> torch.Tensor:
    if value.ndim >= 2:
        return value.mul_((value.numel() / len(value)) ** -0.5)
    return value.mul_(0.1).add_(1) if name in ("weight", "gamma") else value.mul_(0.02)
