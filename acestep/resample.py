"""Change of sample rate by windowed-sinc interpolation, on whatever device the waveform is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Quality = Literal["kaiser", "upstream"]

_LARGEST_KERNEL = 2**24
"""Numbers in a kernel; beyond, the two rates share too small a factor to be resampled this way (64 MiB)."""


@dataclass(frozen=True, slots=True)
class Sinc:
    """How a kernel is made: zero crossings to each side, cutoff relative to Nyquist, window (beta None: Hann)."""

    zero_crossings: int
    rolloff: float
    beta: float | None


KERNELS: dict[str, Sinc] = {
    "kaiser": Sinc(64, 0.9475937167399596, 14.769656459379492),  # 105 dB up to 18 kHz
    "upstream": Sinc(6, 0.99, None),  # what the model's authors use: 24 dB at 18 kHz, and 0.7 dB lost there
}


def resample(waveform: Tensor, orig_hz: int, new_hz: int, quality: Quality = "kaiser") -> Tensor:
    """Resample `[..., W]` from `orig_hz` to `new_hz`, to `ceil(W * new_hz / orig_hz)` samples of float32.

    Equal rates give the waveform itself. `"upstream"` is bit for bit what the model's authors apply after decoding;
    the default is cleaner at high frequencies.

    Raises:
        ValueError: for rates that are not positive, or have too small a common factor, or an unknown quality.
    """
    if quality not in KERNELS:
        raise ValueError(f"unknown resampling quality {quality!r}; known: {', '.join(KERNELS)}")
    if min(orig_hz, new_hz) < 1:
        raise ValueError(f"sample rates must be positive, not {orig_hz} and {new_hz}")
    if orig_hz == new_hz:
        return waveform
    common = math.gcd(orig_hz, new_hz)
    orig, new = orig_hz // common, new_hz // common
    kernel, width = _kernel(orig, new, quality)
    # cuDNN rounds float32 to TF32 unless told otherwise, which would be heard; float64 it leaves alone.
    dtype = torch.float64 if waveform.is_cuda else torch.float32
    samples = waveform.to(dtype).reshape(-1, 1, waveform.shape[-1])
    padded = F.pad(samples, (width, width + orig))
    phases = F.conv1d(padded, kernel.to(waveform.device, dtype), stride=orig)  # [B, new, W / orig]
    length = -(-waveform.shape[-1] * new // orig)
    return phases.transpose(1, 2).flatten(1)[:, :length].reshape(*waveform.shape[:-1], length).float()


@lru_cache(maxsize=16)
def _kernel(orig: int, new: int, quality: str) -> tuple[Tensor, int]:
    """One filter for each of the `new` phases, `[new, 1, 2 * width + orig]`, and how far it reaches to each side."""
    sinc = KERNELS[quality]
    cutoff = min(orig, new) * sinc.rolloff
    width = math.ceil(sinc.zero_crossings * orig / cutoff)
    if new * (2 * width + orig) > _LARGEST_KERNEL:
        raise ValueError(f"cannot resample {orig}:{new}: the sample rates have too small a common factor")
    taps = torch.arange(-width, width + orig, dtype=torch.float64, device="cpu") / orig
    # Upstream rounds the phases to float32 and all else to float64; so do we, to be bit for bit the same.
    phases = torch.arange(0, -new, -1, device="cpu").float() / new
    time = ((phases[:, None, None] + taps) * cutoff).clamp(-sinc.zero_crossings, sinc.zero_crossings)
    kernel = torch.sinc(time) * _window(time / sinc.zero_crossings, sinc.beta) * (cutoff / orig)
    return kernel.float(), width


def _window(x: Tensor, beta: float | None) -> Tensor:
    if beta is None:
        return torch.cos(x * math.pi / 2).square()
    peak = torch.special.i0(torch.tensor(beta, dtype=torch.float64, device="cpu"))
    return torch.special.i0(beta * torch.sqrt((1 - x.square()).clamp_min(0))) / peak
