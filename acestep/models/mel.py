"""`LogMel`: waveform to the log-mel spectrogram that the autoencoder was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep.models.config import read_config

MAGNITUDE_EPS = 1e-6
LOG_FLOOR = 1e-5

_LINEAR_UNTIL = 1000.0
"""Hz up to which Slaney's mel scale is linear, at `_HZ_PER_MEL`; above it is logarithmic."""
_HZ_PER_MEL = 200 / 3
_LOG_STEP = math.log(6.4) / 27


@dataclass(frozen=True, slots=True)
class MelConfig:
    """The spectrogram's settings, under the names that the vocoder's config has for them; frequencies in Hz."""

    sampling_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    f_min: float
    f_max: float
    n_mels: int


class LogMel(nn.Module):
    """Waveform `[..., W]` to log-mel `[..., M, W // hop_length]`, always in float32; W at least a window."""

    UNUSED_TENSORS: ClassVar[tuple[str, ...]] = ()

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig):
        super().__init__()
        self.config = config
        window = torch.hann_window(config.win_length, dtype=torch.float64, device="cpu").float()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", mel_filters(config), persistent=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LogMel:
        """Build from the keys of the vocoder's `config.json`."""
        return cls(read_config(MelConfig, config))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LogMel:
        # These are computed, not loaded: a cast to bfloat16 or a `to_empty` of the whole codec must not lose them.
        computed = {"window": self.window, "filters": self.filters}
        super()._apply(fn, recurse)
        for name, tensor in computed.items():
            setattr(self, name, tensor.to(getattr(self, name).device))
        return self

    def forward(self, waveform: Tensor) -> Tensor:
        config = self.config
        edge = config.win_length - config.hop_length
        samples = waveform.float().reshape(-1, 1, waveform.shape[-1])
        padded = F.pad(samples, (edge // 2, edge - edge // 2), mode="reflect").squeeze(1)
        spectrum = torch.stft(
            padded,
            config.n_fft,
            config.hop_length,
            config.win_length,
            window=self.window,
            center=False,
            return_complex=True,
        )
        magnitude = torch.sqrt(torch.view_as_real(spectrum).square().sum(-1) + MAGNITUDE_EPS)  # [B, bins, frames]
        mel = (self.filters @ magnitude).clamp_min(LOG_FLOOR).log()
        return mel.reshape(*waveform.shape[:-1], *mel.shape[-2:])


def mel_filters(config: MelConfig) -> Tensor:
    """Triangles of equal area on Slaney's mel scale: float32 `[n_mels, n_fft // 2 + 1]` on the CPU."""
    low, high = (_hz_to_mel(hz) for hz in (config.f_min, config.f_max))
    mels = torch.linspace(low, high, config.n_mels + 2, dtype=torch.float64, device="cpu")
    corners = _mel_to_hz(mels)
    bins = torch.linspace(0, config.sampling_rate / 2, config.n_fft // 2 + 1, dtype=torch.float64, device="cpu")
    width = corners.diff()[:, None]
    distance = bins - corners[:, None]
    rising, falling = distance[:-2] / width[:-1], -distance[2:] / width[1:]
    area = 2 / (corners[2:] - corners[:-2])
    return (torch.minimum(rising, falling).clamp_min(0) * area[:, None]).float()


def _hz_to_mel(hz: float) -> float:
    if hz < _LINEAR_UNTIL:
        return hz / _HZ_PER_MEL
    return _LINEAR_UNTIL / _HZ_PER_MEL + math.log(hz / _LINEAR_UNTIL) / _LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    knee = _LINEAR_UNTIL / _HZ_PER_MEL
    return torch.where(mel < knee, mel * _HZ_PER_MEL, _LINEAR_UNTIL * torch.exp(_LOG_STEP * (mel - knee)))
