"""`Padding`: how much of what was denoised belonged to no song, for the songs of a batch are padded to its longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acestep.request import GenerationRequest
from pipelines.work import added_frames


@dataclass(slots=True)
class Padding:
    """Latent frames, of every engine call that was counted."""

    padded: int = 0
    computed: int = 0
    """Those of songs and of padding."""

    def count(self, batch: Sequence[GenerationRequest]) -> None:
        """Add one engine call with requests that share a `batch_key`."""
        frames = [request.num_frames + added_frames(request.extend_left, request.extend_right) for request in batch]
        computed = max(frames, default=0) * len(frames)
        self.add(computed - sum(frames), computed)

    def add(self, padded: int, computed: int) -> None:
        """Add what was counted elsewhere."""
        self.padded += padded
        self.computed += computed

    @property
    def share(self) -> float:
        """Of the frames computed, 0..1."""
        return self.padded / self.computed if self.computed else 0.0
