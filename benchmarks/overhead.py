"""What the pipeline costs around the engine: how busy it is kept, and what each song takes of the CPU.

    python -m benchmarks.overhead --songs 960                     # 2 s a batch of 16: is the engine busy 97%?
    python -m benchmarks.overhead --songs 10000,100000 --batch 0  # nothing but pipeline: the same cost per song?
    python -m benchmarks.overhead --loras 5 --songs 10000         # how often does an engine switch adapters?

The engine is simulated: it waits instead of computing (`benchmarks.simulated`).
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from benchmarks.restart import Memory
from pipelines.config import RunConfig
from pipelines.run import run_job


def write_manifest(path: Path, songs: int, duration: float, loras: list[str]) -> None:
    """Distinct prompts; one in five rows has an adapter, in no order, where there are any."""
    chosen = random.Random(0)
    columns = {
        "id": [f"song-{number:07d}" for number in range(songs)],
        "prompt": [f"song {number}, piano, slow" for number in range(songs)],
        "duration": [duration] * songs,
    }
    if loras:
        columns["lora"] = [chosen.choice(loras) if chosen.random() < 0.2 else None for _ in range(songs)]
    pq.write_table(pa.table(columns), path)


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and all that it started and that still lives."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


@click.command()
@click.option("--songs", default="960", show_default=True, help="How many; several sizes with commas.")
@click.option("--batch", default=2.0, show_default=True, help="Seconds of a batch in the engine.")
@click.option("--duration", default=1.0, show_default=True, help="Seconds of a song.")
@click.option("--engines", default=1, show_default=True)
@click.option("--loras", default=0, show_default=True, help="So many adapters, on one row in five.")
@click.option("--set", "settings", multiple=True, help="Settings of the job, as for acestep generate.")
def main(songs: str, batch: float, duration: float, engines: int, loras: int, settings: tuple[str, ...]) -> None:
    """Run the job with an engine that only waits, and print a table."""
    print(
        f"{'songs':>8} {'seconds':>8} {'busy':>6} {'wait ms/batch':>14} {'ms/song':>8} {'CPU ms/song':>12} "
        f"{'peak GiB':>9} {'switches/1000':>14}"
    )
    for count in (int(part) for part in songs.split(",")):
        measure(count, batch, duration, engines, loras, settings)


def measure(songs: int, batch: float, duration: float, engines: int, loras: int, settings: tuple[str, ...]) -> None:
    """One run, one line."""
    with tempfile.TemporaryDirectory() as folder:
        adapters = [adapter(Path(folder), number) for number in range(loras)]
        manifest = Path(folder, "manifest.parquet")
        write_manifest(manifest, songs, duration, adapters)
        overrides = ["engine=benchmarks.simulated:Engine", f"model.checkpoint=simulated?batch={batch}"]
        overrides += [f"resources.num_actors={engines}", "resources.num_cpus=0.1", "ray.no_progress_seconds=-1"]
        memory, process = Memory(os.getpid()), psutil.Process()
        before = cpu_seconds(process)
        started = time.perf_counter()
        summary = run_job(RunConfig.load(None, [*overrides, *settings]), str(manifest), f"{folder}/out")
        seconds = time.perf_counter() - started
        cpu = cpu_seconds(process) - before
        assert summary.exit_code == 0, summary.text()
        record = json.loads(Path(folder, "out", "runs", f"{summary.run}.json").read_text())
        times, batches = summary.times, len(list(Path(folder, "out", "songs").rglob("*.parquet")))
        busy = times.generate / (times.generate + times.wait)
        print(
            f"{songs:8,} {seconds:8.1f} {busy:6.1%} {1000 * times.wait / max(1, songs / 16):14.1f} "
            f"{1000 * times.execution / songs:8.2f} {1000 * cpu / songs:12.2f} {memory.stop() / 2**30:9.2f} "
            f"{1000 * record['lora_switches'] / songs:14.2f}   ({batches} commit files)"
        )


def adapter(folder: Path, number: int) -> str:
    """A file that the plan takes for an adapter; the simulated engine does not load it."""
    path = folder / f"adapter-{number}.safetensors"
    weight = np.full((2, 2), number, dtype=np.float32)
    save_file({"blocks.0.lora_A.weight": weight, "blocks.0.lora_B.weight": weight}, path)
    return str(path)


if __name__ == "__main__":
    main()
