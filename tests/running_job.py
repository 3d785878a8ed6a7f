"""A job with the stand-in engine, in a process of its own or in this one, and what became of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalog import Catalog
from pipelines.storage import Storage
from tests.conftest import ROOT


def manifest_of(path: Path, prompts: list[str], **more: Any) -> str:
    """Songs `s00`, `s01`, ... of several lengths, so that batches are mixed."""
    count = len(prompts)
    columns = {
        "id": [f"s{number:02d}" for number in range(count)],
        "prompt": prompts,
        "duration": [1.0 + number % 4 for number in range(count)],
        "label": list(range(count)),
    }
    pq.write_table(pa.table(columns | more), path)
    return str(path)


def songs_of(output: str, options: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in Catalog(Storage(output, options)).songs().to_pylist()}


def sums_of(output: str, options: dict[str, Any] | None = None) -> dict[str, str]:
    return {id: row["sha256"] for id, row in songs_of(output, options).items()}


def num_rows(output: str) -> int:
    """Rows in `songs/`, those of a song that is there twice counted twice."""
    storage = Storage(output)
    return sum(storage.read_table(key, ["id"]).num_rows for key in storage.keys("songs", ".parquet"))


def calls_in(path: Path) -> list[str]:
    """Ids of each engine call."""
    return sorted(path.read_text().splitlines()) if path.exists() else []


def job(manifest: str, output: str, ray_folder: str, *settings: str) -> subprocess.Popen[str]:
    """The command in a process of its own, with a Ray of its own."""
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "jobs.generate", "--manifest", manifest, "--output", output]
    return subprocess.Popen(
        [*command, "--set", "engine=tests.stand_in:Engine", "--set", "batch.max_batch_size=4", *words],
        cwd=ROOT,
        env=os.environ | {"RAY_TMPDIR": ray_folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # A shell's "&" has it ignored.
    )


def wait_for_songs(output: str, process: subprocess.Popen[str], count: int = 1) -> None:
    """Until so many groups of songs are committed."""
    deadline = time.monotonic() + 180
    while len(Storage(output).keys("songs", ".parquet")) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no song was committed"
        time.sleep(0.05)
