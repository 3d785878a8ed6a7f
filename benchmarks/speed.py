"""How fast an engine is on this machine, for the table that estimates come from: `pipelines/speeds.json`.

    python -m benchmarks.speed --threads 2 --repeat 2 --hardware '2 cores x86-64' --write pipelines/speeds.json
    python -m benchmarks.speed --checkpoint ACE-Step/ACE-Step-v1-3.5B --device cuda --most-seconds 1500

Batches of different lengths, sizes, steps and guidance, drawn from a seed. What was measured of the same model on the
same device before is replaced. The last column is what the fit over all batches says of each.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import click
import torch

from acestep.engine import Engine
from acestep.request import GenerationRequest
from pipelines.measured import Measured
from pipelines.speed import SpeedTable
from pipelines.speed_file import SpeedKey, added, pack_layer, read_layer
from pipelines.work import Work

STEPS = (5, 10, 27, 40, 60)
SECONDS = (5, 10, 20, 30, 60)
SIZES = (1, 2, 4, 8)
LYRICS = ("", "[verse]\n" + "la la la la\n" * 8)


def batches(count: int, most_seconds: float, rng: random.Random) -> list[list[GenerationRequest]]:
    """Requests that share a pass, batch by batch; `most_seconds` of audio in each."""
    found: list[list[GenerationRequest]] = []
    while len(found) < count:
        size, seconds, steps = rng.choice(SIZES), rng.choice(SECONDS), rng.choice(STEPS)
        if size * seconds > most_seconds:
            continue
        same: dict[str, Any] = {
            "num_inference_steps": steps,
            "scheduler": rng.choice(("euler", "euler", "heun")),
            "guidance_interval": rng.choice((0.0, 0.5, 0.5, 1.0)),
        }
        lengths = [seconds, *(seconds * rng.uniform(0.8, 1) for _ in range(size - 1))]
        found.append(
            [
                GenerationRequest(prompt="pop", lyrics=rng.choice(LYRICS), duration=length, seed=number, **same)
                for number, length in enumerate(lengths)
            ]
        )
    return found


def _seconds(engine: Engine, batch: list[GenerationRequest]) -> float:
    started = time.perf_counter()
    engine.generate(batch)
    return time.perf_counter() - started


@click.command()
@click.option("--checkpoint", default="tiny", show_default=True)
@click.option("--device", default=None)
@click.option("--dtype", default=None)
@click.option("--threads", type=int, help="Of a CPU.")
@click.option("--compile", "torch_compile", is_flag=True)
@click.option("--batches", "count", default=40, show_default=True)
@click.option("--most-seconds", default=120.0, show_default=True, help="Of audio in a batch.")
@click.option("--seed", default=0, show_default=True)
@click.option("--repeat", default=1, show_default=True, help="Times that each batch is made; the quickest counts.")
@click.option("--hardware", default="", help="What the table is to say of this machine.")
@click.option("--write", type=click.Path(path_type=Path), help="The table to write into.")
def main(
    checkpoint: str,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    torch_compile: bool,
    count: int,
    most_seconds: float,
    seed: int,
    repeat: int,
    hardware: str,
    write: Path | None,
) -> None:
    """Measure, print, and write if asked."""
    if threads:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    engine = Engine.load(checkpoint, device=device, dtype=dtype, torch_compile=torch_compile)
    engine.warm_up()
    model, measured = engine.model, Measured(loads=1, load_seconds=time.perf_counter() - started)
    key = SpeedKey(model.name, model.fingerprint, engine.device_name, model.dtype, torch_compile=torch_compile)
    done: list[tuple[Work, float, int]] = []
    for batch in batches(count, most_seconds, random.Random(seed)):
        done.append((Work.of(batch), min(_seconds(engine, batch) for _ in range(repeat)), len(batch)))
        measured.observe(*done[-1])
    layer = added({}, {key: measured})
    layer[key].hardware = hardware
    speed = SpeedTable(layer).find(key)
    for work, seconds, size in done:
        print(f"{size:3d} songs {work.tflop:8.1f} TFLOP {seconds:8.2f} s {speed.seconds(work):8.2f} s")
    rates = ", ".join(f"{rate:.3g}" for rate in speed.rates)
    print(f"{key.device}: {rates} s for a TFLOP of denoising, of decoding, and a call; spread {speed.spread:.2f}")
    if write:
        write.write_bytes(pack_layer(read_layer(write.read_bytes, str(write)) | layer) + b"\n")


if __name__ == "__main__":
    main()
