"""What does a LoRA adapter cost: to switch, and then on every step, merged and as a branch beside each layer?

    python -m benchmarks.lora_switch --blocks 2                                       # a laptop
    python -m benchmarks.lora_switch --blocks 24 --dtype bfloat16 --device cuda       # the published size

The transformer has the published width and random weights, `--blocks` of them. The adapters are on all attention
projections, as the original trains them, or with `--all` on the feed-forward layers too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import nn

from acestep.device import best_device, parse_dtype, synchronize
from acestep.lora import Adapter, LowRank
from acestep.lora_stack import AdapterStack
from acestep.models.transformer import ACEStepTransformer, TransformerConfig

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("inverted_conv.conv", "point_conv.conv")
FRAMES_PER_SECOND = 44100 / 512 / 8


def adapter(name: str, transformer: nn.Module, suffixes: tuple[str, ...], rank: int, dtype: torch.dtype) -> Adapter:
    """A random one, in host memory."""
    updates = {}
    for module, layer in transformer.named_modules():
        if module.startswith("transformer_blocks") and module.endswith(suffixes):
            out, inner = layer.weight.shape[:2]
            down, up = torch.randn(rank, inner) / inner**0.5, torch.randn(out, rank) / rank**0.5
            updates[module] = LowRank(down.to(dtype), up.to(dtype), 0.01)
    return Adapter(name, name, updates)


def add_branches(transformer: nn.Module, adapter: Adapter, device: torch.device, dtype: torch.dtype) -> list:
    """The other way of applying an adapter: each layer's output plus what the narrow matrices make of its input."""
    handles = []
    for module, update in adapter.updates.items():
        down, up = (side.to(device, dtype).flatten(1) for side in (update.down, update.up * update.scale))

        def hook(_: nn.Module, inputs: tuple, output: torch.Tensor, down=down, up=up) -> torch.Tensor:
            return output + inputs[0] @ down.T @ up.T

        handles.append(transformer.get_submodule(module).register_forward_hook(hook))
    return handles


@click.command()
@click.option("--blocks", default=2, show_default=True)
@click.option("--rank", default=64, show_default=True)
@click.option("--all", "everywhere", is_flag=True, help="Feed-forward layers too.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", default=None)
@click.option("--seconds", default=30.0, show_default=True, help="Of audio, in each song of the batch.")
@click.option("--batch", default=1, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@torch.inference_mode()
def main(
    blocks: int, rank: int, everywhere: bool, dtype: str, device: str | None, seconds: float, batch: int, repeats: int
) -> None:
    """Time switches and steps; the best of each, since whatever else runs can only add to it."""
    place, kind = best_device(device), parse_dtype(dtype)
    config = TransformerConfig(num_layers=blocks, lyric_encoder_num_layers=1, lyric_encoder_vocab_size=10)
    with torch.device(place):
        transformer = ACEStepTransformer(config).to(kind).eval().requires_grad_(False)
    suffixes = ATTENTION + (FEED_FORWARD if everywhere else ())
    one, two = (adapter(name, transformer, suffixes, rank, kind) for name in ("one", "two"))

    def timed(action: Callable[[], object]) -> float:
        synchronize(place)
        started = time.perf_counter()
        action()
        synchronize(place)
        return time.perf_counter() - started

    frames = int(seconds * FRAMES_PER_SECOND)
    latents = torch.randn(batch, 8, 16, frames, device=place, dtype=kind)
    timestep = torch.full((batch,), 500.0, device=place)
    hidden = torch.randn(batch, 200, config.inner_dim, device=place, dtype=kind)
    condition = transformer.condition(hidden, torch.ones(batch, 200, device=place, dtype=torch.bool))

    def step() -> float:
        transformer(latents, timestep, condition)
        return min(timed(lambda: transformer(latents, timestep, condition)) for _ in range(repeats))

    results = {"step, no adapter": step()}
    stack = AdapterStack(transformer)
    stack.add(one)
    stack.add(two)
    results["switch none -> one, the first time"] = timed(lambda: stack.activate({"one": 1}))
    results["step, merged"] = step()
    switches: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, wanted in (("one -> two", {"two": 1.0}), ("two -> none", {}), ("none -> one", {"one": 1.0})):
            switches.setdefault(f"switch {name}", []).append(timed(lambda wanted=wanted: stack.activate(wanted)))
    results |= {name: min(times) for name, times in switches.items()}
    results["switch one -> one"] = timed(lambda: stack.activate({"one": 1}))
    stack.activate(None)
    if not everywhere:  # The 1x1 convolutions run as linear layers, past any hook.
        handles = add_branches(transformer, one, place, kind)
        results["step, as branches"] = step()
        for handle in handles:
            handle.remove()
    results["step, no adapter, again"] = step()
    touched = sum(transformer.get_parameter(f"{module}.weight").nbytes for module in one.updates)
    print(
        f"{blocks} blocks, rank {rank}, {dtype}, {place}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{len(one.updates)} modules, {touched / 1e6:,.0f} MB of weights, adapter of {one.size_bytes / 1e6:,.1f} MB")
    print(f"{batch} x {frames} frames a step")
    for name, took in results.items():
        print(f"{name:36} {took * 1000:10.2f} ms")


if __name__ == "__main__":
    main()
