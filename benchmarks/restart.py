"""Does a killed run, started again, give what an undisturbed one gives? And what does a manifest cost?

    python -m benchmarks.restart --manifest examples/real_prompts.parquet --where folder
    python -m benchmarks.restart --manifest examples/real_prompts.parquet --where both

Makes the manifest once undisturbed, and once killed with SIGKILL when half of its songs are committed and then started
again; compares ids and sha256, checks every song's length and samples, and prints time and memory. `s3` starts a real
S3 server (SeaweedFS, from the `dev` extra) on this machine.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from acestep.frames import num_samples
from tests.seaweed import Seaweed

Place = tuple[str, dict[str, Any]]
"""A URL and its storage options."""


@contextmanager
def s3_server(folder: str) -> Iterator[None]:
    """A SeaweedFS server with one bucket, `songs`; the environment finds it meanwhile."""
    server = Seaweed(Path(folder))
    server.start()
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=server.endpoint,
    )
    try:
        yield
    finally:
        server.kill()


class Memory:
    """The peak of a process tree, in proportional set size: pages shared between processes count once."""

    def __init__(self, pid: int):
        self.peak = 0
        self._root, self._stop = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(2.0):
            total = 0
            for process in [self._root, *self._children()]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)

    def _children(self) -> list[psutil.Process]:
        try:
            return self._root.children(recursive=True)
        except psutil.Error:
            return []

    def stop(self) -> int:
        """Bytes."""
        self._stop.set()
        self._thread.join()
        return self.peak


def run(manifest: str, output: str, settings: tuple[str, ...], kill_at: int | None = None) -> tuple[int, float, int]:
    """Run the job; with `kill_at`, until so many songs are committed. Exit code, seconds, peak bytes."""
    command = [sys.executable, "-m", "jobs.generate", "--manifest", manifest, "--output", output]
    command += [word for setting in settings for word in ("--set", setting)]
    started = time.perf_counter()
    job = subprocess.Popen(command, start_new_session=True)
    memory = Memory(job.pid)
    while job.poll() is None and kill_at is not None:
        if len(rows_of(output, ["id"])) >= kill_at:
            os.killpg(job.pid, signal.SIGKILL)  # the driver and all of Ray, like a machine that is gone
            break
        time.sleep(1)
    code = job.wait()
    return code, time.perf_counter() - started, memory.stop()


def rows_of(output: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of `songs/`, as a reader finds them at this moment."""
    store, root = fsspec.core.url_to_fs(output)
    store.invalidate_cache()
    tables = [
        pq.read_table(io.BytesIO(store.cat_file(path)), columns=columns)
        for path in store.glob(f"{root}/songs/*/*.parquet")
    ]
    return pa.concat_tables(tables, promote_options="default").to_pylist() if tables else []


def check_songs(output: str) -> list[str]:
    """What is wrong with the songs of a catalog: length, samples, object."""
    store, root = fsspec.core.url_to_fs(output)
    wrong = []
    for row in rows_of(output):
        data = store.cat_file(f"{root}/{row['path']}")
        samples, rate = soundfile.read(io.BytesIO(data), always_2d=True)
        if len(samples) != num_samples(row["requested_duration"], rate):
            wrong.append(f"{row['id']}: {len(samples)} samples for {row['requested_duration']} s")
        if not np.isfinite(samples).all() or np.abs(samples).max() < 0.01:
            wrong.append(f"{row['id']}: not finite, or silent")
    return wrong


@click.command()
@click.option("--manifest", required=True)
@click.option(
    "--where",
    type=click.Choice(["folder", "s3", "both"]),
    default="folder",
    show_default=True,
    help="both: undisturbed in a folder, killed and started again on S3.",
)
@click.option("--set", "settings", multiple=True, help="Settings of the job, as for acestep generate.")
def main(manifest: str, where: str, settings: tuple[str, ...]) -> None:
    """Compare an undisturbed run with one that was killed and started again."""
    songs = pq.read_metadata(manifest).num_rows
    with tempfile.TemporaryDirectory() as folder:
        if where == "folder":
            compare(manifest, f"{folder}/calm", f"{folder}/disturbed", songs, settings)
            return
        with s3_server(folder):
            calm = "s3://songs/calm" if where == "s3" else f"{folder}/calm"
            compare(manifest, calm, "s3://songs/disturbed", songs, settings)


def compare(manifest: str, calm: str, disturbed: str, songs: int, settings: tuple[str, ...]) -> None:
    """Run twice, into `calm` and `disturbed`, and print a table."""
    code, seconds, peak = run(manifest, calm, settings)
    print(f"undisturbed     exit {code}  {seconds:7.1f} s  peak {peak / 2**30:.2f} GiB")
    quick = (*settings, "commit.every_songs=1")
    _, seconds, peak = run(manifest, disturbed, quick, kill_at=songs // 2)
    print(f"killed at {len(rows_of(disturbed)):3}   SIGKILL {seconds:7.1f} s  peak {peak / 2**30:.2f} GiB")
    code, seconds, peak = run(manifest, disturbed, settings)
    print(f"started again   exit {code}  {seconds:7.1f} s  peak {peak / 2**30:.2f} GiB")
    first, second = ({(row["id"], row["sha256"]) for row in rows_of(place)} for place in (calm, disturbed))
    twice = len(rows_of(disturbed)) - len(second)
    wrong = check_songs(calm) + check_songs(disturbed)
    print(f"songs {len(first)} of {songs}, the same ids and sha256: {first == second}, rows too many: {twice}")
    print(f"wrong lengths or samples: {len(wrong)}", *wrong, sep="\n    ")
    sys.exit(0 if first == second and len(first) == songs and not wrong and not twice else 1)


if __name__ == "__main__":
    main()
