"""Layers of the mel autoencoder: residual convolutions, multi-scale linear attention, and sampling with shortcuts.

All of them take and give `[B, channels, height, width]`: mel bins high and mel frames wide, at the stage's scale.
`reach(after)` is how many frames of input beyond an end the `after` frames of output beyond it depend on, but for the
attention's sum over everything.
"""

from __future__ import annotations

from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep.models.linear import Linear
from acestep.models.windows import in_windows, reach_before, reach_of, windows

NORM_EPS = 1e-5
ATTENTION_EPS = 1e-15


def average_channels(x: Tensor, channels: int) -> Tensor:
    """Fewer channels, each the mean of a run of neighbours: the shortcut around a narrowing convolution."""
    return x.unflatten(1, (channels, -1)).mean(dim=2)


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """More channels, each repeated next to itself: the shortcut around a widening convolution."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


class ChannelRMSNorm(nn.Module):
    """RMS norm over the channels, with weight and bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # A norm summed in float32 never holds the squares, which at full resolution would be the largest tensor.
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(length.square() / x.shape[1] + NORM_EPS)
        normed = (x * scale).to(x.dtype)
        return torch.addcmul(self.bias.view(-1, 1, 1), normed, self.weight.view(-1, 1, 1))


class ResBlock(nn.Module):
    """Two 3x3 convolutions and a norm, around which the input is added."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = ChannelRMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(F.silu(self.conv1(x), inplace=True))).add_(x)

    def reach(self, after: int) -> int:
        return reach_of(self.conv1, reach_of(self.conv2, after))


class MultiscaleProjection(nn.Module):
    """Queries, keys and values seen through a wider window: depthwise k x k, then 1x1 within each head."""

    def __init__(self, channels: int, num_heads: int, kernel_size: int):
        super().__init__()
        padding = kernel_size // 2
        self.proj_in = nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=3 * num_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(x))


class MultiscaleLinearAttention(nn.Module):
    """ReLU linear attention over all positions, at one or more scales side by side.

    It is global: what one position gives depends on the whole length of the song.
    """

    def __init__(self, channels: int, head_dim: int, kernel_sizes: list[int]):
        super().__init__()
        self.head_dim = head_dim
        num_heads = channels // head_dim
        inner = num_heads * head_dim
        self.to_q = Linear(channels, inner, bias=False)
        self.to_k = Linear(channels, inner, bias=False)
        self.to_v = Linear(channels, inner, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(MultiscaleProjection(3 * inner, num_heads, k) for k in kernel_sizes)
        self.to_out = Linear(inner * (1 + len(kernel_sizes)), channels, bias=False)
        self.norm_out = ChannelRMSNorm(channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend over all positions of `x`, or, where `x` is part of a song, over what the song's context holds."""
        query, key, value = self._heads(self._project(x))
        out = (_context(key, value) if context is None else context) @ query
        attended = (out[:, :, :-1] / (out[:, :, -1:] + ATTENTION_EPS)).flatten(1, 2).to(x.dtype)
        attended = attended.unflatten(-1, x.shape[-2:])
        return x + self.norm_out(self.to_out(attended.movedim(1, -1)).movedim(-1, 1))

    def context(self, x: Tensor, size: int) -> Tensor:
        """All that a song's positions need to know of each other, gathered over windows of `size` frames."""
        parts = windows(x.shape[-1], size, self.reach(0))
        return reduce(torch.add, (self._context_of(x[..., part.read], part.kept) for part in parts))

    def reach(self, after: int) -> int:
        scales = cast("list[MultiscaleProjection]", list(self.to_qkv_multiscale))
        return max((reach_of(project.proj_in, after) for project in scales), default=after)

    def _context_of(self, x: Tensor, kept: slice) -> Tensor:
        _, key, value = self._heads(self._project(x)[..., kept])
        return _context(key, value)

    def _project(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        qkv = torch.cat([self.to_q(last), self.to_k(last), self.to_v(last)], dim=-1).movedim(-1, 1)
        return torch.cat([qkv, *(project(qkv) for project in self.to_qkv_multiscale)], dim=1)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, both through ReLU, and values; float32 `[B, heads, D, positions]`."""
        # The published weights expect a head to be 3 * D *neighbouring* channels of [all q | all k | all v].
        heads = qkv.flatten(2).unflatten(1, (-1, 3 * self.head_dim)).float()
        query, key, value = heads.chunk(3, dim=2)
        return F.relu(query), F.relu(key), value


def _context(key: Tensor, value: Tensor) -> Tensor:
    """Sums over positions, `[B, heads, D + 1, D]`: of values by key, and, in the last row, of the keys' weights."""
    return F.pad(value, (0, 0, 0, 1), value=1.0) @ key.transpose(-1, -2)


class GLUMBConv(nn.Module):
    """Inverted bottleneck with a gate: 1x1 out, depthwise 3x3, gate, 1x1 back, norm; the input is added."""

    def __init__(self, channels: int, expansion: int = 4):
        super().__init__()
        hidden = expansion * channels
        self.conv_inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = ChannelRMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        content, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.conv_point(content * F.silu(gate)))

    def reach(self, after: int) -> int:
        return reach_of(self.conv_inverted, reach_of(self.conv_depth, reach_of(self.conv_point, after)))


class EfficientViTBlock(nn.Module):
    """Global linear attention, then a gated convolution."""

    def __init__(self, channels: int, head_dim: int, kernel_sizes: list[int]):
        super().__init__()
        self.attn = MultiscaleLinearAttention(channels, head_dim, kernel_sizes)
        self.conv_out = GLUMBConv(channels)

    def forward(self, x: Tensor, size: int | None = None) -> Tensor:
        """All at once, or in windows of `size` frames, once for the attention's context and once for the rest."""
        if size is None or size >= x.shape[-1]:
            return self.conv_out(self.attn(x))
        context = self.attn.context(x, size)
        reach = self.attn.reach(self.conv_out.reach(0))
        return in_windows(lambda part: self.conv_out(self.attn(part, context)), x, size, reach)


class Downsample(nn.Module):
    """Half the size both ways: a strided convolution, plus the input folded into channels and averaged."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + average_channels(F.pixel_unshuffle(x, 2), self.conv.out_channels)


class Upsample(nn.Module):
    """Twice the size both ways: nearest neighbour and a convolution, plus the input's channels unfolded."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return wide + F.pixel_shuffle(repeat_channels(x, 4 * self.conv.out_channels), 2)

    def reach(self, after: int) -> int:
        return reach_before(reach_of(self.conv, after), 2)
