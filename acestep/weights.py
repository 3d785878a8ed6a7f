"""Build a network without its weights, then fill it from safetensors files: every tensor, or an error with all that
does not fit. The memory needed is that of the filled network and one tensor.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from acestep.errors import CheckpointError
from acestep.weight_files import TensorInfo, read_tensors

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)
Tensors = dict[str, torch.Tensor]

_SHOWN_PER_KIND = 20


def build_module(factory: Callable[[], Module]) -> Module:
    """Call `factory` without spending memory or time on weights: they stay on the meta device until loaded.

    Buffers that the network computes for itself are computed as usual.
    """
    with _EmptyOnMeta():
        return factory()


def load_weights(
    module: nn.Module,
    folder: Path,
    *,
    unused: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    transform: Callable[[Tensors], Tensors] | None = None,
) -> None:
    """Fill a module from the safetensors files of a folder, strictly.

    Args:
        module: on any device, also meta; its parameters and persistent buffers are replaced, so nothing may hold on to
            the old ones. Computed buffers keep their dtype.
        unused: regular expressions; tensors whose names match one from the start are not loaded.
        dtype: of the floating-point weights; None: as in the file.
        device: None: the CPU.
        transform: renames or combines tensors before they are compared with the module; must work on meta tensors.

    Raises:
        CheckpointError: if a file is damaged, or listing every tensor that is missing, unexpected or misshapen.
    """
    started = time.perf_counter()
    infos = used_tensors(folder, unused)
    if problems := misfits(module, infos, transform):
        raise CheckpointError(f"the weights in {folder} do not fit the model:\n" + "\n".join(problems))
    values = _read(infos)
    if transform is not None:
        values = iter(transform(dict(values)).items())
    slots = {name: group for group in tied_names(module) for name in group}
    filled: set[str] = set()
    for name, value in values:
        if name in filled:  # The other name of a tied tensor.
            continue
        target = dtype if value.is_floating_point() else None
        # A tensor of a file is a window into it; a copy outlives the file.
        _assign(module, slots[name], value.to(device=device or "cpu", dtype=target, copy=True))
        filled.update(slots[name])
    _move_computed_buffers(module, device or "cpu")
    logger.info("loaded %d tensors from %s in %.1f s", len(filled), folder, time.perf_counter() - started)


def used_tensors(folder: Path, unused: Sequence[str]) -> dict[str, TensorInfo]:
    """What a folder's files hold, from their headers, without the tensors that match one of `unused`."""
    patterns = [re.compile(pattern) for pattern in unused]
    tensors = read_tensors(folder)
    return {name: info for name, info in tensors.items() if not any(pattern.match(name) for pattern in patterns)}


def misfits(
    module: nn.Module, infos: Mapping[str, TensorInfo], transform: Callable[[Tensors], Tensors] | None = None
) -> list[str]:
    """What does not fit between a module and a folder's tensors, a line for each kind; empty if all is well."""
    tensors = {name: torch.empty(info.shape, device="meta") for name, info in infos.items()}
    try:
        found = {name: tuple(tensor.shape) for name, tensor in (transform(tensors) if transform else tensors).items()}
    except ValueError as error:
        return [str(error)]
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [
        f"{' or '.join(group)} {list(expected[group[0]])}"
        for group in tied_names(module)
        if not any(name in found for name in group)
    ]
    extra = [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]
    misshapen = [
        f"{name} {list(found[name])}, the model has {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = {"missing": missing, "unexpected": extra, "of another shape": misshapen}
    return [f"  {kind} ({len(names)}): {_cut(names)}" for kind, names in kinds.items() if names]


def tied_names(module: nn.Module) -> list[list[str]]:
    """The names of the state dict, those of one tensor together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


class _EmptyOnMeta(TorchFunctionMode):
    """Within it `torch.empty`, with which layers make their weights, gives meta tensors; initialising them is free."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _read(infos: Mapping[str, TensorInfo]) -> Iterator[tuple[str, torch.Tensor]]:
    by_file: dict[Path, list[str]] = {}
    for name, info in infos.items():
        by_file.setdefault(info.file, []).append(name)
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as tensors:
            for name in names:
                yield name, tensors.get_tensor(name)


def _assign(module: nn.Module, names: Iterable[str], value: torch.Tensor) -> None:
    parameter = nn.Parameter(value, requires_grad=value.is_floating_point())
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._parameters:
            owner._parameters[leaf] = parameter
        else:
            owner._buffers[leaf] = value


def _move_computed_buffers(module: nn.Module, device: torch.device | str) -> None:
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                assert not buffer.is_meta, f"{type(owner).__name__}.{name} was made with torch.empty: compute it whole"
                owner._buffers[name] = buffer.to(device)


def _cut(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_SHOWN_PER_KIND])
    return shown if len(names) <= _SHOWN_PER_KIND else f"{shown}; and {len(names) - _SHOWN_PER_KIND:,} more"
