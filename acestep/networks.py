"""`Networks`: the four parts of the model, loaded, and where they are at work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from acestep.checkpoint import Checkpoint
from acestep.codec import MusicCodec
from acestep.compiling import compile_blocks
from acestep.device import FLOAT8, require_dtype
from acestep.loading import load_part
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.float8 import to_float8
from acestep.models.mel import LogMel
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.transformer import ACEStepTransformer
from acestep.models.vocoder import Vocoder

logger = logging.getLogger(__name__)


class Networks:
    """Prompt encoder, transformer and codec.

    Args:
        device: where they compute.
        cpu_offload: keep them in host memory and bring each to the device for its stage only.
        torch_compile: compile the transformer's blocks; the warm-up then takes minutes, the first time on a machine.
    """

    def __init__(
        self,
        prompt_encoder: PromptEncoder,
        transformer: ACEStepTransformer,
        codec: MusicCodec,
        device: torch.device,
        *,
        cpu_offload: bool = False,
        torch_compile: bool = False,
    ):
        self.prompt_encoder = prompt_encoder
        self.transformer = transformer
        self.codec = codec
        self.device = device
        self.compiled = torch_compile
        self._offload = cpu_offload and device.type != "cpu"
        if torch_compile:
            compile_blocks(transformer.transformer_blocks)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        cpu_offload: bool = False,
        torch_compile: bool = False,
    ) -> Networks:
        """Load a checkpoint's parts.

        Raises:
            CheckpointError: when something is missing or does not fit.
            ValueError: for a dtype that the device does not compute in.
        """
        require_dtype(dtype, device)
        in_float8 = dtype == FLOAT8
        dtype = torch.bfloat16 if in_float8 else dtype
        where = torch.device("cpu") if cpu_offload else device
        codec = MusicCodec(
            cast(MusicAutoencoder, load_part(checkpoint, "autoencoder", dtype=dtype, device=where)),
            cast(Vocoder, load_part(checkpoint, "vocoder", dtype=dtype, device=where)),
            LogMel.from_config(checkpoint.config("vocoder")).to(where),
        )
        transformer = cast(ACEStepTransformer, load_part(checkpoint, "transformer", dtype=dtype, device=where))
        if in_float8:
            to_float8(transformer)
        return cls(
            cast(PromptEncoder, load_part(checkpoint, "text_encoder", dtype=dtype, device=where)),
            transformer,
            codec,
            device,
            cpu_offload=cpu_offload,
            torch_compile=torch_compile,
        )

    @contextmanager
    def at_work(self, *parts: nn.Module) -> Iterator[None]:
        """Have `parts` on the device within this context."""
        if not self._offload:
            yield
            return
        try:
            for part in parts:
                part.to(self.device)
            yield
        finally:
            for part in parts:
                part.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
