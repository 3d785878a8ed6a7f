"""Networks of the published sizes on the meta device: every tensor has its shape, none has data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import nn

from acestep import conditioning
from acestep.checkpoint import Part
from acestep.codec import MusicCodec
from acestep.device import FLOAT8
from acestep.loading import build_network
from acestep.models import float8
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.transformer import ACEStepTransformer
from acestep.models.vocoder import Vocoder
from acestep.networks import Networks
from benchmarks.counted_memory import WithoutData
from benchmarks.random_networks import published_config

META = torch.device("meta")


def meta_networks(dtype: torch.dtype, blocks: int = 24) -> Networks:
    """All that an engine needs but its tokenizer; float8 as `Networks.load` has it."""
    rest = torch.bfloat16 if dtype == FLOAT8 else dtype
    prompts, autoencoder, vocoder = (meta_part(part, rest) for part in ("text_encoder", "autoencoder", "vocoder"))
    log_mel = LogMel.from_config(published_config("vocoder"))
    codec = MusicCodec(cast(MusicAutoencoder, autoencoder), cast(Vocoder, vocoder), log_mel)
    transformer = cast(ACEStepTransformer, meta_part("transformer", rest, num_layers=blocks))
    if dtype == FLOAT8:
        with WithoutData():
            float8.to_float8(transformer)
    return Networks(cast(PromptEncoder, prompts), transformer, codec, META)


def meta_part(part: Part, dtype: torch.dtype, **sizes: Any) -> nn.Module:
    """One part; `sizes` replace those of the published config."""
    module = build_network(part, published_config(part) | sizes).module
    return module.to(device=META, dtype=dtype).eval().requires_grad_(False)


@contextmanager
def without_data() -> Iterator[None]:
    """Has songs made by networks on the meta device: of prompts and lyrics of one length, none of it padding."""

    def pack(hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return packed(hidden, torch.ones(mask.shape, dtype=torch.bool))  # which tokens are real is data

    def product(x: torch.Tensor, x_scale: Any, weight: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.empty(len(x), len(weight), dtype=torch.bfloat16, device=x.device)  # one kernel on a GPU

    packed = conditioning.pack
    with WithoutData(), patch.object(conditioning, "pack", pack), patch.object(float8, "plain_product", product):
        yield
