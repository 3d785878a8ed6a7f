"""Local networks applied in windows: a long signal at the memory of a short one, equal to the whole up to rounding.

A window reads beyond what is kept of it by as far as the layers see, which they tell by their kernels. At the ends of
the signal it stops where the signal does, so that the layers pad there as they always do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `low` to `high` of a signal, of which `start` to `stop` are kept."""

    low: int
    start: int
    stop: int
    high: int

    @property
    def read(self) -> slice:
        """What to cut out of the signal."""
        return slice(self.low, self.high)

    @property
    def kept(self) -> slice:
        """What to keep of the cut."""
        return slice(self.start - self.low, self.stop - self.low)


def windows(num_frames: int, size: int, reach: int) -> Iterator[Window]:
    """Windows that keep `size` frames each, the last what is left, and read up to `reach` more on both sides."""
    assert num_frames > 0 and size > 0 and reach >= 0, (num_frames, size, reach)
    for start in range(0, num_frames, size):
        stop = min(start + size, num_frames)
        yield Window(max(0, start - reach), start, stop, min(num_frames, stop + reach))


def in_windows(network: Callable[[Tensor], Tensor], x: Tensor, size: int | None, reach: int) -> Tensor:
    """What `network` gives for `x` `[..., frames]`, computed over windows of `size` frames; None: all at once.

    Args:
        network: makes a fixed whole number of frames of each frame, seeing at most `reach` frames to both sides.
    """
    num_frames = x.shape[-1]
    if size is None or size >= num_frames:
        return network(x)
    out: Tensor | None = None
    for window in windows(num_frames, size, reach):
        part = network(x[..., window.read])
        scale, rest = divmod(part.shape[-1], window.high - window.low)
        assert rest == 0, f"{window.high - window.low} frames became {part.shape[-1]}"
        if out is None:
            out = part.new_empty(*part.shape[:-1], scale * num_frames)
        kept = part[..., scale * window.kept.start : scale * window.kept.stop]
        out[..., scale * window.start : scale * window.stop] = kept
    assert out is not None
    return out


def reach_of(conv: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d, after: int = 0) -> int:
    """Frames of input beyond each end of a window that `after` frames of output beyond each end of it depend on.

    Along the last axis, for a convolution that keeps the length or, transposed, multiplies it by its stride.
    """
    padding, stride = conv.padding[-1], conv.stride[-1]
    assert isinstance(padding, int)
    span = conv.dilation[-1] * (conv.kernel_size[-1] - 1)
    if isinstance(conv, nn.ConvTranspose1d):
        assert span + 1 == stride + 2 * padding, f"{conv} does not multiply the length by its stride"
        return reach_before(after + padding, stride)
    assert stride == 1 and span == 2 * padding, f"{conv} does not keep the length"
    return after + padding


def reach_before(after: int, rate: int) -> int:
    """Frames that make at least `after` frames when each becomes `rate`."""
    return -(-after // rate)
