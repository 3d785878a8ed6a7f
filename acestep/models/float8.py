"""The large linear layers of the transformer in float8: half the bytes, and on new GPUs twice the arithmetic a second.

Weights have one scale per output row, set when they are loaded; activations have one per token, found on the fly, so
that an item's numbers do not depend on its batch-mates. Products are summed in float32 and come out in bfloat16, which
is what all else computes in.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from acestep.device import FLOAT8
from acestep.models.transformer import ACEStepTransformer

LARGEST = torch.finfo(FLOAT8).max
SMALLEST_SCALE = 1e-12
"""So that rows of zeros stay zeros."""

LINEAR = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "cross_attn.to_q", "cross_attn.to_out.0")
CONVOLUTIONS = ("ff.inverted_conv", "ff.point_conv")
"""The layers of a block that become float8: all that multiply large matrices in each step. Not those that make keys and
values of the condition: they work once a song, and what they round off stays in every step of it."""


class Float8Linear(nn.Module):
    """A linear layer in float8, for `x` in bfloat16; on what is not CUDA an exact, slow twin of it.

    Args:
        weight: `[out, in]`.
        bias: `[out]`.

    Raises:
        ValueError: for sizes that are not multiples of 16, of which GPUs have no product in float8.
    """

    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None):
        super().__init__()
        rows, columns = weight.shape
        if rows % 16 or columns % 16:
            raise ValueError(
                f"dtype: 'float8' is not allowed for a layer of {rows} x {columns}; the sizes must be multiples of 16"
            )
        # Adapters are added to what was loaded: an update of a few percent would be lost among float8's steps. Kept in
        # host memory, and no parameter, so that nothing moves it to the device.
        self.original = weight.detach().cpu()
        values, scale = quantise(weight.detach().contiguous())
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale.view(1, -1))
        self.bias = bias

    @torch.no_grad()
    def write(self, weight: torch.Tensor) -> None:
        """Replace the weight by another `[out, in]`, in place."""
        values, scale = quantise(weight)
        self.weight.copy_(values)
        self.scale.copy_(scale.view(1, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]` in bfloat16."""
        values, scale = quantise(x)
        # What comes out of a convolution is not contiguous; copied as float8 it costs least.
        values, scale = values.reshape(-1, x.shape[-1]).contiguous(), scale.reshape(-1, 1).contiguous()
        product = scaled_product if x.is_cuda else plain_product
        y = product(values, scale, self.weight, self.scale, self.bias)
        return y.view(*x.shape[:-1], -1)


class Float8Convolution(nn.Module):
    """A convolution with a kernel of one, which is a linear layer, under the parameter names of the checkpoint."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        assert conv.kernel_size == (1,) and conv.groups == 1
        self.conv = Float8Linear(conv.weight[..., 0], cast("nn.Parameter | None", conv.bias))

    def as_linear(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, in]` -> `[B, T, out]`."""
        return self.conv(x)


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` `[..., E]` in float8, and the float32 scales `[..., 1]` to multiply it by.

    The largest of each row becomes the largest of float8 (give or take float32's rounding, which the cast takes away),
    so nothing is out of range; what is not finite becomes NaN.
    """
    scale = (x.abs().amax(dim=-1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    return (x / scale).to(FLOAT8), scale


def scaled_product(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`[M, in]` with scales `[M, 1]` by `[out, in]` with scales `[1, out]` -> `[M, out]`, on the GPU's float8 units."""
    return torch._scaled_mm(
        x, weight.t(), x_scale, weight_scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def plain_product(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The same product of the same numbers on any device, summed in float32."""
    product = (x.float() @ weight.float().t()) * x_scale * weight_scale
    return (product if bias is None else product + bias).to(torch.bfloat16)


def to_float8(transformer: ACEStepTransformer) -> None:
    """Make the large layers of a bfloat16 transformer float8, in place; one by one, so that memory holds none twice."""
    assert transformer.final_layer.linear.weight.dtype == torch.bfloat16
    for block in transformer.transformer_blocks:
        for name in LINEAR:
            linear = cast(nn.Linear, block.get_submodule(name))
            block.set_submodule(name, Float8Linear(linear.weight, linear.bias))
        for name in CONVOLUTIONS:
            block.set_submodule(name, Float8Convolution(cast(nn.Conv1d, block.get_submodule(f"{name}.conv"))))
