"""What the tasks do around the sampling: where it begins, and how new sound meets the source's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from acestep.errors import InvalidRequestError
from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, num_latent_frames
from acestep.models.transformer import ACEStepTransformer, Condition
from acestep.problems import Problem
from acestep.request import GenerationRequest
from acestep.sampling import tasks as starts
from acestep.sampling.denoise import Callback
from acestep.sampling.edit import flow_edit
from acestep.sampling.noise import BatchNoise
from acestep.source import MAX_FRAMES, Source

BLEND_SAMPLES = SAMPLES_PER_FRAME
"""Samples (93 ms) on the kept side of an edge over which decoded sound turns into the source's own."""


@dataclass(frozen=True, slots=True)
class Span:
    """The new frames of a repainted or extended song of `num_frames`."""

    new: tuple[range, ...]
    num_frames: int
    source_at: int = 0
    """Where the source's first frame stands."""


def span_of(request: GenerationRequest, source: Source) -> Span:
    """Which frames a resolved repaint or extend request makes anew.

    Raises:
        InvalidRequestError: for a span outside the source, or a song beyond 240 s.
    """
    length = source.num_frames
    if request.task == "repaint":
        begin = num_latent_frames(request.repaint_start or 0.0)
        end = length if request.repaint_end is None else num_latent_frames(request.repaint_end)
        if begin >= length or end > length:
            field = "repaint_start" if begin >= length else "repaint_end"
            seconds = length * SAMPLES_PER_FRAME / SAMPLE_RATE
            raise InvalidRequestError([Problem(field, getattr(request, field), f"the source has {seconds:.2f} s")])
        if begin == end:
            allowed = f"a span has at least one latent frame ({SAMPLES_PER_FRAME / SAMPLE_RATE:.3f} s)"
            raise InvalidRequestError([Problem("repaint_end", request.repaint_end, allowed)])
        return Span((range(begin, end),), length)
    left, right = num_latent_frames(request.extend_left or 0.0), num_latent_frames(request.extend_right or 0.0)
    total = left + length + right
    if total > MAX_FRAMES:
        seconds = total * SAMPLES_PER_FRAME / SAMPLE_RATE
        raise InvalidRequestError([Problem("extend_right", request.extend_right, f"it makes {seconds:.1f} s of 240")])
    sides = (range(0, left), range(left + length, total))
    return Span(tuple(side for side in sides if side), total, left)


def start_of(
    requests: Sequence[GenerationRequest], sources: Sequence[Source | None], noise: BatchNoise
) -> starts.Start:
    """Where sampling begins for resolved requests that share a `batch_key` (those with a source come alone)."""
    first, source = requests[0], sources[0]
    steps, mine = first.num_inference_steps, noise.draw()
    if first.task == "text2music":
        return starts.from_noise(mine, steps, first.oss_steps)
    if first.task == "audio2audio":
        assert source is not None and first.reference_strength is not None
        return starts.from_reference(source.latents.to(mine.device), mine, steps, first.reference_strength)
    seeds = [request.variation_seed or 0 for request in requests]
    other = BatchNoise(seeds, noise.num_frames, noise.device).draw()
    if first.task == "retake":
        variances = torch.tensor([request.variance for request in requests], device=mine.device)
        return starts.from_noise(starts.mix_noise(mine, other, variances), steps, first.oss_steps)
    assert source is not None and first.variance is not None
    span, latents = span_of(first, source), source.latents.to(mine.device)
    if first.task == "repaint":
        return starts.repaint(latents, mine, other, span.new[0], steps, first.variance)
    right = span.num_frames - span.source_at - source.num_frames
    return starts.extend(latents, mine, other, span.source_at, right, steps, first.variance)


def keep_source(waveform: torch.Tensor, source_waveform: torch.Tensor, span: Span) -> torch.Tensor:
    """The decoded song `[2, W]` with the source's own samples where frames were kept.

    Decoding is not quite local, and a source that was audio lost something on its way through the latents; so outside
    the new frames the result is the source, sample for sample, but for `BLEND_SAMPLES` beside each edge.
    """
    weight = torch.zeros(waveform.shape[-1])  # of the source
    begin = span.source_at * SAMPLES_PER_FRAME
    end = begin + source_waveform.shape[-1]
    weight[begin:end] = 1.0
    ramp = torch.linspace(0, 1, BLEND_SAMPLES)
    for frames in span.new:
        start, stop = frames.start * SAMPLES_PER_FRAME, frames.stop * SAMPLES_PER_FRAME
        weight[start:stop] = 0.0
        before = weight[max(0, start - BLEND_SAMPLES) : start]
        before.copy_(torch.minimum(before, ramp.flip(0)[BLEND_SAMPLES - len(before) :]))
        after = weight[stop : stop + BLEND_SAMPLES]
        after.copy_(torch.minimum(after, ramp[: len(after)]))
    placed = torch.zeros_like(waveform)
    placed[:, begin:end] = source_waveform
    # Both ends of the ramp are exact: where the weight is 1, not a bit of the decoded song remains.
    return torch.where(weight == 1, placed, torch.lerp(waveform, placed, weight))


def edit_target(request: GenerationRequest) -> GenerationRequest:
    """The request of what an edit is to become."""
    changes = {"prompt": request.target_prompt, "lyrics": request.target_lyrics}
    return request.model_copy(update={name: value for name, value in changes.items() if value is not None})


def edit_latents(
    transformer: ACEStepTransformer,
    condition: Condition,
    target: Condition,
    request: GenerationRequest,
    source: Source,
    noise: BatchNoise,
    callback: Callback | None,
) -> torch.Tensor:
    """Latents `[1, 8, 16, T]` of a resolved edit request."""
    assert request.edit_n_min is not None and request.edit_n_max is not None and request.edit_n_avg is not None
    return flow_edit(
        transformer,
        condition,
        target,
        source.latents.to(noise.device),
        noise.draw,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale if request.is_guided else 1.0,
        n_min=request.edit_n_min,
        n_max=request.edit_n_max,
        n_avg=request.edit_n_avg,
        callback=callback,
    )
