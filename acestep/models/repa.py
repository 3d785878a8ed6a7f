"""REPA: heads that hold a block's hidden states against what self-supervised audio models hear. Training only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acestep.models.transformer import ACEStepTransformer


class RepaHeads(nn.Module):
    """One MLP for each self-supervised model (MERT, m-HuBERT), as the published checkpoint holds under `projectors`."""

    def __init__(self, width: int, latent_dims: Sequence[int], depths: Sequence[int]):
        super().__init__()
        hidden = 2 * width
        self.depths = tuple(depths)
        """The block behind which each head listens."""
        self.projectors = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dim)
                )
                for dim in latent_dims
            ]
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RepaHeads:
        """Build from the transformer's `config.json`, weights not loaded."""
        return cls(config["inner_dim"], config["ssl_latent_dims"], config["ssl_encoder_depths"])

    @contextmanager
    def listening(self, transformer: ACEStepTransformer) -> Iterator[list[torch.Tensor]]:
        """Within this context a forward pass leaves each head's projection `[B, T, dim]` in the list."""
        heard: list[torch.Tensor] = [torch.empty(0)] * len(self.depths)
        hooks = []
        for index, (depth, head) in enumerate(zip(self.depths, self.projectors, strict=True)):

            def listen(
                module: nn.Module, inputs: Any, output: torch.Tensor, index: int = index, head: nn.Module = head
            ) -> None:
                heard[index] = head(output)

            hooks.append(transformer.transformer_blocks[depth].register_forward_hook(listen))
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()


def repa_loss(projection: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between projection `[B, T, D]` and target `[B, F, D]`, averaged over frames and items.

    The projection is resized linearly to the target's frames.
    """
    resized = F.interpolate(projection.transpose(1, 2), size=target.shape[1], mode="linear", align_corners=False)
    return (1 - F.cosine_similarity(resized.transpose(1, 2), target, dim=-1)).mean()
