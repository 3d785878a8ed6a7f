"""What does it cost to plan a long manifest?

    python -m benchmarks.planning --rows 1000000

Makes a manifest of so many rows (a prompt and about 1 kB of lyrics each, all different, mixed from the words of
`examples/real_prompts.parquet`), plans it into a folder that is thrown away, and prints time and memory: seconds on the
clock, CPU seconds and the peak of the whole process tree.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from acestep.checkpoint import Checkpoint
from benchmarks.restart import Memory
from pipelines.config import RunConfig
from pipelines.manifest import Manifest
from pipelines.plan import PlanRecord, make_plan
from pipelines.rejects import preflight_table
from pipelines.resolution import Resolution
from pipelines.storage import Storage

REAL = Path(__file__).parents[1] / "examples" / "real_prompts.parquet"
_WRITTEN_AT_ONCE = 50_000


def write_manifest(path: Path, rows: int) -> None:
    """Songs like the real ones, none like another: the sections of one in any order, and one that is its own."""
    drawn = random.Random(0)
    real = pq.read_table(REAL).to_pylist()
    tags = sorted({tag.strip() for song in real for tag in song["prompt"].split(",")})
    songs = [song["lyrics"].split("\n\n") for song in real]
    writer = None
    for start in range(0, rows, _WRITTEN_AT_ONCE):
        numbers = range(start, min(start + _WRITTEN_AT_ONCE, rows))
        lyrics = ["\n\n".join([*_shuffled(drawn, drawn.choice(songs)), f"[outro]\nNumber {n}"]) for n in numbers]
        table = pa.table(
            {
                "id": [f"song-{n:09d}" for n in numbers],
                "prompt": [", ".join(drawn.choices(tags, k=7)) for _ in numbers],
                "lyrics": lyrics,
                "duration": [float(drawn.randint(120, 240)) for _ in numbers],
                "num_inference_steps": [27 if n % 3 else 60 for n in numbers],
                "guidance_scale": [15.0 if n % 7 else 7.0 for n in numbers],
                "seed": [None if n % 2 else n for n in numbers],
                "mood": [("calm", "bright", None)[n % 3] for n in numbers],
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _shuffled(drawn: random.Random, sections: list[str]) -> list[str]:
    return drawn.sample(sections, len(sections))


def plan(manifest: Path, output: Path) -> PlanRecord:
    """The plan that a job with the default config makes."""
    config = RunConfig()
    model = Checkpoint.open("tiny")
    resolution = Resolution(
        config.defaults,
        config.seed,
        model.fingerprint(config.dtype),
        config.rendition,
        prompt_tokenizer=str(model.folder("text_encoder") / "tokenizer.json"),
        lyric_vocab=str(model.lyric_vocab),
    )
    about = {"model": {}, "config": {}}
    return make_plan(
        Manifest(str(manifest)), Storage(str(output)), resolution, bucket_rows=config.plan.bucket_rows, about=about
    )


def cpu_seconds() -> float:
    """Of this process and all that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@click.command()
@click.option("--rows", default=100_000, show_default=True)
def main(rows: int) -> None:
    """Plan a long manifest, twice: the second time it is there already."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.parquet"
        with ProcessPoolExecutor(1) as elsewhere:  # So that its memory is not ours.
            elsewhere.submit(write_manifest, manifest, rows).result()
        print(f"manifest        {rows:,} rows, {manifest.stat().st_size / 2**20:,.0f} MiB")
        memory, cpu, started = Memory(os.getpid()), cpu_seconds(), time.perf_counter()
        record = plan(manifest, Path(folder) / "out")
        seconds, peak = time.perf_counter() - started, memory.stop()
        print(
            f"planned         {record.planned:,} songs, {record.rejected:,} rows refused, {record.warned:,} warned of"
        )
        print(f"                {seconds:.1f} s, {rows / seconds:,.0f} rows/s, peak {peak / 2**30:.2f} GiB")
        print(f"                {cpu_seconds() - cpu:.1f} s of CPU on {psutil.cpu_count()} cores")
        print(preflight_table(record.rules, record.examples))
        started = time.perf_counter()
        plan(manifest, Path(folder) / "out")
        print(f"once more       {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
