"""Guidance: what the conditional and the weakened prediction say together.

Pure functions over `[B, 8, 16, T]` tensors that are zero behind each item's end, with a scale of shape `[B]`.
Sums are in float32 (the original projects in float64, which accelerators are slow at; the difference is rounding).
"""

from __future__ import annotations

import torch

from acestep.sampling.leaving import Remainder

APG_MOMENTUM = -0.75
APG_NORM_THRESHOLD = 2.5
CFG_STAR_ZERO_STEPS = 1
PLANE = (-2, -1)
"""Height and time: the dimensions over which APG measures and projects."""


def apg(
    cond: torch.Tensor, uncond: torch.Tensor, scale: torch.Tensor, running: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adaptive projected guidance (arXiv 2410.02416) with momentum -0.75 and norm threshold 2.5.

    Returns:
        The guided prediction, and the running difference to hand in at the next guided step.
    """
    running = cond - uncond if running is None else cond - uncond + APG_MOMENTUM * running
    norm = running.norm(dim=PLANE, keepdim=True)
    difference = running * (APG_NORM_THRESHOLD / norm.clamp_min(1e-12)).clamp_max(1.0)
    along = cond / cond.norm(dim=PLANE, keepdim=True).clamp_min(1e-12)
    orthogonal = difference - (difference * along).sum(dim=PLANE, keepdim=True) * along
    return cond + (_per_item(scale) - 1) * orthogonal, running


def cfg(cond: torch.Tensor, uncond: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance."""
    return uncond + _per_item(scale) * (cond - uncond)


def cfg_star(cond: torch.Tensor, uncond: torch.Tensor, scale: torch.Tensor, zero: bool) -> torch.Tensor:
    """CFG-Zero* (arXiv 2503.18886): the unconditional part at its optimal scale; nothing at all where `zero`."""
    if zero:
        return torch.zeros_like(cond)
    dot = (cond * uncond).sum(dim=(1, 2, 3), keepdim=True)
    best = dot / (uncond.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
    return cfg(cond, uncond * best, scale)


def double_condition(
    cond: torch.Tensor,
    text_only: torch.Tensor,
    uncond: torch.Tensor,
    text_scale: torch.Tensor,
    lyric_scale: torch.Tensor,
) -> torch.Tensor:
    """Text and lyrics guided apart: `text_only` is the prediction without lyrics."""
    text, lyric = _per_item(text_scale), _per_item(lyric_scale)
    return (1 - text) * uncond + (text - lyric) * text_only + lyric * cond


class Guidance:
    """The guidance of one sampling run, remembering what it must."""

    def __init__(self, kind: str):
        self._kind = kind
        self._running: torch.Tensor | None = None

    def __call__(self, cond: torch.Tensor, uncond: torch.Tensor, scale: torch.Tensor, index: int) -> torch.Tensor:
        """The guided prediction of evaluation `index`."""
        if self._kind == "cfg":
            return cfg(cond, uncond, scale)
        if self._kind == "cfg_star":
            return cfg_star(cond, uncond, scale, index <= CFG_STAR_ZERO_STEPS)
        guided, self._running = apg(cond, uncond, scale, self._running)
        return guided

    def keep(self, remainder: Remainder) -> None:
        """Go on with who remains of the batch."""
        self._running = None if self._running is None else remainder(self._running)


def make_guidance(kind: str) -> Guidance:
    """The guidance of a request's `guidance`."""
    assert kind in ("apg", "cfg", "cfg_star"), kind  # GenerationRequest lets no other through
    return Guidance(kind)


def guided_steps(num_inference_steps: int, interval: float) -> range:
    """The evaluations that are guided: the middle `interval` of the steps."""
    start = int(num_inference_steps * ((1 - interval) / 2))
    return range(start, int(num_inference_steps * (interval / 2 + 0.5)))


def decayed_scale(
    scale: torch.Tensor, minimum: torch.Tensor, decay: torch.Tensor, index: int, guided: range
) -> torch.Tensor:
    """The scale `[B]` at evaluation `index`: linear towards `minimum` over the interval; a `decay` of 0 keeps it."""
    # An interval of one step divides by zero in the original; it has not decayed yet.
    progress = (index - guided.start) / max(1, len(guided) - 1)
    return scale - (scale - minimum) * progress * decay


def _per_item(scale: torch.Tensor) -> torch.Tensor:
    return scale[:, None, None, None]
