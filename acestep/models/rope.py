"""Rotary position embedding as the published weights were trained with it."""

from __future__ import annotations

import torch


def rope_table(length: int, width: int, theta: float, device: torch.device | str | None = None) -> torch.Tensor:
    """Cosines and sines for positions 0..length-1: float32 `[2, length, width]`.

    The angle vector is half-split (f0..fk, f0..fk) although `apply_rope` turns *interleaved* pairs: a quirk of the
    original (ACE-Step `attention.py`, Qwen2 table with SANA's pairing) that the weights have learned.
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    frequencies = 1.0 / theta**exponents
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def apply_rope(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x0, x1), (x2, x3), ... of `x` `[B, T, H, D]` by `table` `[2, T, D]`, in float32."""
    cos, sin = table[:, None, :, None, :]
    pairs = x.float().unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x.float() * cos + turned * sin).to(x.dtype)
