"""What does decoding a song cost in memory and time, whole and in chunks? Published sizes, random weights.

    python -m benchmarks.decode_memory --seconds 30 --chunk-frames 0 --chunk-frames 128 --chunk-frames 512

A chunk of 0 is the whole song at once. Each line is a process of its own; memory is its peak beyond what the loaded
codec takes, on CUDA that of the device.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from importlib import resources

import click
import torch

from acestep.codec import MusicCodec
from acestep.device import best_device, parse_dtype, synchronize
from acestep.frames import num_latent_frames


def published_config(part: str) -> dict:
    """The published `config.json` of a part, as it comes with the package."""
    return json.loads((resources.files("acestep") / "published" / f"{part}.json").read_text())


@torch.inference_mode()
def measure(seconds: float, chunk_frames: int, dtype: str, device: str | None) -> None:
    """Decode once and print a line."""
    where = best_device(device)
    codec = MusicCodec.from_config(published_config("music_dcae_f8c8"), published_config("music_vocoder"))
    codec = codec.eval().to(device=where, dtype=parse_dtype(dtype))
    frames = num_latent_frames(seconds)
    latents = torch.randn(1, 8, 16, frames, device=where)
    codec.decode(latents[..., :8])
    before = _peak(where)
    started = time.perf_counter()
    codec.decode(latents, chunk_frames=chunk_frames or frames)
    synchronize(where)
    took, memory = time.perf_counter() - started, (_peak(where) - before) / 2**30
    print(f"{seconds:5.0f} s  chunk {chunk_frames or 'whole':>5}  {dtype} {where}  {memory:6.2f} GiB  {took:7.1f} s")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@click.command()
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--chunk-frames", multiple=True, type=int, default=(0, 512), show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--device", help="[default: the best there is]")
@click.option("--alone", is_flag=True, hidden=True)
def main(seconds: float, chunk_frames: tuple[int, ...], dtype: str, device: str | None, alone: bool) -> None:
    """Measure each chunk size in a process of its own."""
    if alone:
        measure(seconds, chunk_frames[0], dtype, device)
        return
    for chunk in chunk_frames:
        words = ["--seconds", str(seconds), "--chunk-frames", str(chunk), "--dtype", dtype, "--alone"]
        words += ["--device", device] if device else []
        subprocess.run([sys.executable, "-m", "benchmarks.decode_memory", *words], check=True)


if __name__ == "__main__":
    main()
