"""What the pipeline costs around the engine: how busy it keeps engines, what each song takes of the CPU, how it scales.

    python -m benchmarks.pipeline --engines 1,2,4,8 --log        # 2 s a batch: are engines busy 97%, do 8 make 8 times?
    python -m benchmarks.pipeline --songs 10000,100000 --batch 0 # nothing but pipeline: the same cost per song?
    python -m benchmarks.pipeline --duration 240 --batch 20      # waveforms of 85 MB
    python -m benchmarks.pipeline --loras 5 --songs 10000        # how often does an engine switch adapters?

The engine is simulated: it waits instead of computing (`benchmarks.simulated`), but its waveforms are real. All engines
are on this machine. `busy` and `wait` are of engines that are warm; the share of the ideal is that of the songs a
second which the engines alone would make, and starting them counts: short runs look bad.
"""

from __future__ import annotations

import json
import os
import platform
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from benchmarks.log import append_to_log
from benchmarks.restart import Memory
from pipelines.config import RunConfig
from pipelines.run import run_job

HEAD = (
    f"{'engines':>7} {'songs':>8} {'seconds':>8} {'busy':>6} {'wait ms/batch':>14} {'songs/s':>8} {'of ideal':>9} "
    f"{'ms/song':>8} {'CPU ms/song':>12} {'peak GiB':>9} {'switches/1000':>14} {'row files':>10}"
)


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


def adapter(folder: Path, number: int) -> str:
    """A file that the plan takes for an adapter; the simulated engine does not load it."""
    path = folder / f"adapter-{number}.safetensors"
    weight = np.full((2, 2), number, dtype=np.float32)
    save_file({"blocks.0.lora_A.weight": weight, "blocks.0.lora_B.weight": weight}, path)
    return str(path)


def measure(engines: int, songs: int, batch: float, duration: float, loras: int, settings: tuple[str, ...]) -> str:
    """One run; its line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        adapters = [adapter(Path(folder), number) for number in range(loras)]
        manifest = Path(folder, "manifest.parquet")
        write_manifest(manifest, songs, duration, adapters)
        overrides = ["engine=benchmarks.simulated:Engine", f"model.checkpoint=simulated?batch={batch}"]
        overrides += [f"resources.num_actors={engines}", "resources.num_cpus=0.1", "ray.no_progress_seconds=-1"]
        config = RunConfig.load(None, [*overrides, *settings])
        os.environ["SIMULATED_CALLS"] = calls = f"{folder}/calls"
        memory, process = Memory(os.getpid()), psutil.Process()
        before = cpu_seconds(process)
        started = time.perf_counter()
        summary = run_job(config, str(manifest), f"{folder}/out")
        seconds = time.perf_counter() - started
        cpu, peak = cpu_seconds(process) - before, memory.stop()
        assert summary.exit_code == 0, summary.text()
        record = json.loads(Path(folder, "out", "runs", f"{summary.run}.json").read_text())
        row_files = len(list(Path(folder, "out", "songs").rglob("*.parquet")))
        batches = len(Path(calls).read_text().splitlines())
    times, execution = summary.times, summary.times.execution
    ideal = f"{batches * batch / (engines * execution):9.1%}" if batch else f"{'':9}"
    return (
        f"{engines:7} {songs:8,} {seconds:8.1f} {times.generate / (times.generate + times.wait):6.1%} "
        f"{1000 * times.wait / batches:14.1f} {songs / execution:8.1f} {ideal} {1000 * execution / songs:8.2f} "
        f"{1000 * cpu / songs:12.2f} {peak / 2**30:9.2f} {1000 * record['lora_switches'] / songs:14.2f} {row_files:10,}"
    )


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not whole numbers with commas between them") from None


@click.command()
@click.option("--songs", default="960", show_default=True, callback=_numbers, help="For each engine; with commas.")
@click.option("--batch", default=2.0, show_default=True, help="Seconds of a batch in the engine.")
@click.option("--duration", default=1.0, show_default=True, help="Seconds of a song.")
@click.option("--engines", default="1", show_default=True, callback=_numbers, help="How many; with commas.")
@click.option("--loras", default=0, show_default=True, help="So many adapters, on one row in five.")
@click.option("--set", "settings", multiple=True, help="Settings of the job, as for acestep generate.")
@click.option("--log", is_flag=True, help="Append the table to benchmarks/LOG.md.")
def main(
    songs: list[int],
    batch: float,
    duration: float,
    engines: list[int],
    loras: int,
    settings: tuple[str, ...],
    log: bool,
) -> None:
    """Run the job with an engine that only waits, and print a table."""
    lines = [HEAD]
    print(HEAD, flush=True)
    for count in engines:
        for each in songs:
            # Of a Ray that is over, something may live on in its process: each run has one of its own.
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                lines.append(fresh.submit(measure, count, count * each, batch, duration, loras, settings).result())
            print(lines[-1], flush=True)
    if log:
        hardware = f"{os.cpu_count()} cores, {platform.machine()}"
        append_to_log(f"the batch job around engines of {batch:g} s a batch, songs of {duration:g} s", hardware, lines)


if __name__ == "__main__":
    main()
