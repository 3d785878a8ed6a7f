"""Flow-matching training of the transformer: latents and what they are to be called in, losses out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from acestep.conditioning import pack
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.repa import RepaHeads, repa_loss
from acestep.models.transformer import ACEStepTransformer
from acestep.sampling.denoise import ERG_SCALE
from acestep.sampling.schedule import TIMESTEPS, shifted
from acestep.training.losses import Losses


class FlowMatchingConfig(BaseModel):
    """What the transformer is taught."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timesteps: Literal["logit-normal", "uniform"] = Field(
        "logit-normal", description="How points of the flow are drawn, before the schedule's shift of 3."
    )
    logit_mean: float = Field(0.0, description="Of logit-normal points; above 0: more noise.")
    logit_deviation: float = Field(1.0, gt=0, description="Of logit-normal points.")
    text_dropout: float = Field(0.1, ge=0, le=1, description="Share of items whose prompt is replaced by zeros.")
    lyric_dropout: float = Field(0.1, ge=0, le=1, description="Share of items whose lyrics are left out.")
    speaker_dropout: float = Field(0.5, ge=0, le=1, description="Share of items whose speaker is replaced by zeros.")
    weakened_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of items with another item's prompt and lyrics, encoded with weakened queries. It teaches "
        "that a weakened prompt says nothing, which is what the unconditional branch of ERG guidance shows; of use "
        "where the prompt encoder is trained too.",
    )
    repa_weight: float = Field(0.5, ge=0, description="Of the alignment losses, beside the flow's.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentBatch:
    """Songs to learn from."""

    latents: Tensor
    """`[B, 8, 16, T]`, zero behind an item's end."""
    frame_mask: Tensor
    """`[B, T]`, 1 on an item's own frames."""
    prompt_ids: Tensor
    """`[B, S]`."""
    prompt_mask: Tensor
    lyric_ids: Tensor
    """`[B, L]`."""
    lyric_mask: Tensor
    speaker: Tensor | None = None
    """`[B, speaker_embedding_dim]`."""
    targets: Sequence[Sequence[Tensor]] = field(default=())
    """What each frozen audio encoder hears of each item, `[F, D]`, in the order of the REPA heads."""

    def to(self, device: torch.device) -> LatentBatch:
        """On a device."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), Tensor)
        }
        targets = [[target.to(device, non_blocking=True) for target in of_items] for of_items in self.targets]
        return replace(self, **moved, targets=targets)


def _attention_for(transformer: ACEStepTransformer, device: torch.device) -> AbstractContextManager[Any]:
    """On CPUs, attention as plain products: with so few keys its fused gradient takes a fifth of a whole step."""
    if device.type != "cpu" or transformer.gradient_checkpointing:  # What is computed again is so outside of this.
        return nullcontext()
    return sdpa_kernel([SDPBackend.MATH])


class FlowMatchingTraining(nn.Module):
    """The transformer, perhaps with its prompt encoder, learning the velocity from noise to music.

    A point is x = (1 - sigma) * latents + sigma * noise, the velocity noise - latents (Lipman et al., 2022; Liu et al.,
    2022), its error averaged over each item's own frames.
    """

    def __init__(
        self,
        transformer: ACEStepTransformer,
        prompt_encoder: PromptEncoder,
        config: FlowMatchingConfig,
        repa: RepaHeads | None = None,
    ):
        """Parameters that require no gradient stay as they are; a frozen prompt encoder costs no memory for one."""
        super().__init__()
        self.transformer, self.prompt_encoder, self.repa = transformer, prompt_encoder, repa
        self.config = config

    def forward(self, batch: LatentBatch, generator: torch.Generator | None = None) -> Losses:
        """Losses of a batch. All that is random comes from `generator`, on the CPU, whatever the device."""
        latents, device = batch.latents, batch.latents.device
        sigma = self._sigmas(len(latents), generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        inside = batch.frame_mask.to(latents.dtype)
        noise = noise * inside[:, None, None]
        at = sigma[:, None, None, None]
        mask = None if bool(batch.frame_mask.all()) else batch.frame_mask
        condition = self.transformer.condition(*self._condition(batch, generator))
        listening: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self.repa is not None:
            listening = self.repa.listening(self.transformer)
        with listening as heard, _attention_for(self.transformer, device):
            velocity = self.transformer((1 - at) * latents + at * noise, sigma * TIMESTEPS, condition, mask)
        error = (velocity.float() - (noise - latents)).square().mean(dim=(1, 2)) * inside
        flow = (error.sum(dim=1) / inside.sum(dim=1)).mean()
        losses = {"loss": flow, "flow": flow.detach()}
        lengths = batch.frame_mask.sum(dim=1).long().tolist()
        heard_by_teachers = batch.targets if self.repa is not None else ()
        for index, (projection, targets) in enumerate(zip(heard, heard_by_teachers, strict=True)):
            items = zip(projection.float(), lengths, targets, strict=True)
            aligned = torch.stack([repa_loss(own[None, :length], target[None]) for own, length, target in items]).mean()
            losses["loss"] = losses["loss"] + self.config.repa_weight * aligned
            losses[f"repa_{index}"] = aligned.detach()
        return losses

    def _sigmas(self, count: int, generator: torch.Generator | None) -> Tensor:
        config = self.config
        if config.timesteps == "uniform":
            return shifted(torch.rand(count, generator=generator))
        normal = torch.randn(count, generator=generator)
        return shifted(torch.sigmoid(config.logit_mean + config.logit_deviation * normal))

    def _condition(self, batch: LatentBatch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The packed condition sequence, with what is dropped."""
        config, device = self.config, batch.latents.device

        def chosen(share: float) -> Tensor:
            return (torch.rand(len(batch.latents), generator=generator) < share).to(device)

        weak, no_text, no_lyrics, no_speaker = map(
            chosen, (config.weakened_dropout, config.text_dropout, config.lyric_dropout, config.speaker_dropout)
        )
        scale = torch.where(weak, ERG_SCALE, 1.0) if config.weakened_dropout else None
        prompt_ids, prompt_mask, lyric_ids, lyric_mask = (
            torch.where(weak[:, None], rows.roll(1, dims=0), rows) if config.weakened_dropout else rows
            for rows in (batch.prompt_ids, batch.prompt_mask, batch.lyric_ids, batch.lyric_mask)
        )
        frozen = not any(parameter.requires_grad for parameter in self.prompt_encoder.parameters())
        with torch.no_grad() if frozen else nullcontext():
            text = self.prompt_encoder(prompt_ids, prompt_mask, scale)
        text = text * (~no_text)[:, None, None]
        lyric_mask = lyric_mask * (~no_lyrics)[:, None]
        speaker = None if batch.speaker is None else batch.speaker * (~no_speaker)[:, None]
        return pack(*self.transformer.encode(text, prompt_mask, lyric_ids, lyric_mask, speaker, scale))
