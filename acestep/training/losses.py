"""What a training task gives."""

from __future__ import annotations

from torch import Tensor

Losses = dict[str, Tensor]
"""By name; `loss` is what is minimised, the others are for those who watch."""
