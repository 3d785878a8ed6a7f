"""First weights of networks that are trained from nothing; where this says nothing, torch's own stand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from acestep.models.mel import LogMel
from acestep.models.transformer import ACEStepTransformer
from acestep.models.vocoder import ConvNeXtBlock, Vocoder
from acestep.synth import random_piece, render
from acestep.synth.grid import TURN, pilot
from acestep.training.vocoder import string_samples

_LAYER_SCALE = 0.3
"""What a backbone's blocks begin with. The published 1e-6 is for training that goes on for days."""

_PILOT_WEIGHT = 20.0
"""Of the pilot's bins against the others. With 12 phases are learned more slowly, with 1 not at all in 500 steps."""
_PILOT_SWELL = 0.4
"""Deviation in nats above which a bin is one of the pilot's."""


@torch.no_grad()
def initialize_transformer(transformer: ACEStepTransformer, generator: torch.Generator) -> None:
    """Draw weights so that at first the blocks hardly touch what goes through and the velocity is 0.

    As DiT (Peebles & Xie, 2022) and PixArt (Chen et al., 2023): modulation near that of the tables, cross-attention
    and the last layer from 0.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    width = transformer.config.inner_dim
    nn.init.normal_(transformer.lyric_embs.weight, std=transformer.config.lyric_hidden_size**-0.5, generator=generator)
    time, modulation = transformer.timestep_embedder, transformer.t_block[1]
    assert isinstance(modulation, nn.Linear)
    for module in (time.linear_1, time.linear_2, modulation):
        nn.init.normal_(module.weight, std=0.02, generator=generator)
    for name, parameter in transformer.named_parameters():
        if name.endswith("scale_shift_table"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
    for block in transformer.transformer_blocks:
        block.cross_attn.to_out[0].weight.zero_()  # type: ignore[union-attr,index]
    transformer.final_layer.linear.weight.zero_()
    transformer.final_layer.linear.bias.zero_()


@torch.no_grad()
def initialize_vocoder(vocoder: Vocoder, log_mel: LogMel, generator: torch.Generator) -> None:
    """Let the backbone's blocks take part from the first step, and look at the synthesiser's pilot first of all.

    What a frame sounds like is a product of its spectrum and of where in a turn it stands, as the pilot tells. Were the
    pilot's few bins as weak as the others, no single weight would be of use before others are.
    """
    for module in vocoder.modules():
        if isinstance(module, ConvNeXtBlock):
            module.gamma.fill_(_LAYER_SCALE)
    stem = vocoder.backbone.channel_layers[0][0]  # type: ignore[index]
    assert isinstance(stem, nn.Conv1d) and stem.bias is not None
    usual = log_mel(torch.from_numpy(np.concatenate([render(random_piece(seed), 6.0)[0] for seed in range(8)])))
    swells = log_mel(torch.from_numpy(pilot(8 * TURN))).std(dim=1)
    stem.weight[:, swells > _PILOT_SWELL] *= _PILOT_WEIGHT
    spread = 0.5 * torch.randn(stem.bias.shape, generator=generator)
    stem.bias.copy_(spread - stem.weight.sum(dim=2) @ usual.mean(dim=1))
    config = vocoder.config
    string_samples(vocoder.head, config.upsample_rates, config.upsample_kernel_sizes)
