"""`Decoder`: kept latents to waveforms, with the codec of the model that made them and nothing else of it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from acestep.errors import AudioFormatError
from acestep.frames import LATENTS_KEY
from pipelines.errors import UnusableInputError

if TYPE_CHECKING:
    from acestep.codec import MusicCodec


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sent to other processes as names; each loads the codec at its first song, in float32.

    Attributes:
        checkpoint: where it was opened, a local folder.
        device: where the codec computes.
    """

    checkpoint: str
    device: str = "cpu"

    @classmethod
    def open(cls, checkpoint: str, models: Set[tuple[str, str]], *, device: str = "cpu", **options: Any) -> Decoder:
        """The decoder of songs made by `models`: (fingerprint, dtype).

        Args:
            options: of `Checkpoint.open`.

        Raises:
            CheckpointError: when the checkpoint cannot be found or reached.
            UnusableInputError: when it is not the one that made the songs, or this machine has no such device.
        """
        from acestep.checkpoint import Checkpoint
        from acestep.device import best_device

        try:
            best_device(device)
        except ValueError as error:
            raise UnusableInputError(str(error)) from error
        found = Checkpoint.open(checkpoint, **options)
        own = {dtype: found.fingerprint(dtype) for _, dtype in models}
        if wrong := sorted({fingerprint for fingerprint, dtype in models if own[dtype] != fingerprint}):
            raise UnusableInputError(
                f"checkpoint: {found.name!r} is not allowed; the latents are of the model {', '.join(wrong)}, and this "
                f"is {', '.join(sorted(set(own.values())))}. Give --checkpoint, or --no-latents to use lossless files"
            )
        return cls(str(found.path), device)

    def __call__(self, data: bytes, sample_rate: int, resampler: str) -> np.ndarray:
        """The waveform of a file of latents: float32 `[2, W]` at `sample_rate` Hz.

        Raises:
            AudioFormatError: for a file that holds no latents.
        """
        import torch
        from safetensors.torch import load

        from acestep.resample import resample

        codec = _codec(self.checkpoint, self.device)
        try:
            latents = load(data)[LATENTS_KEY]
        except Exception as error:  # safetensors has errors of its own.
            raise AudioFormatError(f"its latents cannot be read: {error}") from error
        with torch.inference_mode():
            waveform = codec.decode(latents[None].float().to(self.device))[0]
            return resample(waveform, codec.sample_rate, sample_rate, cast(Any, resampler)).float().cpu().numpy()


@lru_cache(maxsize=1)
def _codec(checkpoint: str, device: str) -> MusicCodec:
    import torch

    from acestep.checkpoint import Checkpoint
    from acestep.codec import MusicCodec
    from acestep.loading import load_part
    from acestep.models.mel import LogMel

    torch.set_num_threads(1)  # Songs are spread over processes; and what is summed in one thread is summed alike.
    found = Checkpoint.open(checkpoint)
    autoencoder: Any = load_part(found, "autoencoder", dtype=torch.float32, device=device)
    vocoder: Any = load_part(found, "vocoder", dtype=torch.float32, device=device)
    return MusicCodec(autoencoder, vocoder, LogMel.from_config(found.config("vocoder")).to(device))
