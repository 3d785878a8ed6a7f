"""The sampling loop: from noise to latents, for a batch of items of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acestep.models.transformer import ACEStepTransformer, Condition
from acestep.request import GenerationRequest
from acestep.sampling.guidance import decayed_scale, double_condition, guided_steps, make_guidance
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
        condition: rows of the requests, then, if they are guided, of their unconditional twins, then, if doubly, of
            their twins that have the prompt but not the lyrics.
        noise: draws for the requests' seeds and lengths.
        start: where to begin; None: from the noise's next draw.

    Returns:
        float32 `[B, 8, 16, T]` on the noise's device, zero behind each item's end.
    """
    first, count, frame_mask = requests[0], len(requests), noise.frame_mask()
    start = start or from_noise(noise.draw(), first.num_inference_steps, first.oss_steps)
    latents = start.latents
    if latents.shape[-1] != max(noise.num_frames):  # an extended song is longer than what noise was drawn for so far
        noise = noise.of_length(latents.shape[-1])

    def per_item(name: str) -> torch.Tensor:
        return torch.tensor([float(getattr(request, name)) for request in requests], device=latents.device)

    omega, decay = per_item("omega_scale"), per_item("guidance_interval_decay")
    scale, minimum = per_item("guidance_scale"), per_item("min_guidance_scale")
    text_scale, lyric_scale = per_item("guidance_scale_text"), per_item("guidance_scale_lyric")
    if start.kept is not None:  # The original steps without granularity beside kept frames; an omega of 0 is just that.
        omega = torch.zeros_like(omega)
    stepper = make_stepper(first.scheduler, start.sigmas, omega, noise.draw, frame_mask)
    guide = make_guidance(first.guidance)
    guided = guided_steps(len(start.sigmas) - 1, first.guidance_interval) if first.is_guided else range(0)
    alone = condition.rows(count)
    branches = 3 if first.is_double else 2
    query_scale = branch_scale(count, (1.0, ERG_SCALE, 1.0)[:branches], latents.device)
    dtype = transformer.final_layer.linear.weight.dtype
    all_masks = None if frame_mask is None else frame_mask.repeat(branches, 1)

    begin = stepper.first_evaluation(start.first_step)
    for index, timestep in enumerate(stepper.timesteps[begin:], begin):
        x = latents.to(dtype)
        if index in guided:
            times = latents.new_full((branches * count,), timestep)
            weaken = query_scale if first.use_erg_diffusion else None
            velocity = transformer(x.repeat(branches, 1, 1, 1), times, condition, all_masks, weaken).float()
            cond, uncond, *rest = velocity.split(count)
            if rest:
                velocity = double_condition(cond, rest[0], uncond, text_scale, lyric_scale)
            else:
                velocity = guide(cond, uncond, decayed_scale(scale, minimum, decay, index, guided), index)
        else:
            velocity = transformer(x, latents.new_full((count,), timestep), alone, frame_mask).float()
        latents = stepper.step(index, latents, velocity)
        if start.kept is not None:
            latents = start.kept.restore(latents, stepper.sigma_after(index))
        if callback is not None:
            callback(index + 1 - begin, len(stepper.timesteps) - begin)
    return latents


def branch_scale(count: int, scales: Sequence[float], device: torch.device | str) -> torch.Tensor:
    """One scale for each row of a batch that holds `count` rows of each branch: `[count * len(scales)]`."""
    return torch.tensor(scales, device=device).repeat_interleave(count)
