"""Noise of a batch: every item draws from its own generator, on the CPU.

So the same seed gives the same noise whatever its batch-mates, its place in the batch, or the device.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from acestep.frames import LATENT_CHANNELS, LATENT_HEIGHT


class BatchNoise:
    """Draws standard normal latents for items of given seeds and lengths."""

    def __init__(self, seeds: Sequence[int], num_frames: Sequence[int], device: torch.device | str = "cpu"):
        self.num_frames = tuple(num_frames)
        self.device = device
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self) -> torch.Tensor:
        """The next draw: float32 `[B, 8, 16, T]` with T the longest, zero behind each item's end."""
        shape = (len(self.num_frames), LATENT_CHANNELS, LATENT_HEIGHT, max(self.num_frames))
        noise = torch.zeros(shape)
        for row, (generator, frames) in enumerate(zip(self._generators, self.num_frames, strict=True)):
            noise[row, ..., :frames] = torch.randn((1, *shape[1:3], frames), generator=generator)[0]
        return noise.to(self.device)

    def of_length(self, num_frames: int) -> BatchNoise:
        """The same generators, drawing for items of another length; all of them equally long."""
        other = copy.copy(self)
        other.num_frames = (num_frames,) * len(self.num_frames)
        return other

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the items in these rows; the others' generators are dropped."""
        self.num_frames = tuple(self.num_frames[row] for row in rows)
        self._generators = [self._generators[row] for row in rows]

    def frame_mask(self) -> torch.Tensor | None:
        """1 on each item's own frames, float32 `[B, T]`; None when all are equally long."""
        if len(set(self.num_frames)) == 1:
            return None
        frames = torch.tensor(self.num_frames)[:, None]
        return (torch.arange(max(self.num_frames)) < frames).float().to(self.device)
