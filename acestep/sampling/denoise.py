"""The sampling loop: from noise to latents, for a batch of items of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from acestep.models.transformer import ACEStepTransformer, Condition
from acestep.request import GenerationRequest
from acestep.sampling.guidance import decayed_scale, double_condition, guided_steps, make_guidance
from acestep.sampling.leaving import Company, Remainder
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
    company: Company | None = None,
) -> torch.Tensor:
    """Make latents for requests that share a `batch_key`.

    Args:
        condition: rows of the requests, then, if they are guided, of their unconditional twins, then, if doubly, of
            their twins that have the prompt but not the lyrics. It loses the rows of songs that leave.
        noise: draws for the requests' seeds and lengths. It is spent afterwards.
        start: where to begin; None: from the noise's next draw.
        company: asked after each step who stays; None: all do.

    Returns:
        float32 `[B, 8, 16, T]` on the noise's device, zero behind each item's end; B and T are those of who stayed.

    Raises:
        CancelledError: when everybody left.
    """
    first = requests[0]
    start = start or from_noise(noise.draw(), first.num_inference_steps, first.oss_steps)
    latents, kept = start.latents, start.kept
    frame_mask = noise.frame_mask()
    if latents.shape[-1] != max(noise.num_frames):  # an extended song is longer than what noise was drawn for so far
        noise = noise.of_length(latents.shape[-1])
    # The original steps without granularity beside kept frames; an omega of 0 is just that.
    omega = per_item(requests, "omega_scale", latents.device) * (kept is None)
    stepper = make_stepper(first.scheduler, start.sigmas, omega, noise.draw, frame_mask)
    velocity = _GuidedVelocity(transformer, condition, requests, frame_mask, len(start.sigmas) - 1, stepper.timesteps)

    begin = stepper.first_evaluation(start.first_step)
    total = len(stepper.timesteps) - begin
    for index in range(begin, len(stepper.timesteps)):
        done = index + 1 - begin
        latents = stepper.step(index, latents, velocity(index, latents))
        if kept is not None:
            latents = kept.restore(latents, stepper.sigma_after(index))
        if callback is not None:
            callback(done, total)
        rows = company.after_step(done, total) if company is not None else None
        if rows is not None:
            noise.keep(rows)
            remainder = Remainder(rows, max(noise.num_frames), latents.device)
            latents = remainder(latents)
            kept = None if kept is None else kept.of(remainder)
            stepper.keep(remainder)
            velocity.keep(remainder, noise.frame_mask())
    return latents


class _GuidedVelocity:
    """The velocity of a batch at `timesteps`, guided at those of `num_steps` evaluations where its requests want it."""

    def __init__(
        self,
        transformer: ACEStepTransformer,
        condition: Condition,
        requests: Sequence[GenerationRequest],
        frame_mask: torch.Tensor | None,
        num_steps: int,
        timesteps: Sequence[float],
    ):
        first = requests[0]
        self._transformer, self._condition = transformer, condition
        device = transformer.final_layer.linear.weight.device
        self._times = transformer.embed_time(torch.tensor(timesteps, dtype=torch.float32, device=device))
        self._guide = make_guidance(first.guidance)
        self._guided = guided_steps(num_steps, first.guidance_interval) if first.is_guided else range(0)
        self._branches = 1 + first.is_guided + first.is_double
        self._weakens = first.use_erg_diffusion
        self._settle(requests, frame_mask)

    def _settle(self, requests: Sequence[GenerationRequest], frame_mask: torch.Tensor | None) -> None:
        """Have ready what depends on nothing but who is in the batch."""
        device = self._transformer.final_layer.linear.weight.device
        self._requests, self._frame_mask = requests, frame_mask
        self._all_masks = None if frame_mask is None else frame_mask.repeat(self._branches, 1)
        self._alone = self._condition.rows(len(requests))
        self._query_scale = None
        if self._weakens:
            self._query_scale = branch_scale(len(requests), (1.0, ERG_SCALE, 1.0)[: self._branches], device)
        self._scale = per_item(requests, "guidance_scale", device)
        self._minimum = per_item(requests, "min_guidance_scale", device)
        self._decay = per_item(requests, "guidance_interval_decay", device)
        self._text_scale = per_item(requests, "guidance_scale_text", device)
        self._lyric_scale = per_item(requests, "guidance_scale_lyric", device)

    def __call__(self, index: int, latents: torch.Tensor) -> torch.Tensor:
        """At `latents` `[B, 8, 16, T]`, for evaluation `index`: float32 of the same shape."""
        count, x = len(latents), latents.to(self._transformer.final_layer.linear.weight.dtype)
        time = self._times.at(index)
        if index not in self._guided:
            return self._transformer(x, time, self._alone, self._frame_mask).float()
        x = x.repeat(self._branches, 1, 1, 1)
        velocity = self._transformer(x, time, self._condition, self._all_masks, self._query_scale).float()
        cond, uncond, *rest = velocity.split(count)
        if rest:
            return double_condition(cond, rest[0], uncond, self._text_scale, self._lyric_scale)
        scale = decayed_scale(self._scale, self._minimum, self._decay, index, self._guided)
        return self._guide(cond, uncond, scale, index)

    def keep(self, remainder: Remainder, frame_mask: torch.Tensor | None) -> None:
        """Go on with who remains; `frame_mask` is theirs."""
        count = len(self._requests)
        self._alone = self._condition  # its views would hold on to the memory of who left
        self._condition.keep(torch.cat([remainder.index + branch * count for branch in range(self._branches)]))
        self._guide.keep(remainder)
        self._settle([self._requests[row] for row in remainder.rows], frame_mask)


def per_item(requests: Sequence[GenerationRequest], name: str, device: torch.device | str) -> torch.Tensor:
    """A number of each request: float32 `[B]`."""
    return torch.tensor([float(getattr(request, name)) for request in requests], device=device)


def branch_scale(count: int, scales: Sequence[float], device: torch.device | str) -> torch.Tensor:
    """One scale for each row of a batch that holds `count` rows of each branch: `[count * len(scales)]`."""
    return torch.tensor(scales, device=device).repeat_interleave(count)
