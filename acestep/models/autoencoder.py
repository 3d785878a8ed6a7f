"""`MusicAutoencoder`: log-mel spectrogram to latents and back (a deep-compression autoencoder, f8c8).

Leaves out the scaling of mel and latents: that is `acestep.codec`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from acestep.models.autoencoder_layers import (
    ChannelRMSNorm,
    Downsample,
    EfficientViTBlock,
    ResBlock,
    Upsample,
    average_channels,
    repeat_channels,
)
from acestep.models.config import read_config
from acestep.models.windows import in_windows, reach_of


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """The sizes, under their published names; stages are listed from full resolution to deepest."""

    in_channels: int
    latent_channels: int
    attention_head_dim: int
    encoder_block_types: Sequence[str] | str
    decoder_block_types: Sequence[str] | str
    encoder_block_out_channels: Sequence[int]
    decoder_block_out_channels: Sequence[int]
    encoder_layers_per_block: Sequence[int]
    decoder_layers_per_block: Sequence[int]
    encoder_qkv_multiscales: Sequence[Sequence[int]]
    decoder_qkv_multiscales: Sequence[Sequence[int]]
    upsample_block_type: str
    downsample_block_type: str
    decoder_norm_types: Sequence[str] | str
    decoder_act_fns: Sequence[str] | str

    def __post_init__(self) -> None:
        _only("decoder_norm_types", self.decoder_norm_types, "rms_norm")
        _only("decoder_act_fns", self.decoder_act_fns, "silu")
        _only("upsample_block_type", self.upsample_block_type, "interpolate")
        _only("downsample_block_type", self.downsample_block_type, "conv")
        if len(self.encoder_block_out_channels) != len(self.decoder_block_out_channels):
            raise ValueError(
                f"the encoder has {len(self.encoder_block_out_channels)} stages, "
                f"the decoder {len(self.decoder_block_out_channels)}: they must be as many"
            )

    @property
    def compression(self) -> int:
        """Mel frames in a latent frame, and mel bins in a latent bin."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)


@dataclass(frozen=True, slots=True)
class Stage:
    """One resolution of the encoder or decoder."""

    block_type: str
    channels: int
    num_layers: int
    kernel_sizes: list[int]

    def blocks(self, head_dim: int) -> list[nn.Module]:
        """The stage's blocks, without the change of resolution."""
        if self.block_type == "ResBlock":
            return [ResBlock(self.channels) for _ in range(self.num_layers)]
        if self.block_type == "EfficientViTBlock":
            if self.channels < head_dim:
                raise ValueError(f"{self.channels} channels are too few for attention heads of {head_dim}")
            return [EfficientViTBlock(self.channels, head_dim, self.kernel_sizes) for _ in range(self.num_layers)]
        raise ValueError(f"unknown block type {self.block_type!r}; known: ResBlock, EfficientViTBlock")


class MusicAutoencoder(nn.Module):
    """Mel `[B, 2, M, 8T]` to latents `[B, C, M / 8, T]` and back; parameters are named as published."""

    UNUSED_TENSORS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MusicAutoencoder:
        """Build from the keys of a published `config.json`; keys it does not know are ignored."""
        return cls(read_config(AutoencoderConfig, config))

    def encode(self, mel: Tensor) -> Tensor:
        """Scaled log-mel, its frames a multiple of `compression`, to latents."""
        return self.encoder(mel)

    def decode(self, latents: Tensor, chunk_frames: int | None = None) -> Tensor:
        """Latents to scaled log-mel. Its attention is global: an item's decode depends on its length.

        With `chunk_frames` no more latent frames than these (and the few around them) are computed at once, at all
        but the latents' own resolution; the result is the same up to rounding.
        """
        return self.decoder(latents, chunk_frames)


class Encoder(nn.Module):
    """Full resolution down to the latents, whose shortcut averages the last channels."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        stages = _stages(
            config.encoder_block_types,
            config.encoder_block_out_channels,
            config.encoder_layers_per_block,
            config.encoder_qkv_multiscales,
        )
        self.conv_in = nn.Conv2d(config.in_channels, stages[0].channels, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for index, stage in enumerate(stages):
            blocks = stage.blocks(config.attention_head_dim)
            if index < len(stages) - 1:
                blocks.append(Downsample(stage.channels, stages[index + 1].channels))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.conv_out = nn.Conv2d(stages[-1].channels, config.latent_channels, 3, padding=1)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_in(mel)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(x) + average_channels(x, self.conv_out.out_channels)


class Decoder(nn.Module):
    """The latents up to full resolution; `up_blocks` are listed by resolution, so they run from last to first."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        stages = _stages(
            config.decoder_block_types,
            config.decoder_block_out_channels,
            config.decoder_layers_per_block,
            config.decoder_qkv_multiscales,
        )
        self.conv_in = nn.Conv2d(config.latent_channels, stages[-1].channels, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        for index, stage in enumerate(stages):
            blocks = stage.blocks(config.attention_head_dim)
            if index < len(stages) - 1:
                blocks.insert(0, Upsample(stages[index + 1].channels, stage.channels))
            self.up_blocks.append(nn.Sequential(*blocks))
        self.norm_out = ChannelRMSNorm(stages[0].channels)
        self.conv_out = nn.Conv2d(stages[0].channels, config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor, chunk_frames: int | None = None) -> Tensor:
        x = self.conv_in(latents) + repeat_channels(latents, self.conv_in.out_channels)
        layers = [layer for block in reversed(self.up_blocks) for layer in block.children()]
        num_global = max((i + 1 for i, layer in enumerate(layers) if isinstance(layer, EfficientViTBlock)), default=0)
        for layer in layers[:num_global]:
            x = layer(x, chunk_frames) if isinstance(layer, EfficientViTBlock) else layer(x)
        local = layers[num_global:]
        return in_windows(lambda part: self._finish(part, local), x, chunk_frames, self._reach(local))

    def _finish(self, x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        for layer in layers:
            x = layer(x)
        return self.conv_out(F.relu(self.norm_out(x)))

    def _reach(self, layers: Sequence[nn.Module]) -> int:
        """Frames to either side of a frame of the layers' input that its mel frames depend on."""
        reach = reach_of(self.conv_out)
        for layer in reversed(layers):
            assert isinstance(layer, ResBlock | Upsample)
            reach = layer.reach(reach)
        return reach


def _stages(
    block_types: Sequence[str] | str,
    channels: Sequence[int],
    layers: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
) -> list[Stage]:
    types = [block_types] * len(channels) if isinstance(block_types, str) else list(block_types)
    lengths = (len(types), len(channels), len(layers), len(kernel_sizes))
    if len(set(lengths)) > 1 or min(layers, default=0) < 1:
        raise ValueError(
            "block types, channels, layers (each at least 1) and multiscales must list the same stages, "
            f"not {lengths[0]}, {lengths[1]}, {lengths[2]} ({list(layers)}) and {lengths[3]}"
        )
    return [
        Stage(kind, width, depth, list(kernels))
        for kind, width, depth, kernels in zip(types, channels, layers, kernel_sizes, strict=True)
    ]


def _only(name: str, value: Sequence[str] | str, known: str) -> None:
    values = {value} if isinstance(value, str) else set(value)
    if {item.lower() for item in values} != {known}:
        raise ValueError(f"{name} is {value!r}; only {known!r} is known")
