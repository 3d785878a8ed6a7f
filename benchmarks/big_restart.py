"""A million songs are there: how long until a run that is started again makes the first new one?

    python -m benchmarks.big_restart --songs 1000000

Plans a long manifest, writes down all of its songs as made but the last thousand (rows without sound, 200 commits a
bucket), and starts the real command with an engine that only waits: first without the markers of finished buckets, as
after a kill of the one long run that made them; then killed and started again, with markers. Prints the seconds to the
first engine call, and the driver's memory then and a little later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import click
import psutil
import pyarrow as pa

from benchmarks.planning import write_manifest
from pipelines import layout, schema
from pipelines.plan import PlanRecord
from pipelines.storage import Storage

COMMITS = 200
"""Of each bucket."""
LEFT = 1000


def command(manifest: Path, output: Path, *more: str) -> list[str]:
    """`generate` with an engine that takes 0.2 s a batch."""
    settings = ["engine=benchmarks.simulated:Engine", "model.checkpoint=simulated?batch=0.2"]
    words = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "jobs.generate", "--manifest", str(manifest), "--output", str(output), *words, *more]


def pretend(storage: Storage, plan: PlanRecord) -> int:
    """Write rows as if all songs but the last had been made; how many are left."""
    left = LEFT
    for bucket in reversed(range(plan.num_buckets)):
        planned = storage.read_table(layout.plan_key(bucket, plan.plan))
        keep = max(0, planned.num_rows - left)
        left -= planned.num_rows - keep
        songs = as_songs(planned.slice(0, keep))
        for number in range(COMMITS):
            first, last = (keep * each // COMMITS for each in (number, number + 1))
            if last > first:
                key = f"{layout.bucket_folder(layout.SONGS, bucket)}/20260101T000000-abcdef-{number:06d}.parquet"
                storage.write_table(key, songs.slice(first, last - first))
    return LEFT - left


def as_songs(planned: pa.Table) -> pa.Table:
    """Planned rows as rows of `songs/`."""
    paths = [layout.audio_key(id, "0" * 16, ".flac") for id in planned.column("id").to_pylist()]
    made = {
        "path": pa.array(paths, pa.string()),
        "requested_duration": planned.column("duration"),
        "created_at": pa.array([datetime.now(timezone.utc)] * planned.num_rows, schema.TIME),
    }
    columns = []
    for field in schema.SONG:
        column = made.get(field.name)
        if column is None and field.name in planned.column_names:
            column = planned.column(field.name)
        columns.append(pa.nulls(planned.num_rows, field.type) if column is None else column.cast(field.type))
    return pa.table(columns, schema=schema.SONG)


def first_batch(words: list[str], folder: Path) -> tuple[float, int, int]:
    """Start the job; seconds until an engine is called, and the driver's resident bytes then and when it is killed."""
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    started = time.perf_counter()
    with open(folder / "job.log", "ab") as log:
        environment = os.environ | {"SIMULATED_CALLS": str(calls)}
        job = subprocess.Popen(words, start_new_session=True, stdout=log, stderr=log, env=environment)
    driver = psutil.Process(job.pid)
    while not calls.exists():
        assert job.poll() is None, (folder / "job.log").read_text()[-3000:]
        time.sleep(0.1)
    seconds, then = time.perf_counter() - started, driver.memory_info().rss
    time.sleep(5)
    later = driver.memory_info().rss
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    return seconds, then, later


@click.command()
@click.option("--songs", default=1_000_000, show_default=True)
def main(songs: int) -> None:
    """Print a line for each start."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        manifest, output = Path(folder, "manifest.parquet"), Path(folder, "out")
        write_manifest(manifest, songs)
        started = time.perf_counter()
        subprocess.run(command(manifest, output, "--dry-run"), check=True, capture_output=True)
        print(f"{songs:,} rows planned by the command in {time.perf_counter() - started:.0f} s", flush=True)
        storage = Storage(str(output))
        plan = PlanRecord.read(storage)
        assert plan is not None
        left = pretend(storage, plan)
        print(f"{plan.planned - left:,} songs written down, {left:,} to make", flush=True)
        for how in ("without markers", "with markers"):
            seconds, then, later = first_batch(command(manifest, output), Path(folder))
            print(
                f"{how:16} first batch after {seconds:5.1f} s; driver {then / 2**20:,.0f} MiB, "
                f"{later / 2**20:,.0f} MiB 5 s later",
                flush=True,
            )


if __name__ == "__main__":
    main()
