"""Training of the vocoder: first what it knows of each frame, then all of it.

The vocoder's head can be set so that it does nothing but string samples together: half of its widest channels are
samples at half the rate, which transposed convolutions put one behind the other and the last of them interpolates. The
backbone then learns at the rate of frames, at a tenth of the cost, and the whole has only to be polished afterwards.
For sound whose phases follow from its spectrum; other sound needs the second part alone, and an adversary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep.models.mel import LogMel
from acestep.models.vocoder import Head, Vocoder
from acestep.training.losses import Losses
from acestep.training.spectral_loss import MultiResolutionSTFTLoss, phase_error

_LOUDEST = 0.97
"""The greatest sample that the head's tanh is asked for."""


class LappedTransform(nn.Module):
    """MDCT with a sine window of two frames: waveform `[B, W]` to `[B, size, W / size]` and back."""

    basis: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        n, k = (torch.arange(count, dtype=torch.float64) + 0.5 for count in (2 * size, size))
        cosines = torch.cos(math.pi / size * (n + size / 2) * k[:, None])
        basis = math.sqrt(2 / size) * torch.sin(math.pi * n / (2 * size)) * cosines
        self.register_buffer("basis", basis.float(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        edge = self.size // 2
        return F.conv1d(F.pad(waveform, (edge, edge))[:, None], self.basis[:, None], stride=self.size)

    def samples_kernel(self) -> Tensor:
        """What a frame's samples take from the frame before, itself and the next: `[size, size, 3]`."""
        half = self.size // 2
        kernel = self.basis.new_zeros(self.size, self.size, 3)
        kernel[:half, :, 0] = self.basis[:, -half:].T
        kernel[:, :, 1] = self.basis[:, half : half + self.size].T
        kernel[half:, :, 2] = self.basis[:, :half].T
        return kernel


class FrameTraining(nn.Module):
    """The backbone and what the head reads from it, against the lapped spectrum of sound at half the rate.

    In the spectrum each band can be weighed; `fold` turns what was learned into the head's first convolution.
    """

    scale: Tensor
    weight: Tensor

    def __init__(self, vocoder: Vocoder, log_mel: LogMel, examples: Tensor, noise: float = 0.0):
        """`examples` `[N, W]` tell how loud each band is; `noise` is put on the spectra, in nats at most."""
        super().__init__()
        self.vocoder, self.log_mel, self.noise = vocoder, log_mel, noise
        width = vocoder.config.upsample_initial_channel // 2
        if 2 * width != vocoder.config.hop_length:
            raise ValueError(
                f"upsample_initial_channel must be hop_length {vocoder.config.hop_length}, not {2 * width}"
            )
        self.transform = LappedTransform(width)
        self.read = nn.Conv1d(vocoder.config.num_mels, width, vocoder.config.pre_conv_kernel_size - 2, padding="same")
        loudness = self.transform(at_half_rate(examples)).std(dim=(0, 2))
        loudness = loudness + 0.05 * loudness.mean()
        self.register_buffer("scale", loudness[:, None])
        self.register_buffer("weight", 1 / (loudness + 0.15 * loudness.mean())[:, None])

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> Losses:
        """Of `[B, 2, W]` at 44.1 kHz, W whole mel frames; one channel of each item is used."""
        mono = waveform[:, 0]
        mel = self.log_mel(mono)
        level = self.noise * torch.rand(len(mel), 1, 1, generator=generator).to(mel.device)
        mel = mel + level * torch.randn(mel.shape, generator=generator).to(mel.device)
        wanted = self.transform(at_half_rate(mono.clamp(-_LOUDEST, _LOUDEST).atanh())) * self.weight
        away = self.read(self.vocoder.backbone(mel)) * self.scale * self.weight - wanted
        error = away.square().sum() / wanted.square().sum()
        return {"loss": error + 0.3 * away.abs().mean() / wanted.abs().mean(), "error": error.detach()}

    @torch.no_grad()
    def fold(self) -> None:
        """Put what was learned into `vocoder.head.conv_pre`, whose channels are samples and their negatives."""
        kernel = self.transform.samples_kernel()  # [size, size, 3]
        read = self.read.weight * self.scale[..., None]  # [size, E, K - 2]
        # One convolution behind the other is one whose kernel is theirs convolved.
        folded = F.conv1d(read.permute(1, 0, 2), kernel.flip(2), padding=2).permute(1, 0, 2)
        assert self.read.bias is not None
        bias = kernel.sum(dim=2) @ (self.read.bias * self.scale[:, 0])
        conv = self.vocoder.head.conv_pre
        assert conv.bias is not None
        conv.weight.copy_(torch.cat([folded, -folded]))
        conv.bias.copy_(torch.cat([bias, -bias]))


class VocoderTraining(nn.Module):
    """Log-mel of real sound to a waveform that has the same spectra."""

    def __init__(self, vocoder: Vocoder, log_mel: LogMel, mel_weight: float = 0.5, phase_weight: float = 0.0):
        """`phase_weight` is for sound whose phases follow from its spectrum, as the synthesiser's do."""
        super().__init__()
        self.vocoder, self.log_mel = vocoder, log_mel
        self.stft_loss = MultiResolutionSTFTLoss(phase_weight=phase_weight)
        self.mel_weight, self.phase_weight = mel_weight, phase_weight

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> Losses:
        """Of `[B, 2, W]` at 44.1 kHz, W whole mel frames; one channel of each item is used."""
        mono = waveform[:, 0]
        mel = self.log_mel(mono)
        made = self.vocoder(mel)[:, 0].float()
        stft = self.stft_loss(made, mono)
        mel_error = (self.log_mel(made) - mel).abs().mean()
        losses = {"loss": stft + self.mel_weight * mel_error, "stft": stft.detach(), "mel_error": mel_error.detach()}
        if self.phase_weight:
            losses["phase_error"] = phase_error(made.detach(), mono)
        return losses


def at_half_rate(waveform: Tensor) -> Tensor:
    """Every second sample of `[B, W]`, W even, after what lies above a quarter of the rate is cut off."""
    spectrum = torch.fft.rfft(waveform)
    size = waveform.shape[-1] // 2
    return torch.fft.irfft(spectrum[..., : size // 2 + 1], size) / 2


@torch.no_grad()
def string_samples(head: Head, rates: Sequence[int], kernels: Sequence[int]) -> None:
    """Set a head so that what it is given, samples and their negatives, comes out as sound at twice their rate.

    Channels stand in pairs of opposite sign, of which silu(x) - silu(-x) = x makes a linear path. What is not needed
    for it keeps small first weights, and the residual blocks begin with nothing.

    Raises:
        ValueError: if the rates leave no room for the samples.
    """
    num_samples = head.conv_pre.out_channels // 2
    last = len(rates) - 1
    for index, (up, rate, kernel) in enumerate(zip(head.ups, rates, kernels, strict=True)):
        assert isinstance(up, nn.ConvTranspose1d) and up.bias is not None
        padding = (kernel - rate) // 2
        path = torch.zeros(up.in_channels // 2, up.out_channels // 2, kernel)
        if index < last:
            if num_samples % rate or num_samples // rate > up.out_channels // 2:
                raise ValueError(f"{num_samples} samples cannot be spread by {rate} over {up.out_channels} channels")
            num_samples //= rate
            for phase in range(rate):
                for channel in range(num_samples):
                    path[phase * num_samples + channel, channel, padding + phase] = 1
        else:
            if 2 * num_samples != rate:
                raise ValueError(f"{num_samples} samples are left for an interpolation by {rate}")
            taps = torch.arange(kernel)
            for channel in range(num_samples):
                distance = (taps - padding) / 2 - channel
                window = torch.cos(math.pi / 2 * (distance / 4).clamp(-1, 1)) ** 2
                path[channel, 0] = torch.sinc(distance) * window
        _add_path(up.weight, path)
        up.bias.zero_()
    for block in head.resblocks:
        for conv in block.convs2:  # type: ignore[union-attr]
            conv.weight.mul_(0.02)  # type: ignore[union-attr,operator]
            conv.bias.zero_()  # type: ignore[union-attr,operator]
    post = head.conv_post
    assert post.bias is not None
    post.weight.zero_()
    post.weight[0, 0, post.kernel_size[0] // 2] = 1
    post.weight[0, post.in_channels // 2, post.kernel_size[0] // 2] = -1
    post.bias.zero_()


def _add_path(weight: Tensor, path: Tensor) -> None:
    """Set a linear path `[I / 2, O / 2, K]` between pairs; other weights shrink."""
    rows, columns = path.shape[:2]
    weight.mul_(0.02)
    used = path.abs().sum(dim=(1, 2)) > 0, path.abs().sum(dim=(0, 2)) > 0
    weight[:, torch.cat([used[1], used[1]])] = 0
    weight[:rows, :columns] += path
    weight[rows:, :columns] -= path
    weight[:rows, columns:] -= path
    weight[rows:, columns:] += path
