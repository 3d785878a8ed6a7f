"""The sampling loop: from noise to latents, for a batch of items of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acestep.models.transformer import ACEStepTransformer, Condition
from acestep.request import GenerationRequest
from acestep.sampling.guidance import decayed_scale, guided_steps, make_guidance
from acestep.sampling.noise import BatchNoise
from acestep.sampling.steppers import make_stepper

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
) -> torch.Tensor:
    """Make latents for requests that share a `batch_key`.

    Args:
        condition: rows of the requests and, if they are guided, then as many rows of their unconditional twins.
        noise: draws for the requests' seeds and lengths; the first draw is the start.

    Returns:
        float32 `[B, 8, 16, T]` on the noise's device, zero behind each item's end.
    """
    first, count = requests[0], len(requests)
    latents, frame_mask = noise.draw(), noise.frame_mask()
    settings = {
        name: torch.tensor([float(getattr(request, name)) for request in requests], device=latents.device)
        for name in ("omega_scale", "guidance_scale", "min_guidance_scale", "guidance_interval_decay")
    }
    stepper = make_stepper(first.scheduler, first.num_inference_steps, settings["omega_scale"], noise.draw, frame_mask)
    guide = make_guidance(first.guidance)
    guided = guided_steps(first.num_inference_steps, first.guidance_interval) if first.is_guided else range(0)
    alone = condition.rows(count)
    query_scale = erg_query_scale(count, latents.device) if first.use_erg_diffusion else None
    dtype = transformer.final_layer.linear.weight.dtype
    both_masks = None if frame_mask is None else frame_mask.repeat(2, 1)

    for index, timestep in enumerate(stepper.timesteps):
        x = latents.to(dtype)
        if index in guided:
            times = latents.new_full((2 * count,), timestep)
            velocity = transformer(x.repeat(2, 1, 1, 1), times, condition, both_masks, query_scale).float()
            scale = decayed_scale(
                *(settings[name] for name in ("guidance_scale", "min_guidance_scale", "guidance_interval_decay")),
                index,
                guided,
            )
            velocity = guide(velocity[:count], velocity[count:], scale, index)
        else:
            velocity = transformer(x, latents.new_full((count,), timestep), alone, frame_mask).float()
        latents = stepper.step(index, latents, velocity)
        if callback is not None:
            callback(index + 1, len(stepper.timesteps))
    return latents


def erg_query_scale(count: int, device: torch.device | str) -> torch.Tensor:
    """`[2 * count]`: 1 for the conditional rows, `ERG_SCALE` for their unconditional twins."""
    scale = torch.ones(2 * count, device=device)
    scale[count:] = ERG_SCALE
    return scale
