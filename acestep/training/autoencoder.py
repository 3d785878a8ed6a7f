"""Training of the autoencoder: sound in, losses out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acestep.codec import LATENT_SCALE, LATENT_SHIFT, MEL_RANGE
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.training.losses import Losses


class AutoencoderTraining(nn.Module):
    """Log-mel through latents and back.

    The latents are pulled to mean 0 and deviation 1 in the transformer's units, and are decoded with some noise on
    them, so that what a transformer gets nearly right sounds nearly right.
    """

    def __init__(self, autoencoder: MusicAutoencoder, log_mel: LogMel, noise: float = 0.15, pull: float = 0.05):
        super().__init__()
        self.autoencoder, self.log_mel = autoencoder, log_mel
        self.noise, self.pull = noise, pull

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> Losses:
        """Of `[B, 2, W]` at 44.1 kHz, W whole latent frames."""
        low, high = MEL_RANGE
        mel = (self.log_mel(waveform) - low) / (high - low) * 2 - 1
        latents = (self.autoencoder.encode(mel) - LATENT_SHIFT) * LATENT_SCALE
        shape = (len(latents), 1, 1, 1)
        level = self.noise * torch.rand(shape, generator=generator, device=latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        decoded = self.autoencoder.decode((latents + level * noise) / LATENT_SCALE + LATENT_SHIFT)
        error = (decoded - mel).abs().mean()
        slope = (decoded.diff(dim=2) - mel.diff(dim=2)).abs().mean()
        deviation, mean = torch.std_mean(latents.float(), dim=(0, 2, 3))
        spread = deviation.clamp_min(1e-4).log().square().mean() + mean.square().mean()
        loss = error + 0.5 * slope + 0.5 * (decoded - mel).square().mean() + self.pull * spread
        watched = {"latent_deviation": deviation.mean().detach(), "spread": spread.detach()}
        return {"loss": loss, "mel_error": error.detach() * (high - low) / 2, **watched}
