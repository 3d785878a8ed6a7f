"""Local networks applied in windows: a long signal through convolutions at the memory of a short one, equal to the
whole up to rounding.

A window reaches beyond what is kept of it by as far as the layers see, which they tell by their kernels; at the ends
of the signal it stops where the signal does, so that the layers pad there as they always do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `low` to `high` are read, of which `start` to `stop` are kept."""

    low: int
    start: int
    stop: int
    high: int


def windows(num_frames: int, size: int, reach: int) -> Iterator[Window]:
    """Windows that keep `size` frames each (the last what is left) and read up to `reach` more on both sides."""
    assert num_frames > 0 and size > 0 and reach >= 0, (num_frames, size, reach)
    for start in range(0, num_frames, size):
        stop = min(start + size, num_frames)
        yield Window(max(0, start - reach), start, stop, min(num_frames, stop + reach))


def in_windows(network: Callable[[Tensor], Tensor], x: Tensor, size: int | None, reach: int) -> Tensor:
    """What `network` gives for `x` `[..., frames]`, computed over windows of `size` frames; None: all at once.

    Args:
        network: gives a fixed whole number of frames for each frame, none of which depends on a frame farther than
            `reach` from its own.
    """
    num_frames = x.shape[-1]
    if size is None or size >= num_frames:
        return network(x)
    out: Tensor | None = None
    for window in windows(num_frames, size, reach):
        part = network(x[..., window.low : window.high])
        scale, rest = divmod(part.shape[-1], window.high - window.low)
        assert rest == 0, f"{window.high - window.low} frames became {part.shape[-1]}"
        if out is None:
            out = part.new_empty(*part.shape[:-1], scale * num_frames)
        first = scale * (window.start - window.low)
        kept = slice(first, first + scale * (window.stop - window.start))
        out[..., scale * window.start : scale * window.stop] = part[..., kept]
    assert out is not None
    return out


def reach_of(conv: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d, after: int = 0) -> int:
    """Frames needed beyond each end of a convolution's input to know `after` frames beyond each end of its output.

    Along the last axis, and for a padding that keeps length (times the stride, if transposed).
    """
    padding = conv.padding[-1]
    assert isinstance(padding, int)
    if isinstance(conv, nn.ConvTranspose1d):
        return -(-(after + padding) // conv.stride[-1])
    span = conv.dilation[-1] * (conv.kernel_size[-1] - 1)
    assert conv.stride[-1] == 1 and span == 2 * padding, conv
    return after + padding


def halved(after: int) -> int:
    """Frames before a doubling of the frame rate that hold `after` frames behind it."""
    return -(-after // 2)


def all_at_once(size: int | None, x: Tensor) -> bool:
    """Whether windows of `size` frames make one of `x`."""
    return size is None or size >= x.shape[-1]


def summed(parts: Iterator[Tensor]) -> Tensor:
    """The sum of tensors that are made one by one."""
    total: Tensor | None = None
    for part in parts:
        total = part if total is None else torch.add(total, part)
    assert total is not None
    return total
