"""`MusicCodec`: waveform to latents and back, in the units that the transformer works in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep import frames
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.vocoder import Vocoder
from acestep.models.windows import in_windows

MEL_RANGE = (-11.0, 3.0)
"""The log-mel values that the autoencoder knows as -1 and 1."""
LATENT_SHIFT = -1.9091
LATENT_SCALE = 0.1786

FRAMES_PER_PASS = frames.num_latent_frames(240)
"""Latent frames encoded at once: one song of the greatest length. More in a pass costs memory and saves no time."""

CHUNK_FRAMES = 512
"""Latent frames decoded at once: 48 s. A song of 240 s then takes 1.3 GiB in float32 instead of 5.3, in the same
time; smaller chunks compute more of their overlap."""


class MusicCodec(nn.Module):
    """Autoencoder, vocoder and spectrogram as one; weights may be float32 or bfloat16, results are float32.

    Items are independent: one decoded in a batch equals the same decoded alone. An item's decode does depend on its
    own length, so items of different lengths cannot be padded into one batch.
    """

    def __init__(self, autoencoder: MusicAutoencoder, vocoder: Vocoder, log_mel: LogMel):
        """Join two loaded networks and the spectrogram, which is built from the vocoder's config.

        Raises:
            ValueError: for sizes that are not those of `acestep.frames`, naming both.
        """
        super().__init__()
        # As convolutions want it, on GPUs and CPUs: otherwise each turns its input and its output around.
        self.autoencoder: MusicAutoencoder = autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.vocoder = vocoder
        self.log_mel = log_mel
        self._check_sizes()

    @classmethod
    def from_config(cls, autoencoder: Mapping[str, Any], vocoder: Mapping[str, Any]) -> MusicCodec:
        """Build from the two published `config.json`, weights not loaded; raises as the constructor does."""
        return cls(MusicAutoencoder.from_config(autoencoder), Vocoder.from_config(vocoder), LogMel.from_config(vocoder))

    @property
    def sample_rate(self) -> int:
        """Hz, of waveforms in and out."""
        return self.log_mel.config.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples in a mel frame."""
        return self.log_mel.config.hop_length

    @property
    def samples_per_frame(self) -> int:
        """Samples in a latent frame."""
        return self.hop_length * self.autoencoder.config.compression

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Waveform `[2, W]` or `[B, 2, W]` at `sample_rate` to latents `[B, 8, 16, T]`.

        The end is padded with silence to a whole number of latent frames: T = ceil(W / samples_per_frame).

        Raises:
            ValueError: for a waveform that is not stereo, or is empty.
        """
        batch = waveform if waveform.ndim == 3 else waveform[None]
        if batch.ndim != 3 or batch.shape[1] != 2 or batch.shape[-1] == 0:
            raise ValueError(f"a waveform must be [2, W] or [B, 2, W], not {list(waveform.shape)}")
        padded = F.pad(batch, (0, -batch.shape[-1] % self.samples_per_frame))
        num_frames = padded.shape[-1] // self.samples_per_frame
        return torch.cat([self._encode(part) for part in padded.split(max(1, FRAMES_PER_PASS // num_frames))])

    @torch.no_grad()
    def decode(self, latents: Tensor, *, chunk_frames: int | None = None) -> Tensor:
        """Latents `[B, 8, 16, T]` to stereo `[B, 2, T * samples_per_frame]` at `sample_rate`, nominally in -1..1.

        Args:
            chunk_frames: latent frames decoded at once, of one item or of several, which bounds the memory. Longer
                items go through in chunks that overlap by as much as the networks see; that gives what all at once
                would give, up to rounding. None: `CHUNK_FRAMES`; T or more: no item is cut.

        Raises:
            ValueError: for latents of another shape, or chunks of no frames.
        """
        height, channels = frames.LATENT_HEIGHT, frames.LATENT_CHANNELS
        if latents.ndim != 4 or latents.shape[1:3] != (channels, height) or latents.shape[-1] == 0:
            raise ValueError(f"latents must be [B, {channels}, {height}, T], not {list(latents.shape)}")
        chunk_frames = CHUNK_FRAMES if chunk_frames is None else chunk_frames
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames must be at least 1, not {chunk_frames}")
        parts = latents.split(max(1, chunk_frames // latents.shape[-1]))
        return torch.cat([self._decode(part, chunk_frames) for part in parts])

    def _encode(self, waveform: Tensor) -> Tensor:
        low, high = MEL_RANGE
        mel = (self.log_mel(waveform) - low) / (high - low) * 2 - 1  # [B, 2, M, 8T]
        latents = self.autoencoder.encode(mel.to(self._dtype, memory_format=torch.channels_last)).float().contiguous()
        return (latents - LATENT_SHIFT) * LATENT_SCALE

    def _decode(self, latents: Tensor, chunk_frames: int) -> Tensor:
        low, high = MEL_RANGE
        scaled = latents.float() / LATENT_SCALE + LATENT_SHIFT
        scaled = scaled.to(self._dtype, memory_format=torch.channels_last)
        mel = self.autoencoder.decode(scaled, chunk_frames).float().contiguous()  # [B, 2, M, 8T]
        mel = (mel + 1) / 2 * (high - low) + low
        channels = mel.flatten(0, 1).to(self._dtype)  # the vocoder knows nothing of stereo
        size = chunk_frames * self.autoencoder.config.compression
        waveform = in_windows(self.vocoder, channels, size, self.vocoder.reach)
        return waveform.float().reshape(len(latents), 2, -1)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.autoencoder.parameters()).dtype

    def _check_sizes(self) -> None:
        autoencoder, vocoder, mel = self.autoencoder.config, self.vocoder.config, self.log_mel.config
        sizes = (
            ("sample rate", self.sample_rate, frames.SAMPLE_RATE),
            ("hop length", self.hop_length, frames.HOP_LENGTH),
            ("samples per latent frame", self.samples_per_frame, frames.SAMPLES_PER_FRAME),
            ("latent channels", autoencoder.latent_channels, frames.LATENT_CHANNELS),
            ("latent height", mel.n_mels // autoencoder.compression, frames.LATENT_HEIGHT),
            ("audio channels", autoencoder.in_channels, 2),
            ("mel bins of the vocoder", vocoder.input_channels, mel.n_mels),
        )
        if wrong := [f"{name}: {found:,} instead of {needed:,}" for name, found, needed in sizes if found != needed]:
            raise ValueError("the codec's config does not fit the model: " + "; ".join(wrong))
