"""The original ACE-Step's networks from a checkout of its source, holding the weights of ours: to compare with.

Its package has the name of ours, so it is imported under another. It needs `diffusers`; what it imports for reading and
resampling audio is stood in for where it is missing, since only generating is compared.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from acestep.checkpoint import FOLDERS
from acestep.codec import MusicCodec
from acestep.models import transformer
from acestep.models.transformer import ACEStepTransformer
from acestep.sampling.denoise import ERG_SCALE
from benchmarks.random_networks import published_config

PACKAGE = "original_acestep"


class OriginalTransformer:
    """Its transformer and its sampling loop for one prompt, as `text2music_diffusion_process` runs it."""

    def __init__(self, source: Path, ours: ACEStepTransformer, dtype: torch.dtype, *, torch_compile: bool = False):
        self._apg = _import(source, "apg_guidance")
        schedulers = _import(source, "schedulers.scheduling_flow_match_euler_discrete")
        self._scheduler_class = schedulers.FlowMatchEulerDiscreteScheduler
        kind = _import(source, "models.ace_step_transformer").ACEStepTransformer2DModel
        device, config = ours.final_layer.linear.weight.device, published_config("transformer")
        with torch.device(device):
            self.network = kind(**{**config, "num_layers": len(ours.transformer_blocks)})
        missing, unexpected = self.network.load_state_dict(ours.state_dict(), strict=False)
        needed = [name for name in missing if not any(re.match(unused, name) for unused in ours.UNUSED_TENSORS)]
        assert not needed and not unexpected, (needed, unexpected)
        self.network = self.network.to(dtype).eval().requires_grad_(False)
        self._decode = torch.compile(self.network.decode) if torch_compile else self.network.decode

    @torch.no_grad()
    def denoise(
        self,
        hidden: torch.Tensor,
        null_hidden: torch.Tensor,
        noise: torch.Tensor,
        *,
        steps: int,
        interval: float,
        scale: float,
        after_step: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Latents `[B, 8, 16, T]` after `steps` of Euler, the middle `interval` of them guided by APG with ERG.

        Args:
            hidden, null_hidden: condition sequences `[B, N, E]` of the two branches.
            noise: to start from, `[B, 8, 16, T]`.
        """
        scheduler = self._scheduler_class(num_train_timesteps=1000, shift=3.0)
        scheduler.set_timesteps(num_inference_steps=steps, device=noise.device)
        latents, momentum = noise.to(hidden.dtype), self._apg.MomentumBuffer()
        start, end = int(steps * ((1 - interval) / 2)), int(steps * (interval / 2 + 0.5))
        shared = {
            "attention_mask": noise.new_ones(len(noise), noise.shape[-1]).to(hidden.dtype),
            "encoder_hidden_mask": noise.new_ones(hidden.shape[:2]).to(hidden.dtype),
            "output_length": noise.shape[-1],
        }
        for index, timestep in enumerate(scheduler.timesteps):
            inputs = shared | {"hidden_states": latents, "timestep": timestep.expand(len(latents))}
            velocity = self._decode(encoder_hidden_states=hidden, **inputs).sample
            if start <= index < end:
                with self._weakened():
                    null = self._decode(encoder_hidden_states=null_hidden, **inputs).sample
                velocity = self._apg.apg_forward(velocity, null, scale, momentum)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False, omega=10.0)[0]
            after_step()
        return latents

    @contextmanager
    def _weakened(self) -> Iterator[None]:
        """Its ERG: hooks that scale queries in place."""

        def weaken(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            output[:] *= ERG_SCALE
            return output

        blocks = [self.network.transformer_blocks[index] for index in transformer.WEAKENED_BLOCKS]
        layers = [layer for block in blocks for layer in (block.attn.to_q, block.cross_attn.to_q)]
        hooks = [layer.register_forward_hook(weaken) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def original_codec(source: Path, ours: MusicCodec, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Its codec, loaded by its own constructor from files in the published layout."""
    module = _import(source, "music_dcae.music_dcae_pipeline")
    with tempfile.TemporaryDirectory() as folder:
        for part, state in (("autoencoder", ours.autoencoder.state_dict()), ("vocoder", _unfolded(ours.vocoder))):
            place = Path(folder, FOLDERS[part])  # type: ignore[index]
            place.mkdir()
            (place / "config.json").write_text(json.dumps(published_config(part)))  # type: ignore[arg-type]
            tensors = {name: tensor.float().cpu().contiguous() for name, tensor in state.items()}
            save_file(tensors, place / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        paths = (str(Path(folder, FOLDERS[part])) for part in ("autoencoder", "vocoder"))  # type: ignore[index]
        codec = module.MusicDCAE(None, *paths)
    return codec.to(device).eval().to(dtype).requires_grad_(False)


def _unfolded(vocoder: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict with the head's convolutions as magnitude and direction, as they are published."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in vocoder.state_dict().items():
        owner, _, last = name.rpartition(".")
        if last != "weight" or not name.startswith("head."):
            state[name] = tensor
            continue
        dims = tuple(range(1, tensor.ndim))
        state[f"{owner}.weight_g"] = torch.linalg.vector_norm(tensor.float(), dim=dims, keepdim=True)
        state[f"{owner}.weight_v"] = tensor
    return state


def _import(source: Path, module: str) -> ModuleType:
    """A module of the original's package, imported as one of `PACKAGE`."""
    folder = source / "acestep"
    if not (folder / "models" / "ace_step_transformer.py").is_file():
        raise SystemExit(f"--original: {source} is no checkout of github.com/ace-step/ACE-Step")
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
    importlib.import_module("diffusers.models.modeling_utils")  # before anything stands in for what it looks for
    absent = [name for name in _STAND_INS if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__dict__.update(_STAND_INS[name])
        if "." in name:
            setattr(sys.modules[name.partition(".")[0]], name.partition(".")[2], sys.modules[name])
    try:
        return importlib.import_module(f"{PACKAGE}.{module}")
    finally:
        for name in absent:
            del sys.modules[name]


class _Unused(nn.Module):
    """In place of a part of the original that generating does not call."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__()


_STAND_INS: dict[str, dict[str, Any]] = {
    "librosa": {},
    "torchaudio": {},
    "torchaudio.transforms": {"Resample": _Unused, "MelScale": _Unused},
    "torchvision": {},
    "torchvision.transforms": {"Compose": _Unused, "Normalize": _Unused},
}
