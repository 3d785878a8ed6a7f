"""Sources: the songs that repaint, extend, edit and audio2audio begin with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from acestep.errors import InvalidRequestError
from acestep.frames import LATENT_CHANNELS, LATENT_HEIGHT, LATENTS_KEY, SAMPLE_RATE, num_latent_frames
from acestep.problems import Problem

if TYPE_CHECKING:
    from acestep.codec import MusicCodec

MAX_FRAMES = num_latent_frames(240)


@dataclass(frozen=True, slots=True)
class Source:
    """A song to begin with.

    Attributes:
        latents: float32 `[1, 8, 16, T]`.
        waveform: what they were made from, `[2, W]` at 44,100 Hz, or None where only latents are known.
    """

    latents: torch.Tensor
    waveform: torch.Tensor | None = None

    @classmethod
    def of_latents(cls, latents: torch.Tensor) -> Source:
        """A source from latents `[8, 16, T]`, such as a result's.

        Raises:
            InvalidRequestError: for another shape.
        """
        if latents.ndim != 3 or latents.shape[:2] != (LATENT_CHANNELS, LATENT_HEIGHT) or not latents.shape[-1]:
            allowed = f"latents must be [{LATENT_CHANNELS}, {LATENT_HEIGHT}, T]"
            raise InvalidRequestError([Problem("source", list(latents.shape), allowed)])
        return cls(latents[None].float())

    @classmethod
    def of_waveform(cls, waveform: torch.Tensor, sample_rate: int, codec: MusicCodec) -> Source:
        """A source from a waveform `[2, W]` (or mono `[1, W]`, `[W]`).

        Raises:
            InvalidRequestError: for another shape, or more than 240 s.
        """
        from acestep.resample import resample

        waveform = waveform[None] if waveform.ndim == 1 else waveform
        if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or not waveform.shape[-1]:
            raise InvalidRequestError([Problem("source", list(waveform.shape), "a waveform must be [2, W]")])
        stereo = resample(waveform.float().expand(2, -1), sample_rate, SAMPLE_RATE)
        if stereo.shape[-1] / SAMPLE_RATE > 240:
            seconds = stereo.shape[-1] / SAMPLE_RATE
            raise InvalidRequestError([Problem("source", f"{seconds:.1f} s", "the longest source is 240 s")])
        device = next(codec.parameters()).device
        latents = codec.encode(stereo.to(device))[..., :MAX_FRAMES]
        return cls(latents, stereo[:, : latents.shape[-1] * codec.samples_per_frame])

    @classmethod
    def of(cls, value: Any, codec: MusicCodec) -> Source:
        """A source from what a person has at hand: a result, latents `[8, 16, T]`, or (waveform, sample rate).

        Raises:
            InvalidRequestError: for anything else.
        """
        if hasattr(value, "latents"):
            return cls.of_latents(value.latents)
        if isinstance(value, torch.Tensor):
            return cls.of_latents(value)
        if isinstance(value, tuple) and len(value) == 2:
            return cls.of_waveform(torch.as_tensor(value[0]), int(value[1]), codec)
        allowed = "it must be a path, a URL, a result, latents [8, 16, T] or (waveform, sample rate)"
        raise InvalidRequestError([Problem("source", type(value).__name__, allowed)])

    @property
    def address(self) -> str:
        """A name for a source that has no path: the hash of its latents."""
        return f"memory:{hashlib.sha256(self.latents.numpy(force=True).tobytes()).hexdigest()[:16]}"

    @property
    def num_frames(self) -> int:
        """Latent frames T."""
        return self.latents.shape[-1]


def load_source(address: str, codec: MusicCodec) -> Source:
    """Read a source from a path or URL: latents (.safetensors) or any audio file that libsndfile reads.

    Raises:
        InvalidRequestError: when it cannot be read or is longer than 240 s.
    """
    from acestep.audio import load_audio

    try:
        if address.endswith(".safetensors"):
            return Source.of_latents(_read_latents(address))
        waveform, sample_rate = load_audio(address)
    except InvalidRequestError:
        raise
    except Exception as error:
        raise InvalidRequestError([Problem("source", address, f"it cannot be read: {error}")]) from error
    return Source.of_waveform(waveform, sample_rate, codec)


def _read_latents(address: str) -> torch.Tensor:
    import fsspec
    from safetensors.torch import load

    with fsspec.open(address, "rb") as file:
        tensors = load(file.read())
    if LATENTS_KEY not in tensors:
        raise InvalidRequestError([Problem("source", address, f"the file holds no tensor {LATENTS_KEY!r}")])
    return tensors[LATENTS_KEY]
