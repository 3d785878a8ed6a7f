"""Flow-edit (arXiv 2412.08629): move a song from what its source condition says to what a target condition says.

No inversion: along the source's noise path the difference of the two velocities is integrated. As in the original
(`flowedit_diffusion_process`) every step is guided by APG against a branch without text or lyrics, nothing is weakened,
and while editing only the source's guidance has momentum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from acestep.models.transformer import ACEStepTransformer, Condition
from acestep.sampling.guidance import apg
from acestep.sampling.schedule import TIMESTEPS, flow_sigmas


def flow_edit(
    transformer: ACEStepTransformer,
    source_condition: Condition,
    target_condition: Condition,
    source: torch.Tensor,
    draw_noise: Callable[[], torch.Tensor],
    *,
    num_inference_steps: int,
    guidance_scale: float,
    n_min: float = 0.0,
    n_max: float = 1.0,
    n_avg: int = 1,
    callback: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Edited latents `[B, 8, 16, T]`.

    Args:
        source_condition: rows of the songs, and as many of their unconditional twins where `guidance_scale` guides.
        source: latents of the songs.
        n_min, n_max: shares of the schedule between which the edit happens; before, nothing is changed, after,
            the target is sampled as usual.
        n_avg: draws that each step averages over.
    """
    sigmas = flow_sigmas(num_inference_steps).tolist()
    first, last = int(num_inference_steps * n_min), int(num_inference_steps * n_max)
    source_velocity = _Velocity(transformer, source_condition, guidance_scale)
    target_velocity = _Velocity(transformer, target_condition, guidance_scale, momentum=False)
    closing_velocity = _Velocity(transformer, target_condition, guidance_scale)
    edited, sampled = source, None
    for index in range(first, num_inference_steps):
        sigma, following = sigmas[index], sigmas[index + 1]
        if index < last:
            difference = torch.zeros_like(source)
            for _ in range(n_avg):
                noisy = (1 - sigma) * source + sigma * draw_noise()
                target = target_velocity(edited + noisy - source, sigma)
                difference += (target - source_velocity(noisy, sigma)) / n_avg
            edited = edited + (following - sigma) * difference
        else:
            if sampled is None:
                sampled = edited + (1 - sigma) * source + sigma * draw_noise() - source
            sampled = sampled + (following - sigma) * closing_velocity(sampled, sigma)
        if callback is not None:
            callback(index + 1 - first, num_inference_steps - first)
    return edited if sampled is None else sampled


class _Velocity:
    """The guided velocity under one condition."""

    def __init__(
        self, transformer: ACEStepTransformer, condition: Condition, guidance_scale: float, momentum: bool = True
    ):
        self._transformer, self._condition, self._scale = transformer, condition, guidance_scale
        self._momentum = momentum
        self._running: torch.Tensor | None = None
        self._dtype = transformer.final_layer.linear.weight.dtype

    def __call__(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        count = len(latents)
        x, time = latents.to(self._dtype), latents.new_full((1,), TIMESTEPS * sigma)
        if self._scale in (0.0, 1.0):
            return self._transformer(x, time, self._condition).float()
        both = self._transformer(x.repeat(2, 1, 1, 1), time, self._condition).float()
        guided, running = apg(both[:count], both[count:], latents.new_full((count,), self._scale), self._running)
        self._running = running if self._momentum else None
        return guided
