"""The lyric encoder: a small Conformer without its convolutions, as ESPnet writes it.

Dropout and streaming masks of the original are left out: they do nothing when generating.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from acestep.models.linear import Linear

WEAKENED_LAYERS = (4, 5)
"""Layers whose queries ERG scales down in the unconditional branch."""


class LyricEncoder(nn.Module):
    """Lyric embeddings `[B, L, E]` with a mask `[B, L]` -> hidden states `[B, L, E]`."""

    def __init__(self, width: int, num_layers: int, num_heads: int, feed_forward_size: int):
        super().__init__()
        self.embed = InputEmbedding(width)
        self.encoders = nn.ModuleList(
            [LyricEncoderLayer(width, num_heads, feed_forward_size) for _ in range(num_layers)]
        )
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, query_scale: torch.Tensor | None = None) -> torch.Tensor:
        """Encode; `query_scale` `[B]` multiplies the queries of `WEAKENED_LAYERS` row by row."""
        x = self.embed(x)
        positions = relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for index, layer in enumerate(self.encoders):
            x = layer(x, mask.bool(), positions, query_scale if index in WEAKENED_LAYERS else None)
        return self.after_norm(x)


class InputEmbedding(nn.Module):
    """Linear and LayerNorm, scaled up by sqrt(width) as Transformer-XL does."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = math.sqrt(width)
        self.out = nn.Sequential(Linear(width, width), nn.LayerNorm(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x) * self.scale


class LyricEncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, num_heads: int, feed_forward_size: int):
        super().__init__()
        self.self_attn = RelativeSelfAttention(width, num_heads)
        self.feed_forward = FeedForward(width, feed_forward_size)
        self.norm_mha = nn.LayerNorm(width)
        self.norm_ff = nn.LayerNorm(width)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, query_scale: torch.Tensor | None
    ) -> torch.Tensor:
        x = x + self.self_attn(self.norm_mha(x), mask, positions, query_scale)
        return x + self.feed_forward(self.norm_ff(x))


class RelativeSelfAttention(nn.Module):
    """Self-attention with relative positions (Transformer-XL, appendix B)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.linear_q = Linear(width, width)
        self.linear_k = Linear(width, width)
        self.linear_v = Linear(width, width)
        self.linear_out = Linear(width, width)
        self.linear_pos = Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(num_heads, width // num_heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(num_heads, width // num_heads))

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, query_scale: torch.Tensor | None
    ) -> torch.Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.num_heads, -1)) for linear in (self.linear_q, self.linear_k, self.linear_v)
        )  # [B, L, H, D]
        if query_scale is not None:
            query = query * query_scale[:, None, None, None].to(query.dtype)
        offsets = self.linear_pos(positions).unflatten(-1, (self.num_heads, -1))  # [2L - 1, H, D]
        by_position = torch.einsum("blhd,phd->bhlp", query + self.pos_bias_v, offsets)
        scale = 1.0 / math.sqrt(query.shape[-1])
        bias = (shift_to_relative(by_position) * scale).masked_fill(~mask[:, None, None, :], -torch.inf)
        attended = F.scaled_dot_product_attention(
            (query + self.pos_bias_u).transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias
        )
        # A row with nothing to attend to (an instrumental song) is zero in the original; a softmax over nothing is NaN.
        attended = attended.masked_fill(~mask.any(dim=1)[:, None, None, None], 0)
        return self.linear_out(attended.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w_1 = Linear(width, hidden)
        self.w_2 = Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w_2(F.silu(self.w_1(x)))


def relative_positions(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Sinusoids for offsets +(length-1) .. -(length-1): float32 `[2 * length - 1, width]`, sines on even columns."""
    offsets = torch.arange(length - 1, -length, -1, dtype=torch.float32, device=device)
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32, device=device) * -(math.log(10000.0) / width))
    angles = torch.outer(offsets, rates)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def shift_to_relative(scores: torch.Tensor) -> torch.Tensor:
    """Scores by offset `[B, H, L, 2L - 1]` -> scores by key `[B, H, L, L]`: entry (i, j) is offset i - j."""
    batch, heads, length, offsets = scores.shape
    padded = F.pad(scores, (1, 0)).view(batch, heads, offsets + 1, length)
    return padded[:, :, 1:].view(batch, heads, length, offsets)[..., :length]
