"""`Trainer`: the loop that changes weights, stops anywhere and goes on as if it had not."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from acestep.training.optimization import Optimization, OptimizationConfig
from acestep.whole_file import write_whole

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


class Batches(Protocol):
    """Where batches come from: a function of the step, so that a resumed training sees what it would have seen."""

    def __call__(self, step: int, rank: int, world_size: int) -> Any:
        """The batch that one of `world_size` workers takes at a step; something with `.to(device)`."""


class Trainer:
    """Minimises the `loss` of a task: a module that takes a batch and a generator and gives losses by name.

    Args:
        task: as `FlowMatchingTraining`; what of it requires a gradient is trained.
        wrap: what makes the task work with other workers, as `DistributedDataParallel`; each worker gets its own
            batches, noise and dropouts.
        autocast: compute in bfloat16 where torch deems it safe; weights stay as they are.
    """

    def __init__(
        self,
        task: nn.Module,
        batches: Batches,
        config: OptimizationConfig,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        autocast: bool = False,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ):
        self.device = torch.device(device)
        self.task = task.to(self.device)
        self.batches, self.config = batches, config
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.autocast = autocast
        self.optimization = Optimization(self.task, config)
        self._call = wrap(self.task) if wrap else self.task
        self.step = 0
        """Steps done."""

    def run(self, until: int | None = None) -> Iterator[Metrics]:
        """Take the steps that remain, up to `until` done in all; metrics of each.

        Raises:
            FloatingPointError: when ten losses in a row are not finite.
        """
        last = self.config.steps if until is None else min(until, self.config.steps)
        broken = 0
        while self.step < last:
            metrics = self._take_step()
            broken = 0 if math.isfinite(metrics["loss"]) else broken + 1
            if broken == 10:
                raise FloatingPointError(f"ten losses in a row are not finite, the last at step {self.step}")
            yield metrics

    def _take_step(self) -> Metrics:
        started = time.perf_counter()
        batch = self.batches(self.step, self.rank, self.world_size).to(self.device)
        waited = time.perf_counter() - started
        # Of seed, step and worker alone: nothing random is carried from one step to the next.
        seed = np.random.SeedSequence([self.seed, self.step, self.rank]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0] >> 1))
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()
        with autocast:
            losses: Mapping[str, Tensor] = self._call(batch, generator)
        losses["loss"].backward()
        norm = self.optimization.step(self.step)
        metrics = {name: float(value.detach()) for name, value in losses.items()}
        metrics |= {"gradient_norm": norm, "learning_rate": self.config.rate(self.step)}
        metrics |= {"seconds": time.perf_counter() - started, "data_seconds": waited}
        self.step += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """All that going on exactly needs."""
        trained = {name: p.detach() for name, p in self.optimization.parameters.items()}
        state = self.optimization.state_dict()
        return {"step": self.step, "seed": self.seed, "parameters": trained, "optimization": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: if it is of another task, or of another seed.
        """
        own = self.optimization.parameters
        if state["parameters"].keys() != own.keys():
            names = sorted(state["parameters"].keys() ^ own.keys())
            raise ValueError(f"the training state is of another network: {len(names)} names differ: {names[:5]}")
        if state["seed"] != self.seed:
            raise ValueError(f"seed is {self.seed}, the training began with {state['seed']}")
        with torch.no_grad():
            for name, tensor in state["parameters"].items():
                own[name].copy_(tensor)
        self.optimization.load_state_dict(state["optimization"])
        self.step = state["step"]

    def save(self, path: Path) -> None:
        """Write `state_dict` to a file, whole or not at all."""
        written = io.BytesIO()
        torch.save(self.state_dict(), written)
        write_whole(str(path), written.getvalue())

    def resume(self, path: Path) -> bool:
        """Go on from a file, if there is one.

        Raises:
            ValueError: as `load_state_dict`.
        """
        if not path.exists():
            return False
        self.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        logger.info("going on from step %d (%s)", self.step, path)
        return True
