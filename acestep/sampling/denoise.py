"""The sampling loop: from noise to latents, for a batch of items of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acestep.models.transformer import ACEStepTransformer, Condition
from acestep.request import GenerationRequest
from acestep.sampling.guidance import decayed_scale, guided_steps, make_guidance
from acestep.sampling.noise import BatchNoise
from acestep.sampling.steppers import make_stepper
from acestep.sampling.tasks import Start, from_noise

ERG_SCALE = 0.01
"""What ERG multiplies queries with in the unconditional branch."""

Callback = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all); what it raises ends the run."""


def denoise(
    transformer: ACEStepTransformer,
    condition: Condition,
    requests: Sequence[GenerationRequest],
    noise: BatchNoise,
    callback: Callback | None = None,
    start: Start | None = None,
) -> torch.Tensor:
    """Make latents for requests that share a `batch_key`.

    Args:
        condition: rows of the requests and, if they are guided, then as many rows of their unconditional twins.
        noise: draws for the requests' seeds and lengths.
        start: where to begin; None: from the noise's next draw.

    Returns:
        float32 `[B, 8, 16, T]` on the noise's device, zero behind each item's end.
    """
    first, count, frame_mask = requests[0], len(requests), noise.frame_mask()
    start = start or from_noise(noise.draw(), first.num_inference_steps)
    latents = start.latents
    omega, scale, minimum, decay = (
        torch.tensor([float(getattr(request, name)) for request in requests], device=latents.device)
        for name in ("omega_scale", "guidance_scale", "min_guidance_scale", "guidance_interval_decay")
    )
    if start.kept is not None:  # The original steps without granularity beside kept frames; an omega of 0 is just that.
        omega = torch.zeros_like(omega)
    stepper = make_stepper(first.scheduler, start.sigmas, omega, noise.draw, frame_mask)
    guide = make_guidance(first.guidance)
    guided = guided_steps(len(start.sigmas) - 1, first.guidance_interval) if first.is_guided else range(0)
    alone = condition.rows(count)
    query_scale = erg_query_scale(count, latents.device) if first.use_erg_diffusion else None
    dtype = transformer.final_layer.linear.weight.dtype
    both_masks = None if frame_mask is None else frame_mask.repeat(2, 1)

    begin = stepper.first_evaluation(start.first_step)
    for index, timestep in enumerate(stepper.timesteps[begin:], begin):
        x = latents.to(dtype)
        if index in guided:
            times = latents.new_full((2 * count,), timestep)
            velocity = transformer(x.repeat(2, 1, 1, 1), times, condition, both_masks, query_scale).float()
            strength = decayed_scale(scale, minimum, decay, index, guided)
            velocity = guide(velocity[:count], velocity[count:], strength, index)
        else:
            velocity = transformer(x, latents.new_full((count,), timestep), alone, frame_mask).float()
        latents = stepper.step(index, latents, velocity)
        if start.kept is not None:
            latents = start.kept.restore(latents, stepper.sigma_after(index))
        if callback is not None:
            callback(index + 1 - begin, len(stepper.timesteps) - begin)
    return latents


def erg_query_scale(count: int, device: torch.device | str) -> torch.Tensor:
    """`[2 * count]`: 1 for the conditional rows, `ERG_SCALE` for their unconditional twins."""
    scale = torch.ones(2 * count, device=device)
    scale[count:] = ERG_SCALE
    return scale
