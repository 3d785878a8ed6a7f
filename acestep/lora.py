"""`Adapter`: a LoRA adapter in memory: for each module a pair of narrow matrices and what to scale their product by.

Reads the original's names, PEFT's and kohya's. `acestep.lora_stack` applies adapters to a network.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from acestep.errors import CheckpointError
from acestep.lora_files import LoraFiles
from acestep.lora_scaling import LoraScaling, without_prefix

logger = logging.getLogger(__name__)

_MATRIX = re.compile(
    r"(?P<module>.+)\.(?:lora_|lora\.|lora_linear_layer\.|lora_(?P<table>embedding)_)(?P<side>A|B|down|up)"
    r"(?:\.(?!bias$|weight$)[^.]+)?(?:\.weight)?"  # PEFT in memory puts the adapter's name before `weight`.
)
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")

_NOT_UNDERSTOOD = "not entries of a LoRA"
_TWICE = "given twice"
_HALF = "incomplete"
_RANK = "of another rank"
_NOT_FINITE = "not finite floating-point numbers"
_KINDS = (_NOT_UNDERSTOOD, _TWICE, _HALF, _RANK, _NOT_FINITE)
_SHOWN_PER_KIND = 20


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The update of one module: `weight += scale * up @ down`, all but the first axis of each taken as one."""

    down: torch.Tensor
    """`[r, in]`, or `[r, in, kernel...]` of a convolution; called A in most files."""
    up: torch.Tensor
    """`[out, r]`, or `[out, r, 1...]`; called B."""
    scale: float

    def fits(self, shape: Iterable[int]) -> bool:
        """Whether it can update a weight of this shape."""
        out, *inner = _trimmed(shape)
        rank = self.down.shape[0]
        return _trimmed(self.down.shape) == [rank, *inner] and _trimmed(self.up.shape) == [out, rank]

    def add_to(self, weight: torch.Tensor, factor: float) -> None:
        """Add the update times `factor` to a contiguous weight, in its dtype and on its device."""
        down, up = (side.to(weight.device, weight.dtype).flatten(1) for side in (self.down, self.up))
        weight.view(weight.shape[0], -1).addmm_(up, down, alpha=self.scale * factor)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter, in CPU memory in the dtype of its file.

    Attributes:
        name: what requests call it.
        fingerprint: sha256 of the content: of the file, with that of PEFT's settings where there are some.
        updates: by module, without the prefixes that trainers put in front.
    """

    name: str
    fingerprint: str
    updates: Mapping[str, LowRank]

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Adapter:
        """Read an adapter from a folder, file, hub id or URL; see `LoraFiles.open`.

        Scaled by alpha / r (alpha / sqrt(r) where it is rank-stabilised) if the file or PEFT's settings say alpha,
        else by 1.

        Raises:
            CheckpointError: if it cannot be found or is damaged, or listing everything in it that is not understood.
        """
        files = LoraFiles.open(source, storage_options=storage_options, name=name)
        tensors, metadata = _read(files.weights)
        where = f"adapter {files.name!r} ({files.weights})"
        updates = _updates(tensors, LoraScaling.read(where, metadata, files.config), where)
        scales = sorted({update.scale for update in updates.values()})
        shown = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
        logger.info("%s: %d modules, scale %s", where, len(updates), shown)
        return cls(files.name, files.fingerprint(), updates)

    @property
    def size_bytes(self) -> int:
        """Bytes of its matrices."""
        return sum(side.nbytes for update in self.updates.values() for side in (update.down, update.up))


def misfit_error(where: str, problems: Mapping[str, list[str]]) -> CheckpointError | None:
    """One error with a line for each kind of problem; None if there are none."""
    lines = [f"  {kind} ({len(found)}): {_cut(found)}" for kind, found in problems.items() if found]
    return CheckpointError("\n".join([f"{where} cannot be used:", *lines])) if lines else None


def _read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as content:
            # A tensor of a file is a window into it; a copy outlives the file.
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118 - not a dict
            return tensors, dict(content.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read: {error}; fetch it again") from error


def _updates(tensors: Mapping[str, torch.Tensor], scaling: LoraScaling, where: str) -> dict[str, LowRank]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    alphas: dict[str, float] = {}
    problems: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            problems[_NOT_FINITE].append(name)
        if (match := _MATRIX.fullmatch(name)) and tensor.ndim >= 2 and tensor.numel() > 0:
            is_down = match["side"] in ("A", "down")
            if match["table"]:  # An embedding's rows are its inputs: the same product, transposed.
                is_down, tensor = not is_down, tensor.transpose(0, 1)
            pair = sides.setdefault(without_prefix(match["module"]), {})
            side = "down" if is_down else "up"
            if side in pair:
                problems[_TWICE].append(name)
            pair[side] = tensor
        elif (match := _ALPHA.fullmatch(name)) and tensor.numel() == 1:
            alphas[without_prefix(match["module"])] = float(tensor)
        else:
            problems[_NOT_UNDERSTOOD].append(f"{name} {list(tensor.shape)}")
    updates = {}
    for module, pair in sides.items():
        if len(pair) < 2:
            problems[_HALF].append(f"{module} has {'A' if 'down' in pair else 'B'} only")
            continue
        rank, expected = pair["down"].shape[0], scaling.rank(module)
        if expected is not None and rank != expected:
            problems[_RANK].append(f"{module} has {rank}, its settings say {expected}")
        updates[module] = LowRank(pair["down"], pair["up"], scaling.scale(module, rank, alphas.get(module)))
    problems[_HALF] += [f"{module} has alpha only" for module in alphas if module not in sides]
    if error := misfit_error(where, problems):
        raise error
    if not updates:
        raise CheckpointError(f"{where} holds no LoRA entries such as <module>.lora_A.weight")
    return updates


def _trimmed(shape: Iterable[int]) -> list[int]:
    """A shape without the ones that a 1x1 convolution has behind its two axes."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return sizes


def _cut(found: list[str]) -> str:
    shown = "; ".join(found[:_SHOWN_PER_KIND])
    return shown if len(found) <= _SHOWN_PER_KIND else f"{shown}; and {len(found) - _SHOWN_PER_KIND:,} more"
