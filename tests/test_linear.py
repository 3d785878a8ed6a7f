"""Linear layers by oneDNN: the same numbers as torch's own, and gradients where they are wanted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from acestep.models import linear as module
from acestep.models.linear import Linear, linear
from acestep.models.transformer_block import GatedConvolution


class Called(TorchDispatchMode):
    """The names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(1, 7), min_size=0, max_size=3),
    inner=st.integers(1, 40),
    out=st.integers(1, 40),
    bias=st.booleans(),
    turned=st.booleans(),
)
def test_it_is_what_torch_computes(rows: list[int], inner: int, out: int, bias: bool, turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn([*rows, inner], generator=generator)
    if turned and rows:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    weight, added = torch.randn(out, inner, generator=generator), torch.randn(out, generator=generator)
    with torch.no_grad():
        found = linear(x, weight, added if bias else None)
    wanted = F.linear(x.double(), weight.double(), added.double() if bias else None)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max().item())


@pytest.mark.skipif(module._ONEDNN is None, reason="this build of torch has no oneDNN")
def test_it_is_taken_where_it_can_be() -> None:
    layer, x = Linear(8, 8), torch.randn(2, 8)
    with torch.no_grad(), Called() as quick:
        layer(x)
    assert "_linear_pointwise" in quick.names
    with Called() as trained:
        layer(x).sum().backward()
    assert "_linear_pointwise" not in trained.names
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    with torch.no_grad(), Called() as half:
        layer.bfloat16()(x.bfloat16())
    assert "_linear_pointwise" not in half.names


def test_a_compiled_depthwise_convolution_is_the_same() -> None:
    torch.manual_seed(0)
    layer, x = GatedConvolution(6, 10).requires_grad_(False), torch.randn(2, 9, 6)
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).float()[..., None]
    hidden = F.silu(layer.inverted_conv.as_linear(x)) * mask
    wanted = layer.depth_conv.conv(hidden.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(layer.depth_conv.depthwise(hidden), wanted, atol=1e-6)
    torch._dynamo.reset()
    compiled = torch.compile(layer.depth_conv.depthwise, backend="eager", dynamic=True)
    assert torch.allclose(compiled(hidden), wanted, atol=1e-6)
    assert torch.allclose(torch.compile(layer, backend="eager")(x, mask), layer(x, mask), atol=1e-6)
