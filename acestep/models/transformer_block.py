"""One block of the transformer: linear self-attention, cross-attention, gated convolution.

Everything takes an optional frame mask `[B, T, 1]` (1 on an item's own frames), so that items of different lengths
in one batch come out as they would alone. Without a mask nothing is spent on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from acestep.models.linear import Linear, linear
from acestep.models.rope import apply_rope

KeysAndValues = tuple[torch.Tensor, torch.Tensor]
"""Cross-attention keys (turned by rope) and values of one block, `[B, H, N, D]` each."""


class TransformerBlock(nn.Module):
    """Adaptive-norm block: modulation by the time embedding around attention and feed-forward, not cross-attention."""

    def __init__(self, width: int, num_heads: int, feed_forward_size: int):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.attn = LinearAttention(width, num_heads)
        self.cross_attn = CrossAttention(width, num_heads)
        self.ff = GatedConvolution(width, feed_forward_size)
        self.gradient_checkpointing = False
        """Keep only what goes in, and compute the rest again for the gradients."""

    def forward(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        keys_and_values: KeysAndValues,
        condition_mask: torch.Tensor | None,
        rope: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        query_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the block.

        Args:
            x: hidden states `[B, T, E]`.
            modulation: time modulation `[B, 6, E]`, or `[1, 6, E]` for all rows: shift, scale, gate of the attention,
                then of the feed-forward.
            keys_and_values: of the condition, from `cross_attn.keys_and_values`.
            condition_mask: True on the item's own condition tokens, `[B, N]`; None: all are.
            rope: table `[2, T, D]` for the frames.
            frame_mask: 1 on the item's own frames, `[B, T, 1]`; None: all are.
            query_scale: `[B]`, multiplies the cross-attention queries. (ERG scales those of the self-attention too,
                but there the scale cancels between numerator and denominator.)
        """
        arguments = (x, modulation, keys_and_values, condition_mask, rope, frame_mask, query_scale)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            # Inside the call, so that hooks on the block are called once.
            return checkpoint(self._compute, *arguments, use_reentrant=False, preserve_rng_state=False)
        return self._compute(*arguments)

    def _compute(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        keys_and_values: KeysAndValues,
        condition_mask: torch.Tensor | None,
        rope: torch.Tensor,
        frame_mask: torch.Tensor | None,
        query_scale: torch.Tensor | None,
    ) -> torch.Tensor:
        table = self.scale_shift_table.to(modulation.dtype) + modulation
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = table.unsqueeze(2).unbind(1)
        x = x + gate_attn * self.attn(modulate(x, shift_attn, scale_attn), rope, frame_mask)
        x = x + self.cross_attn(x, keys_and_values, condition_mask, rope, query_scale)
        return x + gate_ff * self.ff(modulate(x, shift_ff, scale_ff), frame_mask)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """RMSNorm without weights, then the affine map that the time embedding asks for."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class LinearAttention(nn.Module):
    """ReLU linear attention (SANA): cost linear in T, summed in float32.

    In bfloat16 the products take their factors as they are, which matrix units sum in float32 all the same, and round
    what they give; the original multiplies float32 copies, at a tenth of the rate.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(self, x: torch.Tensor, rope: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.to_q, self.to_k, self.to_v)
        )  # [B, T, H, D]
        query, key = F.relu(apply_rope(query, rope)), F.relu(apply_rope(key, rope))
        if x.dtype != torch.bfloat16:  # float16 has no room for sums over a song
            query, key, value = query.float(), key.float(), value.float()
        if frame_mask is not None:
            key = key * frame_mask[..., None].to(key.dtype)
        # einsum in one pass over T: memory D x D a head, whatever the length.
        memory = torch.einsum("bthd,bthe->bhde", key, value)
        total = key.sum(dim=1, dtype=torch.float32)
        normalizer = torch.einsum("bthd,bhd->bth", query.float(), total)
        attended = torch.einsum("bthd,bhde->bthe", query, memory) / (normalizer[..., None] + 1e-15)
        return self.to_out[0](attended.flatten(-2).to(x.dtype))


class CrossAttention(nn.Module):
    """Softmax attention of the frames over the condition; keys and values are computed once per request.

    The published checkpoint also holds `add_{q,k,v}_proj` and `to_add_out`, which nothing uses.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def keys_and_values(self, condition: torch.Tensor, rope: torch.Tensor) -> KeysAndValues:
        """Keys and values of a condition `[B, N, E]`; `rope` `[2, N, D]` gives the tokens' positions."""
        key = apply_rope(self.to_k(condition).unflatten(-1, (self.num_heads, -1)), rope)
        value = self.to_v(condition).unflatten(-1, (self.num_heads, -1))
        return key.transpose(1, 2), value.transpose(1, 2)

    def forward(
        self,
        x: torch.Tensor,
        keys_and_values: KeysAndValues,
        condition_mask: torch.Tensor | None,
        rope: torch.Tensor,
        query_scale: torch.Tensor | None,
    ) -> torch.Tensor:
        query = self.to_q(x).unflatten(-1, (self.num_heads, -1))
        if query_scale is not None:
            query = query * query_scale[:, None, None, None].to(query.dtype)
        query = apply_rope(query, rope).transpose(1, 2)
        mask = None if condition_mask is None else condition_mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, *keys_and_values, attn_mask=mask)
        return self.to_out[0](attended.transpose(1, 2).flatten(-2))


class GatedConvolution(nn.Module):
    """Feed-forward with a depthwise convolution over time and a SiLU gate (SANA's Mix-FFN)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.inverted_conv = Convolution(width, 2 * hidden, 1)
        self.depth_conv = Convolution(2 * hidden, 2 * hidden, 3, groups=2 * hidden)
        self.point_conv = Convolution(hidden, width, 1, bias=False)

    def forward(self, x: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        x = F.silu(self.inverted_conv.as_linear(x))
        if frame_mask is not None:  # The convolution must see the same zeros behind an item's end as it would alone.
            x = x * frame_mask.to(x.dtype)
        x, gate = self.depth_conv.depthwise(x).chunk(2, dim=-1)
        return self.point_conv.as_linear(x * F.silu(gate))


class Convolution(nn.Module):
    """Conv1d on `[B, T, E]`, under the parameter names of the checkpoint."""

    def __init__(self, width_in: int, width_out: int, kernel: int, groups: int = 1, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv1d(width_in, width_out, kernel, padding=kernel // 2, groups=groups, bias=bias)

    def depthwise(self, x: torch.Tensor) -> torch.Tensor:
        """Each channel by itself, with a kernel of three."""
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        if torch.compiler.is_compiling():  # As a sum it becomes one with what is around it.
            before, at, after = weight[:, 0].unbind(-1)
            padded = F.pad(x, (0, 0, 1, 1))
            return padded[:, :-2] * before + x * at + padded[:, 2:] * after + bias
        # Over an image one pixel wide, channels last: as `x` lies. Along [B, E, T] it would have to be turned twice.
        image = x.unsqueeze(2).permute(0, 3, 1, 2)
        image = F.conv2d(image, weight[..., None], bias, padding=(1, 0), groups=len(weight))
        return image[..., 0].permute(0, 2, 1)

    def as_linear(self, x: torch.Tensor) -> torch.Tensor:
        """A kernel of one is a linear layer, and faster as one."""
        return linear(x, self.conv.weight[..., 0], self.conv.bias)
