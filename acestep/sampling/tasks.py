"""Where a sampling run begins for each task, and what it must leave as it is.

Arithmetic of the original (`pipeline_ace_step.py`, `text2music_diffusion_process`) for latents `[B, 8, 16, T]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from acestep.sampling.leaving import Remainder
from acestep.sampling.schedule import chosen_sigmas, flow_sigmas, shifted


@dataclass(frozen=True, slots=True)
class Kept:
    """Frames that stay what they were: after every step they are put back on their line from source to noise."""

    source: torch.Tensor
    noise: torch.Tensor
    new: torch.Tensor
    """True on the frames to be made, `[B, 1, 1, T]`."""

    def of(self, remainder: Remainder) -> Kept:
        """The same for who remains of the batch."""
        return Kept(remainder(self.source), remainder(self.noise), remainder(self.new))

    def line(self, sigma: float) -> torch.Tensor:
        """Source and noise mixed as they stand at `sigma`."""
        return (1 - sigma) * self.source + sigma * self.noise

    def restore(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        """`latents` with the kept frames back on their line; at sigma 0 they are the source, bit for bit."""
        return torch.where(self.new, latents, self.line(sigma))


@dataclass(frozen=True, slots=True)
class Start:
    """What a sampling run begins with."""

    latents: torch.Tensor
    sigmas: torch.Tensor
    """The schedule, float32 `[n + 1]`."""
    first_step: int = 0
    kept: Kept | None = None


def from_noise(noise: torch.Tensor, num_inference_steps: int, oss_steps: Sequence[int] = ()) -> Start:
    """text2music."""
    return Start(noise, chosen_sigmas(oss_steps) if oss_steps else flow_sigmas(num_inference_steps))


def mix_noise(noise: torch.Tensor, other: torch.Tensor, variance: float | torch.Tensor) -> torch.Tensor:
    """Variations of a song: its noise turned towards another by `variance` (0: the song, 1: another song)."""
    angle = torch.as_tensor(variance, dtype=torch.float32, device=noise.device) * (math.pi / 2)
    angle = angle.reshape(-1, *[1] * (noise.ndim - 1)) if angle.ndim else angle
    return angle.cos() * noise + angle.sin() * other


def repaint(
    source: torch.Tensor,
    noise: torch.Tensor,
    other: torch.Tensor,
    frames: range,
    num_inference_steps: int,
    variance: float,
) -> Start:
    """Make the frames in `frames` anew and keep the rest. A small `variance` starts late and changes little."""
    new = torch.zeros(1, 1, 1, source.shape[-1], dtype=torch.bool, device=source.device)
    new[..., frames.start : frames.stop] = True
    target = torch.where(new, mix_noise(noise, other, variance), noise)
    return _beside(Kept(source, target, new), num_inference_steps, variance)


def extend(
    source: torch.Tensor,
    noise: torch.Tensor,
    other: torch.Tensor,
    left: int,
    right: int,
    num_inference_steps: int,
    variance: float,
) -> Start:
    """Add `left` and `right` frames to `source` `[B, 8, 16, T]`; `noise` and `other` are as long as the source.

    New frames draw on `other`: its first ones on the left, its last ones on the right, again and again where more are
    wanted than it has (the original fails there).
    """
    padded = torch.nn.functional.pad(source, (left, right))
    new = torch.ones(1, 1, 1, padded.shape[-1], dtype=torch.bool, device=source.device)
    new[..., left : left + source.shape[-1]] = False
    before = _repeated(other, left)[..., :left]
    after = _repeated(other, right)
    target = torch.cat([before, noise, after[..., after.shape[-1] - right :]], dim=-1)
    return _beside(Kept(padded, target, new), num_inference_steps, variance)


def from_reference(reference: torch.Tensor, noise: torch.Tensor, num_inference_steps: int, strength: float) -> Start:
    """audio2audio: start from `reference` with noise on top; a `strength` of 1 keeps it whole, 0 ignores it.

    The original mixes at the once shifted sigma, although its schedule begins at the twice shifted one.
    """
    sigma_max = 1.0 - strength
    sigmas = flow_sigmas(max(1, int(num_inference_steps * sigma_max)), sigma_max)
    mixed = float(shifted(torch.tensor(sigma_max, dtype=torch.float64)))
    return Start((1 - mixed) * reference + mixed * noise, sigmas)


def _beside(kept: Kept, num_inference_steps: int, variance: float) -> Start:
    sigmas = flow_sigmas(num_inference_steps)
    first = min(int(num_inference_steps * (1 - variance)), num_inference_steps - 1)
    return Start(kept.line(float(sigmas[first])), sigmas, first, kept)


def _repeated(noise: torch.Tensor, frames: int) -> torch.Tensor:
    return noise.repeat(1, 1, 1, max(1, -(-frames // noise.shape[-1])))
