"""Linear layers, by oneDNN where it is faster than what torch takes of itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""What compiled code on CPUs calls; it has no gradient."""


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` of `x` `[..., I]` by `weight` `[O, I]`.

    In float32 on a CPU, where no gradient is wanted, by oneDNN: torch takes MKL there, which on processors that are
    not Intel's reaches half of what oneDNN does, and less at unlucky sizes.
    """
    if (
        _ONEDNN is None
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return F.linear(x, weight, bias)
    return _ONEDNN(x.contiguous(), weight, bias, "none", [], "")
