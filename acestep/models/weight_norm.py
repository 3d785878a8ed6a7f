"""Fold weight-normed convolutions into plain ones: what a checkpoint stores in two tensors is one when generating."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_PAIRS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def fold_weight_norm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which every magnitude and direction has become `X.weight`; the rest is as it was.

    The norm is taken over all but the first dimension, in float32; the result has the dtype of the direction.

    Raises:
        ValueError: for a half of a pair without the other.
    """
    folded: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        pair = next((pair for pair in _PAIRS if name.endswith(pair)), None)
        if pair is None:
            folded[name] = tensor
            continue
        suffix = next(half for half in pair if name.endswith(half))
        owner = name.removesuffix(suffix)
        other = owner + pair[1 - pair.index(suffix)]
        if other not in state_dict:
            raise ValueError(f"{name} has no {other}: the weight norm cannot be folded")
        folded[f"{owner}.weight"] = _fold(state_dict[owner + pair[0]], state_dict[owner + pair[1]])
    return folded


def _fold(magnitude: Tensor, direction: Tensor) -> Tensor:
    dims = tuple(range(1, direction.ndim))
    length = torch.linalg.vector_norm(direction, dim=dims, keepdim=True, dtype=torch.float32)
    return (direction.float() * (magnitude.float() / length)).to(direction.dtype)
