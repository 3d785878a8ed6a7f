"""`AdapterStack`: LoRA adapters held in memory for one transformer, any set of them merged into its weights.

Merged weights cost nothing a step: the network is the same, only its numbers differ. Not thread-safe, like the engine
that owns it. Conditions computed before a switch do not belong to the weights after it.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType

import torch

from acestep.errors import CheckpointError, InvalidRequestError
from acestep.lora import Adapter, LowRank, misfit_error
from acestep.models.float8 import Float8Linear
from acestep.models.transformer import ACEStepTransformer
from acestep.problems import Problem, nearest

logger = logging.getLogger(__name__)

_FIELD = "lora"


class AdapterStack:
    """Several adapters by name, one weighted set of them active at a time; at first none.

    The weights of the network change in place, so whatever holds on to them (a compiled graph) sees the change. Every
    switch starts from the base weights as they were loaded, never from merged ones, so that nothing accumulates and
    switching back restores them bit for bit.
    """

    def __init__(self, transformer: ACEStepTransformer):
        self._transformer = transformer
        self._adapters: dict[str, Adapter] = {}
        self._targets: dict[str, dict[str, LowRank]] = {}
        """By adapter, then by parameter: what its updates apply to."""
        # Copies of the base weights that adapters touch, in host memory: an adapter on all attention and feed-forward
        # layers of the published model touches 4.9 GB in bfloat16, which on the device would be taken from every
        # batch, and which the bus brings back within a second, once per switch. Pinned, so that the bus is the limit.
        self._bases: dict[str, torch.Tensor] = {}
        self._merged: set[str] = set()
        """Parameters that do not hold their base weights now."""
        self._active: dict[str, float] | None = {}
        """None: a switch was interrupted."""

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The adapters that are held, by name."""
        return MappingProxyType(self._adapters)

    @property
    def active(self) -> dict[str, float]:
        """The weights of the adapters that are merged now."""
        return dict(self._active or {})

    def add(self, adapter: Adapter) -> None:
        """Hold an adapter under its name; one that is held already, with the same content, stays.

        Raises:
            CheckpointError: listing every module that the transformer lacks or whose shape differs, or if the name is
                taken by another adapter.
        """
        if held := self._adapters.get(adapter.name):
            if held.fingerprint != adapter.fingerprint:
                raise CheckpointError(f"there is another adapter named {adapter.name!r}; unload it, or give a name")
            return
        self._targets[adapter.name] = _targets(adapter, self._transformer)
        self._adapters[adapter.name] = adapter

    def unload(self, name: str) -> None:
        """Let go of an adapter, taking it out of the active set, and of the copies that only it needed.

        Raises:
            InvalidRequestError: if there is none of this name.
        """
        self._require([name])
        if self._active is None or name in self._active:
            self.activate({other: weight for other, weight in self.active.items() if other != name})
        del self._adapters[name], self._targets[name]
        needed = {parameter for targets in self._targets.values() for parameter in targets}
        unneeded = self._bases.keys() - needed
        if unneeded:
            self._bases = {parameter: self._bases[parameter] for parameter in self._bases.keys() & needed}
            _return_pinned_memory()

    def activate(self, weights: Mapping[str, float] | None) -> bool:
        """Merge exactly this set into the transformer; several add up. None or empty: the base weights.

        Args:
            weights: by adapter; 1 is as it was trained, 0 leaves it out.

        Returns:
            Whether anything changed.

        Raises:
            InvalidRequestError: for a name that is not held or a weight that is not a finite number.
        """
        wanted = self._checked(weights or {})
        if wanted == self._active:
            return False
        started = time.perf_counter()
        self._active = None
        changes: dict[str, list[tuple[LowRank, float]]] = {parameter: [] for parameter in self._merged}
        for name, weight in wanted.items():
            for parameter, update in self._targets[name].items():
                changes.setdefault(parameter, []).append((update, weight))
        parameters = dict(self._transformer.named_parameters())
        # Inference mode, since a network that was made in it can only be changed in it.
        with torch.inference_mode():
            for parameter, updates in changes.items():
                self._write(parameter, parameters[parameter], updates)
        self._active = wanted
        seconds = time.perf_counter() - started
        logger.debug("adapters %s: %d weights in %.2f s", wanted or "none", len(changes), seconds)
        return True

    def _write(self, name: str, parameter: torch.Tensor, updates: list[tuple[LowRank, float]]) -> None:
        """Make a parameter its base plus updates. Every step leaves `_merged` true, so a failure can be made good."""
        layer = self._transformer.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, Float8Linear):
            self._write_float8(name, layer, updates)
            return
        if name not in self._bases:
            base = torch.empty_like(parameter, device="cpu", pin_memory=parameter.is_cuda)
            self._bases[name] = base.copy_(parameter, non_blocking=True)
        base = self._bases[name]
        assert base.dtype == parameter.dtype, f"the transformer's {name} was cast while adapters were held"
        if not updates:
            parameter.copy_(base, non_blocking=True)
            self._merged.discard(name)
            return
        source = base if name in self._merged else parameter  # The one on the device is faster, if it is the base.
        precise = torch.promote_types(parameter.dtype, torch.float32)
        moved = source.to(parameter.device, non_blocking=True)
        total = moved.to(precise, copy=True, memory_format=torch.contiguous_format)
        for update, weight in updates:
            update.add_to(total, weight)
        self._merged.add(name)
        parameter.copy_(total)

    def _write_float8(self, name: str, layer: Float8Linear, updates: list[tuple[LowRank, float]]) -> None:
        """As `_write`; the base is what the layer was made of, since few updates are as large as a step of float8."""
        total = layer.original.to(layer.weight.device, torch.float32, copy=True)
        for update, weight in updates:
            update.add_to(total, weight)
        self._merged.add(name)
        layer.write(total)
        if not updates:
            self._merged.discard(name)

    def _checked(self, weights: Mapping[str, float]) -> dict[str, float]:
        self._require(weights)
        problems = [
            Problem(f"{_FIELD}.{name}", weight, "it must be a finite number")
            for name, weight in weights.items()
            if not isinstance(weight, Real) or not math.isfinite(weight)
        ]
        if problems:
            raise InvalidRequestError(problems)
        # Sorted, so that one set gives the same bits in whatever order it is named.
        return {name: float(weights[name]) for name in sorted(weights) if weights[name] != 0}

    def _require(self, names: Iterable[str]) -> None:
        known = ", ".join(sorted(self._adapters)) or "none"
        problems = [
            Problem(_FIELD, name, "; ".join(filter(None, [f"held: {known}", nearest(name, self._adapters)])))
            for name in names
            if name not in self._adapters
        ]
        if problems:
            raise InvalidRequestError(problems)


def _targets(adapter: Adapter, transformer: ACEStepTransformer) -> dict[str, LowRank]:
    """The adapter's updates by parameter; those of modules that generating does not use are left out."""
    weights = {
        name.removesuffix(".weight"): parameter
        for name, parameter in transformer.named_parameters()
        if name.endswith(".weight") and parameter.ndim >= 2
    }
    flat = {name.replace(".", "_"): name for name in weights}  # kohya's names have no dots.
    targets: dict[str, LowRank] = {}
    unknown, misshapen, twice = [], [], []
    for name, update in adapter.updates.items():
        module = name if name in weights else flat.get(name)
        if module is None:
            if _is_unused(name, transformer.UNUSED_TENSORS):
                logger.debug("adapter %r: %s is not used when generating; left out", adapter.name, name)
            else:
                unknown.append(name)
        elif not update.fits(weights[module].shape):
            shapes = f"A {list(update.down.shape)}, B {list(update.up.shape)}"
            misshapen.append(f"{name} {shapes} for a weight of {list(weights[module].shape)}")
        elif f"{module}.weight" in targets:
            twice.append(name)
        else:
            targets[f"{module}.weight"] = update
    kinds = ("modules that the model does not have", "of another shape", "given twice")
    problems = dict(zip(kinds, (unknown, misshapen, twice), strict=True))
    if error := misfit_error(f"adapter {adapter.name!r}", problems):
        raise error
    if not targets:
        logger.warning("adapter %r changes nothing: generating uses none of its modules", adapter.name)
    return targets


def _is_unused(module: str, patterns: Sequence[str]) -> bool:
    flat = [pattern.replace(r"\.", "_") for pattern in patterns]
    return any(re.match(pattern, f"{module}.") for pattern in patterns) or any(
        re.match(pattern, f"{module}_") for pattern in flat
    )


def _return_pinned_memory() -> None:
    """Give the system what was pinned and is free; torch keeps it otherwise."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # A copy that is under way holds on to its memory.
        # torch 2.11 has the private name only.
        getattr(torch.accelerator, "empty_host_cache", torch._C._host_emptyCache)()
