"""`Optimization`: AdamW, warm-up and cosine, clipping, a moving average of the weights."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn


class OptimizationConfig(BaseModel):
    """How the weights are changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(10_000, ge=1, description="Changes of the weights in all.")
    learning_rate: float = Field(1e-4, gt=0, description="At its highest, after the warm-up.")
    warmup_steps: int = Field(200, ge=0, description="Steps over which the learning rate rises from 0.")
    final_share: float = Field(0.1, ge=0, le=1, description="Of the learning rate, at the end of the cosine.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's averages.")
    weight_decay: float = Field(0.01, ge=0, description="Of matrices and kernels; vectors have none.")
    clip: float = Field(1.0, gt=0, description="Greatest norm of the gradients, all together.")
    average: float = Field(0.999, ge=0, lt=1, description="Decay of the weights' moving average; 0: none is kept.")

    def rate(self, step: int) -> float:
        """Learning rate of a step, 0 the first."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)


class Optimization:
    """The optimiser of a network's trainable parameters, and their moving average."""

    def __init__(self, module: nn.Module, config: OptimizationConfig):
        self.config = config
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        assert self.parameters, "nothing to train"
        matrices = [p for p in self.parameters.values() if p.ndim >= 2]
        vectors = [p for p in self.parameters.values() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas)
        averaged = self.parameters if config.average else {}
        self.average = {name: p.detach().clone().float() for name, p in averaged.items()}

    def step(self, index: int) -> float:
        """Change the weights by their gradients and clear those; the norm that the gradients had.

        A gradient that is not finite changes nothing.
        """
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip))
        if math.isfinite(norm):
            for group in self.adamw.param_groups:
                group["lr"] = self.config.rate(index)
            self.adamw.step()
            # An average over more steps than there were would be one of the first, random weights.
            self._update_average(min(self.config.average, (1 + index) / (10 + index)))
        self.adamw.zero_grad(set_to_none=True)
        return norm

    def averaged(self) -> dict[str, torch.Tensor]:
        """What to keep of the training, by the parameter's name: the average, or the weights where none is kept."""
        source: dict[str, torch.Tensor] = self.average or dict(self.parameters)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in source.items()}

    def state_dict(self) -> dict[str, object]:
        """All that the next step depends on but the weights themselves."""
        return {"adamw": self.adamw.state_dict(), "average": self.average}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from `state_dict`."""
        self.adamw.load_state_dict(state["adamw"])  # type: ignore[arg-type]
        for name, tensor in state["average"].items():  # type: ignore[attr-defined]
            self.average[name].copy_(tensor)

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        if self.average:
            weights = [self.parameters[name].float() for name in self.average]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)
