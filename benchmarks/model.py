"""How fast is the model on this device, and how near to what the device can do? Random weights of the published sizes.

    python -m benchmarks.model --device cuda --log                                  # everything
    python -m benchmarks.model --device cuda --parts song --batch 1 --batch 16 --seconds 240 --compile
    python -m benchmarks.model --blocks 2 --seconds 10 --batch 1 --dtype float32    # a laptop

Parts: `error` (against the same weights in float32), `step` (one guided step), `decode`, `song` (condition, 27 steps
and decoding, as an engine makes it). The limit is a large matrix product on the same device in the same run; the
arithmetic is that of the published model (`pipelines.work`), scaled to the blocks that are there.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import click
import torch

from acestep.device import FLOAT8, best_device, device_name, dtype_name, is_out_of_memory, parse_dtype, synchronize
from acestep.engine import Engine
from acestep.frames import num_latent_frames
from acestep.models.transformer import ACEStepTransformer
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, ModelInfo
from acestep.sampling.denoise import denoise
from acestep.sampling.noise import BatchNoise
from acestep.tokens import Tokens
from benchmarks.log import append_to_log
from benchmarks.random_networks import random_networks, random_transformer
from pipelines.work import DECODE_TFLOP, PASS_TFLOP, Work

PARTS = ("error", "step", "decode", "song")
LYRIC_TOKENS, PROMPT_TOKENS = 500, 99


class Bench:
    """Networks, and what is measured of them."""

    def __init__(self, device: torch.device, dtype: torch.dtype, blocks: int, torch_compile: bool, repeats: int):
        self.device, self.blocks, self.repeats = device, blocks, repeats
        self.dtype = torch.bfloat16 if dtype == FLOAT8 else dtype
        """What float8 layers take and give."""
        self.networks = random_networks(device, dtype, blocks, torch_compile=torch_compile)
        self.limit = self._matmul_rate()
        self.lines = [
            f"{device_name(device)}, {dtype_name(dtype)}, torch {torch.__version__}, {blocks} blocks, "
            f"compiled: {torch_compile}; limit {self.limit:.3g} TFLOP/s",
            "part      batch  seconds         ms   TFLOP/s  of limit  x real time     GiB",
        ]
        print("\n".join(self.lines), flush=True)

    def step(self, batch: int, seconds: float) -> None:
        """One guided step: two rows a song."""
        requests = _requests(batch, seconds, num_inference_steps=self.repeats + 1, guidance_interval=1.0)
        ends: list[float] = []

        def after_step(done: int, total: int) -> None:
            synchronize(self.device)
            ends.append(time.perf_counter())

        self._denoise(self.networks.transformer, requests, after_step)
        took = statistics.median(end - start for start, end in pairwise(ends))
        frames = batch * num_latent_frames(seconds)
        self._line("step", batch, seconds, took, 2 * PASS_TFLOP * self._share * frames)

    def decode(self, batch: int, seconds: float) -> None:
        """Latents to waveforms on the host."""
        frames = num_latent_frames(seconds)
        latents = torch.randn(batch, 8, 16, frames, device=self.device)
        took = self._median(lambda: self.networks.codec.decode(latents).cpu())
        self._line("decode", batch, seconds, took, DECODE_TFLOP * frames * batch, audio=batch * seconds)

    def song(self, batch: int, seconds: float) -> None:
        """Songs as an engine makes them; the tokens are given."""
        engine = Engine(
            self.networks,
            None,  # type: ignore[arg-type]  # nothing is left to tokenise
            ModelInfo("random", "0" * 16, str(self.dtype), True),
            frame_budget=10**9,
            max_batch_size=batch,
        )
        requests = _requests(batch, seconds)
        tokens = [_tokens(number) for number in range(batch)]

        def make() -> None:
            for outcome in engine.generate(requests, tokens=tokens):
                if isinstance(outcome, GenerationFailure):
                    raise torch.OutOfMemoryError(outcome.message)

        took = self._median(make)
        work = Work.of(requests)
        self._line("song", batch, seconds, took, self._share * work.denoise + work.decode, audio=batch * seconds)

    @torch.inference_mode()
    def error(self, batch: int, seconds: float) -> None:
        """Guided runs of one step and of four, and decoding, relative to the same weights in float32."""
        exact = random_transformer(self.device, self.dtype, self.blocks).float()  # the seed of the weights is fixed
        wanted = torch.empty(0)
        for steps in (1, 4):
            requests = _requests(1, seconds, num_inference_steps=steps, guidance_interval=1.0)
            wanted, found = (self._denoise(network, requests) for network in (exact, self.networks.transformer))
            self._say(f"error    latents of {seconds:g} s after {steps} guided steps: {_difference(found, wanted):.1e}")
        del exact
        exact_codec = copy.deepcopy(self.networks.codec).float()
        waveforms = (codec.decode(wanted) for codec in (self.networks.codec, exact_codec))
        self._say(f"error    waveform of {seconds:g} s: {_difference(*waveforms):.1e}")

    @torch.inference_mode()
    def _denoise(
        self,
        transformer: ACEStepTransformer,
        requests: list[GenerationRequest],
        callback: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        dtype = transformer.final_layer.linear.weight.dtype
        generator = torch.Generator(self.device).manual_seed(1)
        shape = (2 * len(requests), LYRIC_TOKENS + PROMPT_TOKENS + 1, transformer.config.inner_dim)
        hidden = torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype).to(dtype)
        condition = transformer.condition(hidden, torch.ones(shape[:2], dtype=torch.bool, device=self.device))
        frames = [request.num_frames for request in requests]
        noise = BatchNoise([request.seed or 0 for request in requests], frames, self.device)
        return denoise(transformer, condition, requests, noise, callback)

    @property
    def _share(self) -> float:
        """Of the published transformer's arithmetic."""
        return self.blocks / 24

    def _median(self, run: Callable[[], object]) -> float:
        times = []
        for _ in range(self.repeats + 1):
            synchronize(self.device)
            started = time.perf_counter()
            run()
            synchronize(self.device)
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def _line(
        self, part: str, batch: int, seconds: float, took: float, tflop: float, audio: float | None = None
    ) -> None:
        rate, real_time = tflop / took, f"{audio / took:12.2f}" if audio else " " * 12
        memory = ""
        if self.device.type == "cuda":
            memory = f"{torch.cuda.max_memory_allocated(self.device) / 2**30:7.2f}"
        shown = f"{part:8} {batch:6} {seconds:8g} {1000 * took:10.1f} {rate:9.2f} {rate / self.limit:9.1%}"
        self._say(f"{shown} {real_time} {memory}".rstrip())

    def _say(self, text: str) -> None:
        self.lines.append(text)
        print(text, flush=True)

    def _matmul_rate(self) -> float:
        """TFLOP/s of a product of two large random matrices."""
        size = 8192 if self.device.type == "cuda" else 2048
        left, right = (torch.randn(size, size, device=self.device).to(self.dtype) for _ in range(2))
        times = []
        for _ in range(12):
            synchronize(self.device)
            started = time.perf_counter()
            left @ right
            synchronize(self.device)
            times.append(time.perf_counter() - started)
        return 2 * size**3 / statistics.median(times[2:]) / 1e12


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative: of the root mean square."""
    return ((found - wanted).norm() / wanted.norm()).item()


def _requests(count: int, seconds: float, **settings: Any) -> list[GenerationRequest]:
    settings = {"num_inference_steps": 27, **settings}
    songs = (GenerationRequest(prompt="x", duration=seconds, seed=seed, **settings) for seed in range(count))
    return [song.resolved() for song in songs]


def _tokens(seed: int) -> Tokens:
    """Of a prompt and a song's lyrics."""
    generator = torch.Generator().manual_seed(seed)
    prompt, lyrics = (torch.randint(10, 5000, (n,), generator=generator) for n in (PROMPT_TOKENS, LYRIC_TOKENS))
    return Tokens(prompt_ids=prompt.tolist(), lyric_ids=lyrics.tolist())


def _cases(batches: tuple[int, ...], seconds: tuple[float, ...], most_frames: int) -> Iterator[tuple[int, float]]:
    for length in seconds:
        for batch in batches:
            if batch == 1 or batch * num_latent_frames(length) <= most_frames:
                yield batch, length


@click.command()
@click.option("--device", help="[default: the best there is]")
@click.option("--dtype", "dtypes", multiple=True, default=("bfloat16",), show_default=True)
@click.option("--blocks", default=24, show_default=True, help="Of the transformer.")
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 2, 4, 8, 16, 32, 64), show_default=True)
@click.option("--seconds", multiple=True, type=float, default=(10.0, 30.0, 60.0, 120.0, 240.0), show_default=True)
@click.option("--parts", multiple=True, type=click.Choice(PARTS), default=PARTS, show_default=True)
@click.option("--compile/--no-compile", "torch_compile", default=False, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--most-frames", default=65_536, show_default=True, help="Latent frames in a batch of several songs.")
@click.option("--log", is_flag=True, help="Append the table to benchmarks/LOG.md.")
def main(
    device: str | None,
    dtypes: tuple[str, ...],
    blocks: int,
    batches: tuple[int, ...],
    seconds: tuple[float, ...],
    parts: tuple[str, ...],
    torch_compile: bool,
    repeats: int,
    most_frames: int,
    log: bool,
) -> None:
    """Measure, print, and log if asked."""
    place = best_device(device)
    for name in dtypes:
        bench = Bench(place, parse_dtype(name), blocks, torch_compile, repeats)
        for part in parts:
            for batch, length in _cases(batches if part != "error" else (1,), seconds, most_frames):
                if place.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(place)
                try:
                    getattr(bench, part)(batch, length)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    bench._say(f"{part:8} {batch:6} {length:8g}   out of memory")
        if log:
            append_to_log("the model", bench.lines[0], bench.lines[1:])


if __name__ == "__main__":
    main()
