"""What memory does the model take, by part and by stage, and what card is it for? Published sizes.

    python -m benchmarks.memory                                                # counted without computing: no GPU
    python -m benchmarks.memory --case 1x240x600 --case 16x60x1000 --dtype bfloat16 --chunk-frames 128
    python -m benchmarks.memory --device cuda --log                            # measured
    python -m benchmarks.memory --device cpu --blocks 1 --dtype float32 --case 1x5x60     # made for real: slow

A case is songs x seconds x condition tokens (prompt and lyrics). Songs are guided, and made as an engine makes them.
What is counted is every tensor, and what convolutions copy; not the workspaces of kernels, some tens of MB, and not the
CUDA context. For these, and for what an allocator cannot use, 0.75 GiB of a card are set aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import nn

from acestep.codec import CHUNK_FRAMES
from acestep.device import FLOAT8, best_device, device_name, dtype_name, is_out_of_memory, parse_dtype
from acestep.frames import num_latent_frames
from acestep.making import Prepared, decode_songs, decoded_together, sample
from acestep.models.float8 import to_float8
from acestep.networks import Networks
from acestep.request import GenerationRequest
from acestep.sampling.leaving import Company
from acestep.tokens import Tokens
from benchmarks.log import append_to_log
from benchmarks.memory_meters import MemoryWatch, watching
from benchmarks.meta_networks import META, meta_networks
from benchmarks.random_networks import random_networks

STAGES = {
    "condition": ("prompt encoder", "transformer"),
    "denoise": ("transformer",),
    "decode": ("autoencoder", "vocoder"),
}
"""The parts that are on the device for each, with `cpu_offload`."""
CASES = ("1x30x600", "1x240x600", "1x240x2000", "6x240x600", "8x240x600", "32x30x600", "32x47.6x600")
"""Six songs of 240 s, or 32 of 47.6 s, fill the engine's default budget of 16,384 frames."""
PROMPT_TOKENS = 99
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 96, 141)
"""GiB."""
RESERVED = 0.75


@dataclass(frozen=True, slots=True)
class Case:
    """Songs made together."""

    batch: int
    seconds: float
    tokens: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """From `8x240x600`."""
        try:
            batch, seconds, tokens = text.split("x")
            return cls(int(batch), float(seconds), int(tokens))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not songs x seconds x tokens, like 8x240x600") from None

    def prepared(self) -> Prepared:
        """One of the songs, of two guided steps: no later one takes more."""
        settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_interval": 1.0}
        request = GenerationRequest(prompt="x", duration=self.seconds, seed=0, **settings).resolved()
        prompt = min(PROMPT_TOKENS, self.tokens // 2)
        tokens = Tokens(prompt_ids=(1,) * prompt, lyric_ids=(1,) * (self.tokens - 1 - prompt))  # one is the speaker
        return Prepared(request, tokens)


def make_songs(networks: Networks, items: Sequence[Prepared], watch: MemoryWatch) -> None:
    """As `make_batch` does; but of songs of one length, one pass through the decoder shows what all would take."""
    company = Company(range(len(items)))
    latents = sample(networks, items, company, watch, lambda done, total: None)
    together = next(decoded_together({member: item.num_frames for member, item in enumerate(items)}))
    with watch("decode"):
        decode_songs(networks, latents[together], [items[member] for member in together])


class Bench:
    """Counts or measures, and prints; all in GiB."""

    def __init__(self, device: torch.device, blocks: int):
        self.device, self.blocks, self.lines = device, blocks, list[str]()
        how = {"meta": "counted", "cpu": "told by the profiler"}.get(device.type, "measured")
        where = "" if device == META else f" on {device_name(device)}"
        self.title = f"{how}{where}, torch {torch.__version__}, {blocks} blocks; GiB"
        print(self.title)

    def weights(self, dtypes: Sequence[torch.dtype]) -> None:
        """Those of each part, the same on any device."""
        self._say(f"{'weights':16} {'parameters':>12}" + "".join(f" {dtype_name(dtype):>9}" for dtype in dtypes))
        single, *sizes = (_sizes(meta_networks(dtype, self.blocks)) for dtype in (torch.float32, *dtypes))
        for name in (*single, "all"):
            count, *columns = (each.get(name, sum(each.values())) for each in (single, *sizes))
            self._say(f"{name:16} {count / 4e6:10.1f} M" + "".join(f" {_gib(size):9.2f}" for size in columns))

    def songs(self, dtype: torch.dtype, cases: Sequence[Case], chunks: Sequence[int]) -> None:
        """The stages of each case beyond the weights, what is on a card in all, and the longest song decoded."""
        networks = self._networks(dtype)
        self._say(f"\n{dtype_name(dtype):30} {'beyond the weights':^36}   {'all resident':>14}   {'cpu_offload':>14}")
        self._say(
            f"{'songs':>5} {'seconds':>8} {'tokens':>7} {'frames':>7}   {'condition':>9} {'of it kept':>10} "
            f"{'denoise':>7} {'decode':>7}" + f"   {'peak':>7} {'card':>6}" * 2
        )
        for case in cases:
            frames = case.batch * num_latent_frames(case.seconds)
            told = f"{case.batch:5} {case.seconds:8g} {case.tokens:7} {frames:7}   "
            self._say(told + self._or_out_of_memory(lambda case=case: self._song(networks, case)))
        seconds = max(case.seconds for case in cases)
        for chunk in chunks:
            told = f"one song of {seconds:g} s decoded {f'in chunks of {chunk} frames' if chunk else 'whole'}: "
            self._say(told + self._or_out_of_memory(lambda chunk=chunk: self._decode(networks, seconds, chunk)))

    def _networks(self, dtype: torch.dtype) -> Networks:
        if self.device == META:
            return meta_networks(dtype, self.blocks)
        networks = random_networks(self.device, torch.bfloat16 if dtype == FLOAT8 else dtype, self.blocks)
        if dtype == FLOAT8:
            to_float8(networks.transformer)
        return networks

    def _song(self, networks: Networks, case: Case) -> str:
        items = [case.prepared()] * case.batch
        with watching(self.device) as watch:
            make_songs(networks, items, watch)
        weights, peaks = _sizes(networks), watch.peaks
        resident = sum(weights.values()) + max(peaks.values())
        offload = max(sum(weights[part] for part in parts) + peaks[stage] for stage, parts in STAGES.items())
        return (
            f"{_gib(peaks['condition']):9.2f} {_gib(watch.kept['condition']):10.2f} {_gib(peaks['denoise']):7.2f} "
            f"{_gib(peaks['decode']):7.2f}   {_on_card(resident)}   {_on_card(offload)}"
        )

    def _decode(self, networks: Networks, seconds: float, chunk: int) -> str:
        frames = num_latent_frames(seconds)
        latents = torch.randn(1, 8, 16, frames).to(self.device)
        with watching(self.device) as watch, watch("decode"):
            networks.codec.decode(latents, chunk_frames=chunk or frames)
        took = "" if self.device == META else f" in {watch.seconds['decode']:.1f} s"
        return f"{_gib(watch.peaks['decode']):.2f}{took}"

    def _or_out_of_memory(self, run: Any) -> str:
        try:
            return run()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return "out of memory"

    def _say(self, text: str) -> None:
        self.lines.append(text)
        print(text, flush=True)


def _sizes(networks: Networks) -> dict[str, int]:
    """Bytes of each part's weights."""
    codec = networks.codec
    parts: dict[str, nn.Module] = {
        "prompt encoder": networks.prompt_encoder,
        "transformer": networks.transformer,
        "autoencoder": codec.autoencoder,
        "vocoder": codec.vocoder,
    }
    return {name: sum(weight.nbytes for weight in part.parameters()) for name, part in parts.items()}


def _gib(size: float) -> float:
    return size / 2**30


def _on_card(size: float) -> str:
    """How much, and the smallest card that has room for it."""
    fitting = [card for card in CARDS if _gib(size) + RESERVED <= card]
    return f"{_gib(size):7.2f} {f'{fitting[0]} GB' if fitting else 'none':>6}"


@click.command()
@click.option("--device", default="meta", show_default=True, help="meta: counted; cuda, cpu: measured.")
@click.option("--dtype", "dtypes", multiple=True, default=("float32", "bfloat16", "float8"), show_default=True)
@click.option("--blocks", default=24, show_default=True, help="Of the transformer.")
@click.option("--case", "cases", multiple=True, default=CASES, show_default=True, help="Songs x seconds x tokens.")
@click.option("--chunk-frames", "chunks", multiple=True, default=(CHUNK_FRAMES, 0), show_default=True, help="0: whole.")
@click.option("--log", is_flag=True, help="Append the table to benchmarks/LOG.md.")
def main(
    device: str, dtypes: tuple[str, ...], blocks: int, cases: tuple[str, ...], chunks: tuple[int, ...], log: bool
) -> None:
    """Count or measure, print, and log if asked."""
    bench = Bench(META if device == "meta" else best_device(device), blocks)
    kinds = [parse_dtype(name) for name in dtypes]
    bench.weights(kinds)
    for kind in kinds:
        bench.songs(kind, [Case.parse(text) for text in cases], chunks)
    if log:
        append_to_log("memory", bench.title, bench.lines)


if __name__ == "__main__":
    main()
