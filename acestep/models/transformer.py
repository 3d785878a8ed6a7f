"""The diffusion transformer of ACE-Step v1: latents, time and condition in, velocity out.

Left out: the REPA projectors and the unused cross-attention projections of the published checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from acestep.models.linear import Linear, linear
from acestep.models.lyric_encoder import LyricEncoder
from acestep.models.rope import rope_table
from acestep.models.transformer_block import KeysAndValues, TransformerBlock, modulate

WEAKENED_BLOCKS = range(15, 20)
"""Blocks whose queries ERG scales down in the unconditional branch."""

TIME_FEATURES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes, under the names of the published `config.json`; what it does not say has the published value."""

    in_channels: int = 8
    out_channels: int = 8
    max_height: int = 16
    patch_size: tuple[int, int] = (16, 1)
    inner_dim: int = 2560
    attention_head_dim: int = 128
    num_attention_heads: int = 20
    num_layers: int = 24
    mlp_ratio: float = 2.5
    rope_theta: float = 1_000_000.0
    text_embedding_dim: int = 768
    speaker_embedding_dim: int = 512
    lyric_encoder_vocab_size: int = 6693
    lyric_hidden_size: int = 1024
    lyric_encoder_num_layers: int = 6
    lyric_encoder_num_heads: int = 16
    lyric_encoder_ff_size: int = 4096
    patch_embed_size: int = 2048

    def __post_init__(self) -> None:
        if self.num_attention_heads * self.attention_head_dim != self.inner_dim:
            raise ValueError(
                f"inner_dim {self.inner_dim} is not num_attention_heads {self.num_attention_heads} "
                f"x attention_head_dim {self.attention_head_dim}"
            )
        if tuple(self.patch_size) != (self.max_height, 1):
            raise ValueError(f"patch_size {self.patch_size} must span the latent height: ({self.max_height}, 1)")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> TransformerConfig:
        """Read a `config.json`; keys that do not matter here are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in config.items() if name in known})


@dataclass(slots=True)
class Condition:
    """What the frames attend to: per block the keys and values of the condition, and which tokens are real."""

    keys_and_values: list[KeysAndValues]
    mask: torch.Tensor | None
    """`[B, N]`, True on real tokens; None: all are."""

    def rows(self, count: int) -> Condition:
        """The first `count` rows of the batch."""
        mask = None if self.mask is None else self.mask[:count]
        return Condition([(key[:count], value[:count]) for key, value in self.keys_and_values], mask)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows (their indices), in place: block by block, so that memory never holds it all twice."""
        for block, (key, value) in enumerate(self.keys_and_values):
            self.keys_and_values[block] = key[rows], value[rows]
        self.mask = None if self.mask is None else self.mask[rows]


@dataclass(frozen=True, slots=True)
class TimeCondition:
    """What points in time mean to the network, a row each: the same whatever is made, so computed once a schedule."""

    embedding: torch.Tensor
    """`[S, E]`."""
    modulation: torch.Tensor
    """`[S, 6, E]`."""

    def at(self, index: int) -> TimeCondition:
        """One point, for every row of a batch."""
        return TimeCondition(self.embedding[index : index + 1], self.modulation[index : index + 1])


class ACEStepTransformer(nn.Module):
    """Linear-attention DiT with a lyric encoder inside. Latents are `[B, 8, 16, T]`, one token a frame."""

    UNUSED_TENSORS = (r"projectors\.", r"transformer_blocks\.\d+\.cross_attn\.(add_[qkv]_proj|to_add_out)\.")

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.inner_dim
        self.proj_in = PatchEmbedding(config)
        self.timestep_embedder = TimeEmbedding(width)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))
        self.speaker_embedder = Linear(config.speaker_embedding_dim, width)
        self.genre_embedder = Linear(config.text_embedding_dim, width)
        self.lyric_embs = nn.Embedding(config.lyric_encoder_vocab_size, config.lyric_hidden_size)
        self.lyric_encoder = LyricEncoder(
            config.lyric_hidden_size,
            config.lyric_encoder_num_layers,
            config.lyric_encoder_num_heads,
            config.lyric_encoder_ff_size,
        )
        self.lyric_proj = Linear(config.lyric_hidden_size, width)
        self.transformer_blocks = nn.ModuleList(
            [
                TransformerBlock(width, config.num_attention_heads, int(config.mlp_ratio * width))
                for _ in range(config.num_layers)
            ]
        )
        self.final_layer = FinalLayer(config)
        self._ropes: dict[torch.device, torch.Tensor] = {}
        """By device, as long as any that was asked for."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ACEStepTransformer:
        """Build from a `config.json`, weights not loaded.

        Raises:
            ValueError: for sizes that do not fit together.
        """
        return cls(TransformerConfig.from_dict(config))

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training keeps only what goes into each block and computes the rest again: less memory, slower."""
        return any(cast("TransformerBlock", block).gradient_checkpointing for block in self.transformer_blocks)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for block in self.transformer_blocks:
            cast("TransformerBlock", block).gradient_checkpointing = on

    def encode(
        self,
        text: torch.Tensor,
        text_mask: torch.Tensor,
        lyric_ids: torch.Tensor,
        lyric_mask: torch.Tensor,
        speaker: torch.Tensor | None = None,
        lyric_query_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The condition sequence [speaker | text | lyrics].

        Args:
            text: prompt hidden states `[B, S, text_embedding_dim]` with mask `[B, S]`.
            lyric_ids: `[B, L]` with mask `[B, L]`.
            speaker: `[B, speaker_embedding_dim]`; None: zeros, which is all the published weights know.
            lyric_query_scale: `[B]`, ERG's scale of the lyric encoder's queries.

        Returns:
            Hidden states `[B, 1 + S + L, E]` and mask `[B, 1 + S + L]` (bool).
        """
        if speaker is None:
            speaker = text.new_zeros(text.shape[0], self.config.speaker_embedding_dim)
        lyrics = self.lyric_encoder(self.lyric_embs(lyric_ids), lyric_mask, lyric_query_scale)
        hidden = [self.speaker_embedder(speaker)[:, None], self.genre_embedder(text), self.lyric_proj(lyrics)]
        mask = [text_mask.new_ones(text.shape[0], 1).bool(), text_mask.bool(), lyric_mask.bool()]
        return torch.cat(hidden, dim=1), torch.cat(mask, dim=1)

    def condition(self, hidden: torch.Tensor, mask: torch.Tensor) -> Condition:
        """Keys and values of every block for a condition sequence; they do not depend on the time step."""
        rope = self._rope(hidden.shape[1], hidden.device)
        blocks = cast("list[TransformerBlock]", self.transformer_blocks)
        keys_and_values = [block.cross_attn.keys_and_values(hidden, rope) for block in blocks]
        return Condition(keys_and_values, None if bool(mask.all()) else mask)

    def embed_time(self, timesteps: torch.Tensor) -> TimeCondition:
        """Of points `[S]` in 0..1000."""
        embedding = self.timestep_embedder(timesteps, self.final_layer.linear.weight.dtype)
        return TimeCondition(embedding, self.t_block(embedding).unflatten(-1, (6, -1)))

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor | TimeCondition,
        condition: Condition,
        frame_mask: torch.Tensor | None = None,
        query_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The velocity at `latents`.

        Args:
            latents: `[B, 8, 16, T]`, zero behind an item's end.
            timestep: in 0..1000, `[B]`, or `[1]` for all rows; or what `embed_time` makes of it.
            condition: from `condition()`.
            frame_mask: `[B, T]`, 1 on an item's own frames; None: all are.
            query_scale: `[B]`, scales the queries of `WEAKENED_BLOCKS` row by row (ERG).

        Returns:
            `[B, 8, 16, T]`, zero behind an item's end.
        """
        mask = None if frame_mask is None else frame_mask[..., None].to(latents.dtype)
        x = self.proj_in(latents, mask)
        rope = self._rope(x.shape[1], x.device)
        time = timestep if isinstance(timestep, TimeCondition) else self.embed_time(timestep)
        for index, block in enumerate(self.transformer_blocks):
            scale = query_scale if index in WEAKENED_BLOCKS else None
            x = block(x, time.modulation, condition.keys_and_values[index], condition.mask, rope, mask, scale)
        velocity = self.final_layer(x, time.embedding)
        return velocity if mask is None else velocity * mask[:, None, None, :, 0]

    def _rope(self, length: int, device: torch.device) -> torch.Tensor:
        table = self._ropes.get(device)
        if table is None or table.shape[1] < length:
            with torch.inference_mode(False):  # It outlives the mode that it is first asked for in.
                table = rope_table(length, self.config.attention_head_dim, self.config.rope_theta, device)
            self._ropes[device] = table
        return table[:, :length].clone()  # compiled blocks would tell a view of one length from that of another


class PatchEmbedding(nn.Module):
    """Each latent frame `[8, 16, 1]` becomes one token, with a GroupNorm *over time* between its convolutions."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        size = config.patch_embed_size
        self.early_conv_layers = nn.Sequential(
            nn.Conv2d(config.in_channels, size, config.patch_size, config.patch_size),
            nn.GroupNorm(32, size, eps=1e-6),
            nn.Conv2d(size, config.inner_dim, 1),
        )

    def forward(self, latents: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`[B, C, F, T]` -> `[B, T, E]`; `mask` `[B, T, 1]` keeps padding out of the norm's statistics."""
        patch, norm, project = cast("tuple[nn.Conv2d, nn.GroupNorm, nn.Conv2d]", tuple(self.early_conv_layers))
        x = patch(latents)[:, :, 0]  # [B, size, T]
        x = norm(x) if mask is None else masked_group_norm(x, mask[..., 0], norm)
        return linear(x.transpose(1, 2), project.weight[..., 0, 0], project.bias)


def masked_group_norm(x: torch.Tensor, mask: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """GroupNorm of `x` `[B, E, T]` with statistics over the frames where `mask` `[B, T]` is 1, in float32."""
    groups = x.float().unflatten(1, (norm.num_groups, -1))  # [B, G, E / G, T]
    inside = mask[:, None, None, :].float()
    count = inside.sum(dim=(2, 3), keepdim=True) * groups.shape[2]
    mean = (groups * inside).sum(dim=(2, 3), keepdim=True) / count
    variance = ((groups - mean).square() * inside).sum(dim=(2, 3), keepdim=True) / count
    normed = ((groups - mean) * torch.rsqrt(variance + norm.eps)).flatten(1, 2).to(x.dtype)
    return normed * norm.weight[:, None] + norm.bias[:, None]


class TimeEmbedding(nn.Module):
    """Sinusoids of the time step, cosines first, through a small MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = Linear(TIME_FEATURES, width)
        self.linear_2 = Linear(width, width)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`[B]` in 0..1000 -> `[B, E]`."""
        half = TIME_FEATURES // 2
        rates = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=timestep.device))
        angles = timestep.float()[:, None] * rates
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)
        return self.linear_2(F.silu(self.linear_1(features)))


class FinalLayer(nn.Module):
    """Modulated norm and projection back to latent frames."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.height, self.channels = config.max_height, config.out_channels
        self.scale_shift_table = nn.Parameter(torch.zeros(2, config.inner_dim))
        self.linear = Linear(config.inner_dim, self.height * self.channels)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """`[B, T, E]` and time embedding `[B, E]` -> `[B, C, F, T]`."""
        shift, scale = (self.scale_shift_table.to(time.dtype) + time[:, None]).unsqueeze(2).unbind(1)
        x = self.linear(modulate(x, shift, scale))
        return x.unflatten(-1, (self.height, self.channels)).permute(0, 3, 2, 1)
