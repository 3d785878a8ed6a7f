"""How long until a run knows what is missing of a big catalog, and in how much memory?

    python -m benchmarks.census --songs 1000000

Writes a catalog of rows without sound (every column of a song, 200 commits a bucket), then takes the census in
processes of their own: cold, with markers, and after compaction. Memory is the peak beyond what the imports take.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

import click
import numpy as np
import pyarrow as pa

from pipelines import layout, schema
from pipelines.storage import Storage

PLAN = "0123456789abcdef"
STEPS = ("writing", "cold", "marking", "marked", "compacting", "compacted")


def hex_column(random: np.random.Generator, rows: int, digits: int) -> pa.Array:
    """Random hexadecimal text."""
    text = random.bytes(rows * digits // 2).hex()
    return pa.array([text[start : start + digits] for start in range(0, rows * digits, digits)])


def synthetic_songs(bucket: int, rows: int, words: int = 60) -> pa.Table:
    """Rows of `songs/` such as a run leaves behind: ids, hashes and lyrics differ in each, settings are alike."""
    random = np.random.default_rng(bucket)
    vocabulary = np.array([random.bytes(3).hex() for _ in range(4000)])
    ids = [f"song-{bucket * rows + row:09d}" for row in range(rows)]
    fingerprints = hex_column(random, rows, 16)
    paths = [layout.audio_key(id, each, ".flac") for id, each in zip(ids, fingerprints.to_pylist(), strict=True)]
    values: dict[str, pa.Array] = {
        "id": pa.array(ids),
        "fingerprint": fingerprints,
        "path": pa.array(paths),
        "sha256": hex_column(random, rows, 64),
        "bytes": pa.array(random.integers(1_000_000, 30_000_000, rows)),
        "seed": pa.array(random.integers(0, 2**62, rows, dtype=np.uint64)),
        "lyrics": pa.array([" ".join(line) for line in vocabulary[random.integers(0, 4000, (rows, words))]]),
        "prompt": pa.array([" ".join(line) for line in vocabulary[random.integers(0, 4000, (rows, 12))]]),
        "duration": pa.array(random.uniform(20, 240, rows)),
        "requested_duration": pa.array(random.uniform(20, 240, rows)),
        "timings": pa.array([json.dumps({"diffuse": float(each)}) for each in random.uniform(0, 9, rows)]),
        "run": pa.repeat("20260101T000000-abcdef", rows),
        "created_at": pa.repeat(pa.scalar(datetime.now(timezone.utc), schema.TIME), rows),
    }
    columns = []
    for field in schema.SONG:
        if field.name in values:
            columns.append(values[field.name].cast(field.type))
        elif pa.types.is_floating(field.type):
            columns.append(pa.array(random.uniform(0, 1, rows)))
        else:
            columns.append(pa.nulls(rows, field.type))
    return pa.table(columns, schema=schema.SONG)


def write_catalog(storage: Storage, songs: int, buckets: int, commits: int) -> None:
    """Plan and rows of finished songs, in as many commits a bucket."""

    def write(bucket: int) -> None:
        table = synthetic_songs(bucket, songs // buckets)
        planned = {name: table.column(name) for name in schema.PLAN.names if name in table.column_names}
        plan = pa.table(
            [planned.get(field.name, pa.nulls(table.num_rows, field.type)) for field in schema.PLAN],
            schema=schema.PLAN,
        )
        storage.write_table(layout.plan_key(bucket, PLAN), plan)
        size = -(-table.num_rows // commits)
        for number, start in enumerate(range(0, table.num_rows, size)):
            key = f"{layout.bucket_folder(layout.SONGS, bucket)}/20260101T000000-abcdef-{number:06d}.parquet"
            storage.write_table(key, table.slice(start, size))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(buckets)))


def measure(step: str, output: str, songs: int, buckets: int, commits: int) -> None:
    """Take the census once and print a line; runs in a process of its own."""
    from pipelines.census import take_census

    storage = Storage(output)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    found = ""
    if step == "writing":
        if not storage.keys(layout.PLAN):
            write_catalog(storage, songs, buckets, commits)
    elif step == "compacting":
        from pipelines.compaction import compact

        compact(storage)
    else:
        run = "run" if step == "marking" else None
        states = take_census(storage, PLAN, range(buckets), run=run, markers=step == "marked")
        found = (
            f"{sum(state.planned for state in states):,} planned, {sum(state.missing for state in states):,} missing"
        )
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{step:10} {seconds:7.2f} s  {used:7.2f} s of CPU  {peak:6.0f} MiB more  {found}", flush=True)


@click.command()
@click.option("--songs", default=1_000_000, show_default=True)
@click.option("--buckets", default=20, show_default=True)
@click.option("--commits", default=200, show_default=True, help="Files in a bucket.")
@click.option("--folder", help="Where the catalog is kept; made when nothing is there. [default: a temporary one]")
@click.option("--step", type=click.Choice(STEPS), hidden=True)
def main(songs: int, buckets: int, commits: int, folder: str | None, step: str | None) -> None:
    """Measure the census of a synthetic catalog."""
    if step:
        assert folder
        measure(step, folder, songs, buckets, commits)
        return
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "benchmarks.census", "--folder", folder or temporary]
        command += ["--songs", str(songs), "--buckets", str(buckets), "--commits", str(commits)]
        for each in STEPS:
            subprocess.run([*command, "--step", each], check=True)


if __name__ == "__main__":
    main()
