"""How much faster than the original is this? Same random weights, same inputs, timed in turns in one process.

    python -m benchmarks.versus_original --original ~/ACE-Step                       # two blocks, a CPU
    python -m benchmarks.versus_original --original ~/ACE-Step --device cuda --dtype bfloat16 --blocks 24 \\
        --steps 27 --interval 0.5 --batch 1 --batch 8 --batch 32 --compile

`--original` is a checkout of github.com/ace-step/ACE-Step; the original needs `pip install diffusers` besides. Outputs
are compared before anything is timed. Speed is that of a step, of a song's denoising with all that is computed once for
it, of decoding, and of both together, from the batch that each is best with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import torch

from acestep.compiling import compile_blocks
from acestep.device import best_device, device_name, parse_dtype, synchronize
from acestep.frames import num_latent_frames
from acestep.models import transformer as transformer_module
from acestep.models.transformer import ACEStepTransformer
from acestep.request import GenerationRequest
from acestep.sampling.denoise import denoise
from acestep.sampling.noise import BatchNoise
from benchmarks.log import append_to_log
from benchmarks.original import OriginalTransformer, original_codec
from benchmarks.random_networks import random_codec, random_transformer

GUIDANCE_SCALE = 15.0
AfterStep = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Case:
    """What both sides are to make."""

    seconds: float
    steps: int
    interval: float
    batch: int
    tokens: int
    dtype: torch.dtype
    device: torch.device

    @property
    def frames(self) -> int:
        """Latent frames of a song."""
        return num_latent_frames(self.seconds)

    def conditions(self, width: int) -> torch.Tensor:
        """Condition sequences of both branches, `[2B, N, E]`."""
        generator = torch.Generator(self.device).manual_seed(1)
        hidden = torch.randn(2, self.tokens, width, generator=generator, device=self.device)
        return hidden.to(self.dtype).repeat_interleave(self.batch, 0)

    def noise(self) -> BatchNoise:
        """To start from."""
        return BatchNoise(range(self.batch), [self.frames] * self.batch, self.device)

    def requests(self) -> list[GenerationRequest]:
        """The songs."""
        settings: dict[str, Any] = {"num_inference_steps": self.steps, "guidance_interval": self.interval}
        settings |= {"guidance_scale": GUIDANCE_SCALE, "seed": 0}
        request = GenerationRequest(prompt="x", duration=self.seconds, **settings)
        return [request.resolved() for _ in range(self.batch)]


@torch.inference_mode()
def ours_denoise(
    network: ACEStepTransformer, case: Case, after_step: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Our latents."""
    hidden = case.conditions(network.config.inner_dim)
    condition = network.condition(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=case.device))
    return denoise(network, condition, case.requests(), case.noise(), lambda done, total: after_step())


def theirs_denoise(
    network: OriginalTransformer, case: Case, after_step: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """Their latents."""
    hidden, null = case.conditions(network.network.inner_dim).split(case.batch)
    noise, steps = case.noise().draw(), {"steps": case.steps, "interval": case.interval}
    return network.denoise(hidden, null, noise, **steps, scale=GUIDANCE_SCALE, after_step=after_step)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative: of the root mean square."""
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return ((ours - theirs).norm() / theirs.norm()).item()


class Table:
    """Lines of the two sides' times, taken in turns."""

    def __init__(self, repeats: int, device: torch.device):
        self._repeats, self._device = repeats, device
        self.lines = [f"{'':42} {'original':>18} {'this':>18} {'ratio':>7}  difference"]
        print(self.lines[0])

    def add(
        self, name: str, theirs: Callable[[], list[float] | None], ours: Callable[[], list[float] | None], error: float
    ) -> tuple[float, float]:
        """Time both, print a line, return medians; a side may say its own seconds, else it is timed as a whole."""
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(self._repeats):
            for side, run in zip(times, (theirs, ours), strict=True):
                synchronize(self._device)
                started = time.perf_counter()
                said = run()
                synchronize(self._device)
                side += said if said is not None else [time.perf_counter() - started]
        medians = tuple(statistics.median(side) for side in times)
        shown = [f"{1000 * median:9.1f} ±{_spread(side):4.0%} ms" for median, side in zip(medians, times, strict=True)]
        self.line(f"{name:42} {shown[0]:>18} {shown[1]:>18} {medians[0] / medians[1]:6.2f}x  {error:.1e}")
        return medians[0], medians[1]

    def rates(self, name: str, rates: Sequence[float]) -> None:
        """A line of seconds of audio a second."""
        theirs, ours = rates
        self.line(f"{name + ', seconds of audio a second':42} {theirs:18.2f} {ours:18.2f} {ours / theirs:6.2f}x")

    def line(self, text: str) -> None:
        """One that is not of two times."""
        self.lines.append(text)
        print(text, flush=True)


def _spread(times: list[float]) -> float:
    """Half of the range that the middle half of the times lies in, relative."""
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / middle


def _step_times(run: Callable[[Callable[[], None]], object], device: torch.device) -> list[float]:
    """Seconds of each step but the first, which pays for what is computed once."""
    ends: list[float] = []

    def after_step() -> None:
        synchronize(device)
        ends.append(time.perf_counter())

    run(after_step)
    return [end - start for start, end in pairwise(ends)]


def _whole(run: Callable[[], object]) -> Callable[[], None]:
    """To be timed from outside."""

    def run_only() -> None:
        run()

    return run_only


@click.command()
@click.option("--original", "source", type=click.Path(path_type=Path), required=True, help="A checkout of its source.")
@click.option("--device", help="[default: the best there is]")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--blocks", default=2, show_default=True, help="Of the transformer; the published model has 24.")
@click.option("--seconds", default=30.0, show_default=True, help="Of a song.")
@click.option("--decode-seconds", default=10.0, show_default=True, help="Of a song that is decoded; 0: none is.")
@click.option("--tokens", default=600, show_default=True, help="Condition tokens.")
@click.option("--steps", default=3, show_default=True)
@click.option("--interval", default=1.0, show_default=True, help="Share of the steps that are guided.")
@click.option("--batch", "batches", multiple=True, type=int, default=(1,), show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--compile", "torch_compile", is_flag=True, help="Compile ours.")
@click.option("--compile-original", is_flag=True, help="Compile theirs.")
@click.option("--log", is_flag=True, help="Append the table to benchmarks/LOG.md.")
def main(
    source: Path,
    device: str | None,
    dtype: str,
    blocks: int,
    seconds: float,
    decode_seconds: float,
    tokens: int,
    steps: int,
    interval: float,
    batches: tuple[int, ...],
    repeats: int,
    torch_compile: bool,
    compile_original: bool,
    log: bool,
) -> None:
    """Compare, print, and log if asked."""
    place, kind = best_device(device), parse_dtype(dtype)
    if blocks < transformer_module.WEAKENED_BLOCKS.stop:  # ERG is to be on in a small network, too.
        transformer_module.WEAKENED_BLOCKS = range(max(0, blocks - 5), blocks)
    ours = random_transformer(place, kind, blocks)
    theirs = OriginalTransformer(source, ours, kind, torch_compile=compile_original)
    if torch_compile:
        compile_blocks(ours.transformer_blocks)
    head = f"{device_name(place)}, {dtype}, torch {torch.__version__}, {blocks} blocks, {tokens} condition tokens"
    print(head)
    table = Table(repeats, place)
    best = [0.0, 0.0]
    for batch in batches:
        case = Case(seconds, steps, interval, batch, tokens, kind, place)
        name = f"{batch} x {seconds:g} s ({case.frames} frames)"
        error = difference(ours_denoise(ours, case), theirs_denoise(theirs, case))
        table.add(
            f"step, {interval:.0%} guided, {name}",
            partial(_step_times, partial(theirs_denoise, theirs, case), place),
            partial(_step_times, partial(ours_denoise, ours, case), place),
            error,
        )
        times = table.add(
            f"denoising, {steps} steps, {name}",
            _whole(partial(theirs_denoise, theirs, case)),
            _whole(partial(ours_denoise, ours, case)),
            error,
        )
        best = [max(best[side], batch * seconds / times[side]) for side in (0, 1)]
    table.rates("denoising", best)
    if decode_seconds:
        decoding = _decode(source, table, decode_seconds, place, kind)
        table.rates("both", [1 / (1 / best[side] + decoding[side] / decode_seconds) for side in (0, 1)])
    if log:
        append_to_log("this beside the original", head, table.lines)


def _decode(
    source: Path, table: Table, seconds: float, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """A line of decoding one song; both medians."""
    ours = random_codec(device, dtype)
    theirs = original_codec(source, ours, device, dtype)
    latents = torch.randn(1, 8, 16, num_latent_frames(seconds), generator=torch.Generator().manual_seed(0)).to(device)
    error = difference(ours.decode(latents)[0], theirs.decode(latents.to(dtype))[1][0])
    return table.add(
        f"decoding, 1 x {seconds:g} s",
        _whole(lambda: theirs.decode(latents.to(dtype))),
        _whole(lambda: ours.decode(latents).cpu()),
        error,
    )


if __name__ == "__main__":
    main()
