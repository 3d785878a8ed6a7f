"""Steppers: how latents move along the velocity. Each owns its schedule and walks it once.

A stepper has `timesteps`, the points in 0..1000 at which it wants the velocity, and `step(index, latents, velocity)`,
which may begin at any `first_evaluation` of a step.
Where the original takes a mean over the whole batch or noise from the first item's generator, these are per item:
equal at batch 1, and independent of batch-mates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch

from acestep.sampling.leaving import Remainder
from acestep.sampling.schedule import TIMESTEPS


class Stepper(Protocol):
    """What the sampling loop needs."""

    sigmas: list[float]
    """Of the steps, and 0."""
    timesteps: list[float]

    def first_evaluation(self, step: int) -> int:
        """The evaluation that begins step `step`."""

    def sigma_after(self, index: int) -> float:
        """Where the latents stand after evaluation `index`."""

    def step(self, index: int, latents: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """Latents `[B, 8, 16, T]` after evaluation `index`."""

    def keep(self, remainder: Remainder) -> None:
        """Go on with who remains of the batch."""


class Granularity:
    """The original's omega: keeps the mean of a step and rescales the rest by a logistic of `omega` (`[B]`)."""

    def __init__(self, omega: torch.Tensor, frame_mask: torch.Tensor | None = None):
        self.factor = (0.9 + 0.2 / (1 + torch.exp(-0.1 * omega)))[:, None, None, None]
        self.mask = None if frame_mask is None else frame_mask[:, None, None, :]

    def __call__(self, delta: torch.Tensor) -> torch.Tensor:
        """Rescale a step `[B, 8, 16, T]` that is zero behind each item's end."""
        if self.mask is None:
            mean = delta.mean(dim=(1, 2, 3), keepdim=True)
            return (delta - mean) * self.factor + mean
        count = self.mask.sum(dim=-1, keepdim=True) * math.prod(delta.shape[1:3])
        mean = delta.sum(dim=(1, 2, 3), keepdim=True) / count
        return ((delta - mean) * self.factor + mean) * self.mask

    def keep(self, remainder: Remainder) -> None:
        """Go on with who remains of the batch."""
        self.factor = remainder(self.factor)
        self.mask = None if self.mask is None else remainder(self.mask)


class _OneVelocityAStep:
    def __init__(self, sigmas: torch.Tensor):
        self.sigmas: list[float] = sigmas.tolist()
        self.timesteps = [TIMESTEPS * sigma for sigma in self.sigmas[:-1]]

    def first_evaluation(self, step: int) -> int:
        return step

    def sigma_after(self, index: int) -> float:
        return self.sigmas[index + 1]


class EulerStepper(_OneVelocityAStep):
    """Straight along the velocity."""

    def __init__(self, sigmas: torch.Tensor, granularity: Granularity):
        super().__init__(sigmas)
        self._granularity = granularity

    def step(self, index: int, latents: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        return latents + self._granularity(velocity * (self.sigmas[index + 1] - self.sigmas[index]))

    def keep(self, remainder: Remainder) -> None:
        self._granularity.keep(remainder)


class HeunStepper:
    """Two velocities a step, averaged; the last step is Euler's. So 2n - 1 evaluations."""

    def __init__(self, sigmas: torch.Tensor, granularity: Granularity):
        self.sigmas: list[float] = sigmas.tolist()
        inner = [sigma for sigma in self.sigmas[1:-1] for _ in range(2)]
        self.timesteps = [TIMESTEPS * sigma for sigma in (self.sigmas[0], *inner)]
        self._granularity = granularity
        self._start: tuple[torch.Tensor, torch.Tensor] | None = None

    def first_evaluation(self, step: int) -> int:
        return 2 * step

    def sigma_after(self, index: int) -> float:
        return self.sigmas[index // 2 + 1]

    def step(self, index: int, latents: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        interval = index // 2
        size = self.sigmas[interval + 1] - self.sigmas[interval]
        if self._start is None:
            self._start = (latents, velocity)
            return latents + self._granularity(velocity * size)
        (start, first), self._start = self._start, None
        return start + self._granularity((first + velocity) * (0.5 * size))

    def keep(self, remainder: Remainder) -> None:
        self._granularity.keep(remainder)
        if self._start is not None:
            latents, velocity = self._start
            self._start = (remainder(latents), remainder(velocity))


class PingPongStepper(_OneVelocityAStep):
    """Jumps to the predicted music and back up with fresh noise."""

    def __init__(self, sigmas: torch.Tensor, draw_noise: Callable[[], torch.Tensor]):
        super().__init__(sigmas)
        self._draw_noise = draw_noise

    def step(self, index: int, latents: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        clean = latents - self.sigmas[index] * velocity
        following = self.sigmas[index + 1]
        return (1 - following) * clean + following * self._draw_noise()

    def keep(self, remainder: Remainder) -> None:
        """Nothing is remembered here; what is drawn from must know who remains."""


def make_stepper(
    scheduler: str,
    sigmas: torch.Tensor,
    omega: torch.Tensor,
    draw_noise: Callable[[], torch.Tensor],
    frame_mask: torch.Tensor | None = None,
) -> Stepper:
    """The stepper of a request's `scheduler` along `sigmas` `[n + 1]`; `omega` is `[B]`."""
    if scheduler == "pingpong":
        return PingPongStepper(sigmas, draw_noise)
    kinds: dict[str, type[EulerStepper] | type[HeunStepper]] = {"euler": EulerStepper, "heun": HeunStepper}
    assert scheduler in kinds, scheduler  # GenerationRequest lets no other through
    return kinds[scheduler](sigmas, Granularity(omega, frame_mask))
