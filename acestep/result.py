"""`GenerationResult`: one song made, with all that is needed to make it again."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from acestep.errors import InvalidAudioError
from acestep.request import GenerationRequest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which weights made a song."""

    name: str
    fingerprint: str
    """sha256 over the checkpoint's files and the compute dtype."""
    dtype: str
    random_weights: bool = False
    """True for a checkpoint that was never trained: what it makes is noise."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class GenerationResult:
    """One finished song.

    Attributes:
        request: the request with nothing left open (its `seed` is the one used).
        waveform: float32 `[2, W]` on the CPU, nominally in -1..1; W is 0 where only latents were asked for.
        sample_rate: Hz.
        latents: float32 `[8, 16, T]` on the CPU, what the waveform was decoded from.
        timings: seconds by stage for the batch that the song was in.
        batch_size: songs in that batch.
        warnings: what the author of the request may want to know.
    """

    request: GenerationRequest
    waveform: torch.Tensor
    sample_rate: int
    latents: torch.Tensor
    model: ModelInfo
    timings: dict[str, float] = field(default_factory=dict)
    batch_size: int = 1
    warnings: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """The seed used."""
        assert self.request.seed is not None
        return self.request.seed

    @property
    def duration(self) -> float:
        """Seconds made, a whole number of latent frames: up to 93 ms less than asked."""
        return self.waveform.shape[-1] / self.sample_rate

    @property
    def settings(self) -> dict[str, Any]:
        """Every resolved setting, as `GenerationRequest(**settings)` takes them."""
        return self.request.settings()

    def save(self, path: str | os.PathLike[str], **options: Any) -> str:
        """Write the song to a local path or fsspec URL; the extension names the format.

        `.mp3` (320 kbps), `.wav`, `.flac`, `.ogg`, `.opus`; `options` are those of `acestep.audio.AudioFormat`.
        The file appears whole or not at all.

        Raises:
            AudioFormatError: for an unknown extension or an option that the format does not have.
            InvalidAudioError: for a result without a waveform.
        """
        from acestep.audio import save_audio

        if not self.waveform.shape[-1]:
            raise InvalidAudioError("this result holds latents only; make it with output='waveform'")
        return save_audio(self.waveform, self.sample_rate, path, tags=self.tags(), **options)

    def normalized(self, mode: Literal["peak", "lufs"] = "lufs", **levels: float) -> GenerationResult:
        """The same song as loud as asked: one gain, no limiter; `levels` are those of `acestep.loudness.normalize`."""
        from acestep.loudness import normalize

        return dataclasses.replace(self, waveform=normalize(self.waveform, self.sample_rate, mode, **levels))

    def __repr__(self) -> str:
        return (
            f"GenerationResult({self.request.prompt[:40]!r}, {self.duration:.1f} s, {self.sample_rate} Hz, "
            f"seed {self.seed}, model {self.model.name})"
        )

    def _repr_html_(self) -> str:
        """A player and the settings that matter, for notebooks."""
        import base64
        import html

        from acestep.audio import AudioFormat, encode_audio

        caption = f"{self.request.prompt} ({self.duration:.1f} s, seed {self.seed}, {self.model.name})"
        if not self.waveform.shape[-1]:
            return f"<p>{html.escape(caption)}: latents only</p>"
        data = encode_audio(self.waveform, self.sample_rate, AudioFormat(format="mp3"), self.tags())
        player = f'<audio controls src="data:audio/mpeg;base64,{base64.b64encode(data).decode()}"></audio>'
        return f"<figure>{player}<figcaption>{html.escape(caption)}</figcaption></figure>"

    def tags(self) -> dict[str, str]:
        """What the file says of itself: ASCII, and short enough for every container."""
        import json

        facts: dict[str, Any] = {"id": (self.request.id or "")[:100] or None, "seed": self.seed}
        facts |= {"model": self.model.name, "prompt": self.request.prompt[:100], "ai_generated": True}
        if self.model.random_weights:
            facts["random_weights"] = True
        return {
            "title": (self.request.id or self.request.prompt)[:100],
            "artist": f"{self.model.name} (AI-generated)",
            "software": "acestep",
            "comment": json.dumps(facts, ensure_ascii=True),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFailure:
    """One request that could not be made; its batch-mates were."""

    request: GenerationRequest
    error_class: str
    message: str
