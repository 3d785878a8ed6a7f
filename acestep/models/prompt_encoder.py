"""The prompt encoder: UMT5 from transformers, with ERG's weakened queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

WEAKENED_BLOCKS = (8, 9)
"""Blocks whose queries ERG scales down in the unconditional branch; a smaller encoder may have none of them."""


class PromptEncoder(nn.Module):
    """Token ids `[B, S]` -> last hidden states `[B, S, d_model]`."""

    UNUSED_TENSORS: tuple[str, ...] = ()

    def __init__(self, model: UMT5EncoderModel):
        super().__init__()
        self.model = model
        self._query_scale: torch.Tensor | None = None
        blocks: Any = model.encoder.block
        for index in WEAKENED_BLOCKS:
            if index < len(blocks):
                blocks[index].layer[0].SelfAttention.q.register_forward_hook(self._scale_queries)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PromptEncoder:
        """Build from a `config.json`, weights not loaded. The weights belong to `.model`."""
        return cls(UMT5EncoderModel(UMT5Config(**config)))

    def forward(
        self, input_ids: torch.Tensor, mask: torch.Tensor, query_scale: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encode; `query_scale` `[B]` multiplies the queries of `WEAKENED_BLOCKS` row by row."""
        self._query_scale = query_scale
        try:
            return self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        finally:
            self._query_scale = None

    def _scale_queries(self, module: nn.Module, inputs: Any, queries: torch.Tensor) -> torch.Tensor | None:
        if self._query_scale is None:
            return None
        return queries * self._query_scale[:, None, None].to(queries.dtype)
