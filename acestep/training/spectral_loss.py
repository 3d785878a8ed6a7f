"""Distances between waveforms by their short-time spectra."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLOOR = 1e-3
"""Of magnitudes whose logarithms are compared: 96 dB below a full-scale sine in a window of 256 samples."""


class MultiResolutionSTFTLoss(nn.Module):
    """Spectral convergence and log-magnitude distance, averaged over windows of several lengths.

    From Parallel WaveGAN (Yamamoto et al., 2019); long windows make steady tones clean, short ones make onsets sharp.
    With a `phase_weight` the distance of the complex spectra is added, as a share of what is wanted: it hears phases,
    so it is for sound whose phases follow from its spectrum.
    """

    def __init__(self, windows: tuple[int, ...] = (512, 1024, 2048, 4096), phase_weight: float = 0.0):
        super().__init__()
        self.windows, self.phase_weight = windows, phase_weight

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Of waveforms `[B, W]`."""
        losses = []
        for size in self.windows:
            ours, theirs = spectrum(made, size), spectrum(wanted, size)
            our_level, their_level = magnitude(ours), magnitude(theirs)
            norm = torch.linalg.vector_norm(their_level).clamp_min(FLOOR)
            distance = (our_level.clamp_min(FLOOR).log() - their_level.clamp_min(FLOOR).log()).abs().mean()
            losses.append(torch.linalg.vector_norm(their_level - our_level) / norm + distance)
            if self.phase_weight:
                away = magnitude(ours - theirs).mean() / their_level.mean().clamp_min(FLOOR)
                losses[-1] = losses[-1] + self.phase_weight * away
        return torch.stack(losses).mean()


def spectrum(waveform: Tensor, size: int) -> Tensor:
    """The complex short-time spectrum of `[B, W]` with a Hann window of `size` samples, a quarter apart."""
    window = torch.hann_window(size, device=waveform.device)
    return torch.stft(waveform, size, size // 4, size, window, return_complex=True)


def magnitude(values: Tensor) -> Tensor:
    """Of complex numbers, with a gradient at 0."""
    return torch.sqrt(torch.view_as_real(values).square().sum(-1) + 1e-8)


def phase_error(made: Tensor, wanted: Tensor, size: int = 2048) -> Tensor:
    """Distance of the complex spectra of `[B, W]` as a share of what is wanted: 0 the same, above 1 unrelated."""
    theirs = spectrum(wanted, size)
    return torch.linalg.vector_norm(spectrum(made, size) - theirs) / torch.linalg.vector_norm(theirs).clamp_min(FLOOR)
