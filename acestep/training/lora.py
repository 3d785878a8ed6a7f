"""Low-rank adapters (LoRA; Hu et al., 2021) of the transformer: to train, to save, to go on with.

The base keeps its weights and their names. Each target computes `W x + scale * B (A x)`; the branch stands beside the
layer instead of being added to its weight, since a small update would be lost in the rounding of a bfloat16 weight,
and since the gradient of a whole weight is never needed then.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors.torch import save
from torch import Tensor, nn

from acestep.lora import Adapter, misfit_error
from acestep.lora_files import ORIGINAL_NAME
from acestep.lora_scaling import EMBEDDED
from acestep.models.linear import Linear, linear
from acestep.models.transformer import ACEStepTransformer
from acestep.models.transformer_block import Convolution
from acestep.problems import nearest
from acestep.whole_file import write_whole

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class LoRAConfig(BaseModel):
    """What an adapter is made of. The defaults are those of the original's example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, description="Of each update; more can say more, and more of it by heart.")
    alpha: float = Field(16.0, gt=0, description="Updates are scaled by alpha / sqrt(rank), or alpha / rank.")
    use_rslora: bool = Field(True, description="Scale by alpha / sqrt(rank) (Kalajdzievski, 2023).")
    target_modules: tuple[str, ...] = Field(
        ("linear_q", "linear_k", "linear_v", "to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        description="Layers to adapt: ends of their names, or regular expressions that match such. The default is the "
        "attention of the blocks and of the lyric encoder; speaker_embedder, genre_embedder, lyric_proj, "
        "ff.inverted_conv.conv and ff.point_conv.conv are others.",
    )

    @field_validator("target_modules")
    @classmethod
    def _can_be_read(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"{target!r} is not a regular expression: {error}") from error
        return targets

    @property
    def scale(self) -> float:
        """What `B A` is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def add_lora(transformer: ACEStepTransformer, config: LoRAConfig, generator: torch.Generator | None = None) -> None:
    """Freeze a transformer and put a branch beside each target, in float32; at first it adds nothing.

    Args:
        generator: of the first A, on the CPU; None: torch's own.

    Raises:
        ValueError: for a target that is the name of no layer, or a transformer that has branches already.
    """
    if lora_factors(transformer):
        raise ValueError("the transformer has an adapter in training already")
    chosen = _targets(transformer, config)
    transformer.requires_grad_(False)
    for name, layer in chosen.items():
        out, inner = layer.weight.shape[:2]
        down, up = (
            Linear(*sizes, bias=False, device="cpu", dtype=torch.float32)
            for sizes in ((inner, config.rank), (config.rank, out))
        )
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(up.weight)
        layer.add_module("lora_A", down.to(layer.weight.device))
        layer.add_module("lora_B", up.to(layer.weight.device))
        cast("Any", layer).lora_scale = config.scale
        if isinstance(layer, Linear):
            layer.__class__ = _AdaptedLinear
        else:
            transformer.get_submodule(name.rpartition(".")[0]).__class__ = _AdaptedConvolution


def lora_factors(transformer: ACEStepTransformer) -> dict[str, nn.Parameter]:
    """The parameters that `add_lora` put in, `[r, in]` and `[out, r]`, by their names; none without it."""
    return {name: factor for name, factor in transformer.named_parameters() if _FACTOR.fullmatch(name)}


def save_lora(
    transformer: ACEStepTransformer,
    config: LoRAConfig,
    folder: str | os.PathLike[str],
    factors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the adapter, so that `lora=folder` sounds as the transformer does now; the file.

    It has the original's name for it and PEFT's for the tensors and settings, where diffusers keeps them.

    Args:
        factors: tensors to write instead of the transformer's own, by the names of `lora_factors`: their moving
            average, for instance.

    Raises:
        ValueError: for factors of another adapter.
    """
    own = lora_factors(transformer)
    assert own, "there is no adapter in training"
    chosen: Mapping[str, Tensor] = own if factors is None else factors
    if chosen.keys() != own.keys():
        names = sorted(chosen.keys() ^ own.keys())
        raise ValueError(f"the factors are not those of the transformer: {len(names)} names differ: {names[:5]}")
    tensors: dict[str, Tensor] = {}
    for name, factor in chosen.items():
        layer = transformer.get_submodule(name.rpartition(".lora_")[0])
        # Those of a convolution are convolutions in PEFT.
        kernel = [1] * (cast("Tensor", layer.weight).ndim - 2)
        tensors[name] = factor.detach().to("cpu", torch.float32).reshape(*factor.shape, *kernel).contiguous()
    settings = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.use_rslora,
        "target_modules": list(config.target_modules),
    }
    path = Path(folder) / ORIGINAL_NAME
    write_whole(str(path), save(tensors, {"format": "pt", EMBEDDED: json.dumps(settings)}))
    return path


def load_lora_for_training(transformer: ACEStepTransformer, source: str | os.PathLike[str]) -> LoRAConfig:
    """Go on from an adapter: `add_lora` with its layers and factors; what it is made of.

    Args:
        source: a folder, file, hub id or URL, as `lora=` takes.

    Raises:
        CheckpointError: if it cannot be found or read, or is of other layers than can be trained here.
        ValueError: if its layers differ in rank or scale.
    """
    adapter, layers = Adapter.load(source), _layers(transformer)
    flat = {name.replace(".", "_"): name for name in layers}  # kohya's names have no dots.
    updates = {flat.get(name, name): update for name, update in adapter.updates.items()}
    ranks = {update.down.shape[0] for update in updates.values()}
    scales = {update.scale for update in updates.values()}
    if len(ranks) > 1 or len(scales) > 1:
        raise ValueError(f"adapter {adapter.name!r}: ranks {sorted(ranks)} and scales {sorted(scales)}; one is needed")
    unknown = [name for name in updates if name not in layers]
    misshapen = [name for name in updates.keys() & layers if not updates[name].fits(layers[name].weight.shape)]
    problems = {"modules that cannot be trained": unknown, "of another shape": sorted(misshapen)}
    if error := misfit_error(f"adapter {adapter.name!r}", problems):
        raise error
    rank = ranks.pop()
    config = LoRAConfig(rank=rank, alpha=scales.pop() * rank, use_rslora=False, target_modules=tuple(updates))
    add_lora(transformer, config)
    with torch.no_grad():
        for name, factor in lora_factors(transformer).items():
            module, _, side = name.removesuffix(".weight").rpartition(".lora_")
            update = updates[module]
            factor.copy_((update.down if side == "A" else update.up).reshape(factor.shape))
    return config


class _AdaptedLinear(Linear):
    """A linear layer with a branch."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + _branch(self, input)


class _AdaptedConvolution(Convolution):
    """A kernel of one with a branch, which hangs on the convolution inside, as its weight does."""

    def as_linear(self, x: Tensor) -> Tensor:
        return super().as_linear(x) + _branch(self.conv, x)


def _branch(layer: nn.Module, x: Tensor) -> Tensor:
    down, up = (cast("Linear", side).weight.to(x.dtype) for side in (layer.lora_A, layer.lora_B))
    return linear(linear(x, down), up) * cast("float", layer.lora_scale)


def _layers(transformer: ACEStepTransformer) -> dict[str, Linear | nn.Conv1d]:
    """What can have a branch, by name: linear layers, and convolutions that are computed as such."""
    found: dict[str, Linear | nn.Conv1d] = {}
    for name, module in transformer.named_modules():
        if type(module) is Linear:
            found[name] = module
        elif type(module) is Convolution and module.conv.kernel_size == (1,):
            found[f"{name}.conv"] = module.conv
    return found


def _targets(transformer: ACEStepTransformer, config: LoRAConfig) -> dict[str, Linear | nn.Conv1d]:
    layers = _layers(transformer)
    chosen: set[str] = set()
    for target in config.target_modules:
        # The rule of PEFT for its patterns.
        matching = {name for name in layers if re.fullmatch(rf"(.*\.)?({target})", name)}
        if not matching:
            parts = {name.split(".", start)[-1] for name in layers for start in range(name.count(".") + 1)}
            hint = nearest(target, parts) or "the end of a linear layer's name is allowed, such as to_q"
            raise ValueError(f"target_modules: {target!r} matches no layer that can be adapted; {hint}")
        chosen |= matching
    return {name: layer for name, layer in layers.items() if name in chosen}
