"""`Vocoder`: log-mel spectrogram to waveform, one channel at a time (ConvNeXt backbone, HiFi-GAN head).

Its convolutions hold plain weights: fold a published state dict with `acestep.models.weight_norm` before loading it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep.models.config import read_config
from acestep.models.linear import Linear
from acestep.models.windows import reach_of

STEM_KERNEL = 7
LAYER_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class VocoderConfig:
    """The sizes, under their published names."""

    input_channels: int
    depths: Sequence[int]
    dims: Sequence[int]
    kernel_sizes: Sequence[int]
    upsample_rates: Sequence[int]
    upsample_kernel_sizes: Sequence[int]
    resblock_kernel_sizes: Sequence[int]
    resblock_dilation_sizes: Sequence[Sequence[int]]
    num_mels: int
    upsample_initial_channel: int
    use_template: bool
    pre_conv_kernel_size: int
    post_conv_kernel_size: int
    hop_length: int

    def __post_init__(self) -> None:
        if self.use_template:
            raise ValueError("use_template is True; a vocoder with a template signal is not known")
        if len(self.kernel_sizes) != 1:
            raise ValueError(f"kernel_sizes is {list(self.kernel_sizes)}; only one size is known")
        if self.num_mels != self.dims[-1]:
            raise ValueError(f"the head takes num_mels {self.num_mels}, the backbone gives {self.dims[-1]}")
        if math.prod(self.upsample_rates) != self.hop_length:
            raise ValueError(f"upsample_rates make {math.prod(self.upsample_rates)}, hop_length is {self.hop_length}")


class Vocoder(nn.Module):
    """Log-mel `[B, M, 8T]` to waveform `[B, 1, 8T * hop_length]` in -1..1: a channel at a time, of any length."""

    UNUSED_TENSORS: ClassVar[tuple[str, ...]] = (r"mel_transform\.",)
    """What the published file has besides: window and filters, which `acestep.models.mel` computes."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = Head(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Vocoder:
        """Build from the keys of a published `config.json`; keys it does not know are ignored."""
        return cls(read_config(VocoderConfig, config))

    def forward(self, mel: Tensor) -> Tensor:
        return self.head(self.backbone(mel))

    @property
    def reach(self) -> int:
        """Mel frames to either side that a mel frame's samples depend on."""
        return self.backbone.reach(self.head.reach(0))


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of `[B, C, frames]`."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, and a feed-forward per frame, scaled and added to the input."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.dwconv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = Linear(channels, 4 * channels)
        self.pwconv2 = Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.transpose(1, 2)


class Backbone(nn.Module):
    """ConvNeXt stages of growing width, all at the frame rate of the mel."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        dims, padding = config.dims, STEM_KERNEL // 2
        stem = nn.Conv1d(config.input_channels, dims[0], STEM_KERNEL, padding=padding, padding_mode="replicate")
        self.channel_layers = nn.ModuleList([nn.Sequential(stem, ChannelLayerNorm(dims[0]))])
        for narrow, wide in pairwise(dims):
            self.channel_layers.append(nn.Sequential(ChannelLayerNorm(narrow), nn.Conv1d(narrow, wide, 1)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(width, config.kernel_sizes[0]) for _ in range(depth)))
            for width, depth in zip(dims, config.depths, strict=True)
        )
        self.norm = ChannelLayerNorm(dims[-1])

    def forward(self, mel: Tensor) -> Tensor:
        x = mel
        for widen, stage in zip(self.channel_layers, self.stages, strict=True):
            x = stage(widen(x))
        return self.norm(x)

    def reach(self, after: int) -> int:
        """Frames of input beyond an end that the `after` frames of output beyond it depend on."""
        return _reach_of_all(self, after)


class ResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair added to its input."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]):
        super().__init__()
        self.convs1 = nn.ModuleList(_same_conv(channels, channels, kernel_size, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_same_conv(channels, channels, kernel_size) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = plain(F.silu(dilated(F.silu(x)), inplace=True)).add_(x)
        return x

    def reach(self, after: int) -> int:
        """Frames of input beyond an end that the `after` frames of output beyond it depend on."""
        return _reach_of_all(self, after)


class Head(nn.Module):
    """HiFi-GAN: transposed convolutions up to the sample rate, each followed by the mean of parallel blocks."""

    def __init__(self, config: VocoderConfig):
        super().__init__()
        width = config.upsample_initial_channel
        kernels = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        self.num_kernels = len(kernels)
        self.conv_pre = _same_conv(config.num_mels, width, config.pre_conv_kernel_size)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, stride=rate, padding=padding))
            width //= 2
            self.resblocks.extend(ResBlock(width, size, dilations) for size, dilations in kernels)
        self.conv_post = _same_conv(width, 1, config.post_conv_kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for index, up in enumerate(self.ups):
            x = _mean_of(self._blocks(index), up(F.silu(x)))
        return torch.tanh(self.conv_post(F.silu(x)))

    def reach(self, after: int) -> int:
        """Frames of input beyond an end that the `after` samples of output beyond it depend on."""
        after = reach_of(self.conv_post, after)
        for index, up in reversed(list(enumerate(self.ups))):
            assert isinstance(up, nn.ConvTranspose1d)
            after = reach_of(up, max(block.reach(after) for block in self._blocks(index)))
        return reach_of(self.conv_pre, after)

    def _blocks(self, index: int) -> list[ResBlock]:
        """The parallel blocks behind an upsampling."""
        first = index * self.num_kernels
        return cast("list[ResBlock]", list(self.resblocks[first : first + self.num_kernels]))


def _mean_of(blocks: Sequence[ResBlock], x: Tensor) -> Tensor:
    # Summed one by one: stacked, the outputs would be the peak of the memory.
    total = blocks[0](x)
    for block in blocks[1:]:
        total += block(x)
    return total.div_(len(blocks))


def _reach_of_all(module: nn.Module, after: int) -> int:
    """The reach of convolutions one behind the other."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d):
            after = reach_of(layer, after)
    return after


def _same_conv(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Conv1d:
    padding = dilation * (kernel_size - 1) // 2
    return nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation, padding=padding)
