"""`SongEncoder`: a song and what it is called, as the row that training reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from acestep.checkpoint import Checkpoint
from acestep.codec import MusicCodec
from acestep.loading import load_part
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.vocoder import Vocoder
from acestep.request import GenerationRequest
from acestep.tokens import RequestTokenizer


class SongEncoder:
    """Encodes with the autoencoder and the tokenizers of a checkpoint; nothing else of it need be there."""

    def __init__(self, codec: MusicCodec, tokenizer: RequestTokenizer, device: torch.device | str = "cpu"):
        self.codec, self.tokenizer, self.device = codec.to(device), tokenizer, torch.device(device)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> SongEncoder:
        """Load what is needed.

        Raises:
            CheckpointError: when the autoencoder or a tokenizer is missing.
        """
        autoencoder = load_part(checkpoint, "autoencoder", dtype=torch.float32, device=device)
        assert isinstance(autoencoder, MusicAutoencoder)
        vocoder = checkpoint.config("vocoder")
        codec = MusicCodec(autoencoder, Vocoder.from_config(vocoder), LogMel.from_config(vocoder))
        return cls(codec, RequestTokenizer.from_checkpoint(checkpoint), device)

    def __call__(
        self, id: str, waveform: np.ndarray, prompts: Sequence[str], lyrics: str = "", language: str = "auto"
    ) -> dict[str, Any]:
        """The row (`acestep.training.dataset.SCHEMA`) of a song `[2, W]` at 44.1 kHz that goes by several prompts.

        Raises:
            InvalidRequestError: for prompts or lyrics that the model cannot read.
            ValueError: for a waveform that is not stereo, or no prompt.
        """
        if not prompts:
            raise ValueError(f"song {id} has no prompt")
        latents = self.codec.encode(torch.from_numpy(waveform).to(self.device))[0].cpu().numpy()
        tokens = [
            self.tokenizer(GenerationRequest.parse({"prompt": prompt, "lyrics": lyrics, "language": language}))
            for prompt in prompts
        ]
        return {
            "id": id,
            "prompts": list(prompts),
            "num_frames": latents.shape[-1],
            "latents": latents.astype(np.float16).tobytes(),
            "prompt_ids": [list(item.prompt_ids) for item in tokens],
            "lyric_ids": list(tokens[0].lyric_ids),
        }
