"""How weights are changed: the learning rate, clipping, the moving average, and going on."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from acestep.training.optimization import Optimization, OptimizationConfig


class Small(nn.Module):
    """A matrix, a vector, and one of each that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix, self.vector = (nn.Parameter(torch.randn(size, generator=generator)) for size in ((3, 2), (3,)))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def with_gradients(module: Small, scale: float = 1.0, seed: int = 1) -> Small:
    generator = torch.Generator().manual_seed(seed)
    for parameter in (module.matrix, module.vector):
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return module


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_the_learning_rate_rises_turns_and_ends() -> None:
    config = OptimizationConfig(steps=110, learning_rate=0.4, warmup_steps=10, final_share=0.25)
    assert [config.rate(step) for step in (0, 4, 9)] == pytest.approx([0.04, 0.2, 0.4])
    assert config.rate(10) == pytest.approx(0.4)
    assert config.rate(60) == pytest.approx(0.4 * (0.25 + 0.75 / 2)), "half way"
    assert config.rate(35) == pytest.approx(0.4 * (0.25 + 0.75 * (1 + math.cos(math.pi / 4)) / 2))
    assert config.rate(109) == pytest.approx(0.1, rel=0.01)
    assert config.rate(110) == config.rate(10_000) == pytest.approx(0.1)


@given(st.integers(1, 500), st.integers(0, 600), st.floats(0, 1))
def test_the_learning_rate_never_leaves_its_range(steps: int, warmup: int, share: float) -> None:
    config = OptimizationConfig(steps=steps, warmup_steps=warmup, final_share=share, learning_rate=1.0)
    rates = [config.rate(step) for step in range(steps)]
    assert (all(0 <= rate <= 1 + 1e-9 for rate in rates) and rates[0] > 0) or share == 0
    assert all(a < b + 1e-9 for a, b in pairwise(rates[:warmup]))
    assert all(a > b - 1e-9 for a, b in pairwise(rates[warmup:]))
    if warmup < steps:
        assert max(rates) == pytest.approx(1)


def test_the_first_step_is_adams_by_hand() -> None:
    config = OptimizationConfig(steps=10, learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip=1e9, average=0)
    module = with_gradients(Small())
    before, gradients = weights_of(module), {name: p.grad for name, p in module.named_parameters()}
    Optimization(module, config).step(0)
    for name, decay in (("matrix", 0.5), ("vector", 0.0)):
        # Averages of one gradient, corrected for their start, are the gradient and its square.
        expected = before[name] * (1 - 0.1 * decay) - 0.1 * gradients[name].sign()
        torch.testing.assert_close(getattr(module, name).detach(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(module.frozen, before["frozen"])
    assert all(parameter.grad is None for parameter in module.parameters())


def test_gradients_are_clipped_all_together() -> None:
    config = OptimizationConfig(steps=10, warmup_steps=0, clip=0.5)
    module = with_gradients(Small(), scale=10)
    gradients = torch.cat([module.matrix.grad.flatten(), module.vector.grad])  # type: ignore[union-attr]
    optimization = Optimization(module, config)
    norm = optimization.step(0)
    assert norm == pytest.approx(float(gradients.norm()), rel=1e-5), "the norm that they had"
    moments = torch.cat([optimization.adamw.state[p]["exp_avg"].flatten() for p in (module.matrix, module.vector)])
    torch.testing.assert_close(moments, 0.1 * gradients * 0.5 / norm, atol=1e-6, rtol=1e-4)
    small = with_gradients(Small(), scale=0.01)
    unclipped = small.matrix.grad.clone()  # type: ignore[union-attr]
    optimization = Optimization(small, config)
    optimization.step(0)
    torch.testing.assert_close(optimization.adamw.state[small.matrix]["exp_avg"], 0.1 * unclipped)


def test_the_average_by_hand() -> None:
    config = OptimizationConfig(steps=100, learning_rate=0.05, warmup_steps=0, average=0.15)
    module = Small()
    optimization = Optimization(module, config)
    expected = weights_of(module)
    for step in range(4):
        with_gradients(module, seed=step)
        optimization.step(step)
        decay = min(0.15, (1 + step) / (10 + step))
        assert (decay == 0.15) == (step > 0)
        for name in ("matrix", "vector"):
            expected[name] = decay * expected[name] + (1 - decay) * getattr(module, name).detach()
    averaged = optimization.averaged()
    assert averaged.keys() == {"matrix", "vector"}
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, expected[name])
        assert not torch.equal(tensor, getattr(module, name))
        tensor.zero_()
    assert optimization.averaged()["matrix"].any(), "what is kept is a copy"


def test_without_an_average_the_weights_are_kept() -> None:
    module = with_gradients(Small())
    optimization = Optimization(module, OptimizationConfig(average=0, warmup_steps=0))
    optimization.step(0)
    kept = optimization.averaged()
    assert kept.keys() == {"matrix", "vector"} and torch.equal(kept["matrix"], module.matrix)
    kept["matrix"].zero_()
    assert module.matrix.any()


def test_the_average_of_bfloat16_weights_is_precise() -> None:
    module = Small().to(torch.bfloat16)
    optimization = Optimization(module, OptimizationConfig(learning_rate=0.1, warmup_steps=0, average=0.5))
    expected = module.matrix.detach().float()
    for step in range(3):
        for parameter in (module.matrix, module.vector):
            parameter.grad = torch.ones_like(parameter)
        optimization.step(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.matrix.detach().float()
    assert module.matrix.dtype == torch.bfloat16
    torch.testing.assert_close(optimization.average["matrix"], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(broken: float) -> None:
    module = with_gradients(Small())
    optimization = Optimization(module, OptimizationConfig(warmup_steps=0, learning_rate=0.1))
    optimization.step(0)
    before, state = weights_of(module), copy.deepcopy(optimization.state_dict())
    with_gradients(module)
    module.vector.grad[1] = broken  # type: ignore[index]
    assert not math.isfinite(optimization.step(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(module).items())
    assert same(optimization.state_dict(), state)
    assert module.matrix.grad is None
    with_gradients(module)
    assert math.isfinite(optimization.step(2)) and not torch.equal(module.matrix, before["matrix"])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_going_on_from_a_state_is_as_never_having_stopped(tmp_path: Any) -> None:
    config = OptimizationConfig(steps=20, learning_rate=0.05, warmup_steps=3)

    def steps(module: Small, optimization: Optimization, indices: range) -> None:
        for step in indices:
            with_gradients(module, seed=step)
            optimization.step(step)

    whole = Small()
    whole_optimization = Optimization(whole, config)
    steps(whole, whole_optimization, range(8))

    first = Small()
    optimization = Optimization(first, config)
    steps(first, optimization, range(5))
    torch.save({"weights": first.state_dict(), "state": optimization.state_dict()}, tmp_path / "state.pt")

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second = Small()
    second.load_state_dict(saved["weights"])
    optimization = Optimization(second, config)
    optimization.load_state_dict(saved["state"])
    steps(second, optimization, range(5, 8))
    assert same(weights_of(second), weights_of(whole))
    assert same(optimization.state_dict(), whole_optimization.state_dict())


def test_parameters_that_got_no_gradient_stay() -> None:
    module = with_gradients(Small())
    module.vector.grad = None
    before = weights_of(module)
    Optimization(module, OptimizationConfig(warmup_steps=0)).step(0)
    assert torch.equal(module.vector, before["vector"]) and not torch.equal(module.matrix, before["matrix"])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"learning_rate": 0}, {"average": 1.0}, {"clip": 0}, {"momentum": 1}])
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimizationConfig(**wrong)
