"""`LoraScaling`: what an adapter's file and settings say about alpha and rank, wherever its trainer wrote it down."""

from __future__ import annotations

import json
import math
import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acestep.errors import CheckpointError
from acestep.problems import shown
from acestep.weight_files import read_json

EMBEDDED = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's settings in a safetensors file: JSON under this name in the metadata."""

_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.", "module.", "_orig_mod.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False, "none": False, "": False}


def without_prefix(name: str) -> str:
    """A module's name, or a setting's, as the network has it: without what trainers put in front."""
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    for prefix in _FLAT_PREFIXES:
        name = name.removeprefix(prefix)
    return name


@dataclass(frozen=True, slots=True)
class LoraScaling:
    """Alpha and rank of an adapter's modules, as far as they are said."""

    alpha: float | None = None
    r: int | None = None
    rank_stabilised: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Alpha of the modules whose names end with, or match, a key; as PEFT has it."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, where: str, metadata: Mapping[str, str], config: Path | None) -> LoraScaling:
        """Look into PEFT's settings, those that diffusers embeds, and the file's own metadata, in this order.

        Raises:
            CheckpointError: for a value that cannot be meant.
        """
        embedded = {}
        if EMBEDDED in metadata:
            try:
                embedded = {without_prefix(key): value for key, value in json.loads(metadata[EMBEDDED]).items()}
            except (ValueError, AttributeError) as error:
                raise CheckpointError(f"{where}: its metadata {EMBEDDED} is not a JSON object") from error
        said: Mapping[str, Any] = ChainMap(read_json(config) if config else {}, embedded, dict(metadata))
        kind = said.get("peft_type") or "LORA"
        if str(kind).rpartition(".")[2].upper() != "LORA":
            raise CheckpointError(f"{where}: peft_type {shown(kind)} is not supported; only LORA is")
        try:
            alpha = said.get("lora_alpha", said.get("alpha"))
            return cls(
                alpha=None if alpha is None else _finite(alpha),
                r=None if said.get("r") is None else int(said["r"]),
                rank_stabilised=_TRUTHS[str(said.get("use_rslora")).strip().lower()],
                alpha_pattern={key: _finite(value) for key, value in _pattern(said, "alpha_pattern")},
                rank_pattern={key: int(value) for key, value in _pattern(said, "rank_pattern")},
            )
        except (ValueError, TypeError, AttributeError, KeyError, re.error) as error:
            keys = ("lora_alpha", "alpha", "r", "use_rslora", "alpha_pattern", "rank_pattern")
            values = ", ".join(f"{key} {shown(said[key])}" for key in keys if key in said)
            raise CheckpointError(f"{where}: its settings cannot be used ({error}): {values}") from error

    def rank(self, module: str) -> int | None:
        """The rank that a module is said to have."""
        return _matching(self.rank_pattern, module, self.r)

    def scale(self, module: str, rank: int, own_alpha: float | None) -> float:
        """What to multiply `up @ down` by; `own_alpha` is what stands beside the module's matrices."""
        alpha = _matching(self.alpha_pattern, module, self.alpha) if own_alpha is None else own_alpha
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def _pattern(said: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    pairs = [(without_prefix(pattern), value) for pattern, value in (said.get(key) or {}).items()]
    for pattern, _ in pairs:
        re.compile(pattern)
    return pairs


def _matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # The rule of peft.utils.other.get_pattern_key.
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
