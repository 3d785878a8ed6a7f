"""Time and memory of a report's survey by the number of songs: `python -m benchmarks.report 10000 100000`.

Rows are drawn and written bucket by bucket, without audio; each size is read in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa

BUCKET_SONGS = 5000
FAILURES_IN = 50
"""One song in so many failed."""


def write_rows(folder: str, songs: int) -> None:
    """A catalog of so many songs without their audio."""
    from pipelines import schema
    from pipelines.catalog import Catalog
    from pipelines.storage import Storage

    catalog = Catalog(Storage(folder))
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    lyrics = [
        "",
        "[verse]\n" + "Hold the line, hold the light\n" * 30,
        "[verse]\n" + "Baila que la noche es larga\n" * 30,
    ]
    for bucket in range(-(-songs // BUCKET_SONGS)):
        random = np.random.default_rng(bucket)
        first = bucket * BUCKET_SONGS
        ids = [f"song-{number:09d}" for number in range(first, min(first + BUCKET_SONGS, songs))]
        seconds = random.uniform(20, 240, len(ids))
        values = {
            "id": ids,
            "fingerprint": [id[-8:] * 2 for id in ids],
            "path": [f"audio/{id}.flac" for id in ids],
            "duration": seconds,
            "lufs": random.normal(-14, 2, len(ids)),
            "score": random.uniform(0, 1, len(ids)),
            "attempt": random.integers(1, 4, len(ids)),
            "language": ["auto"] * len(ids),
            "lyrics": [lyrics[number] for number in random.integers(0, 3, len(ids))],
            "prompt": ["lo-fi hip-hop, soft piano, vinyl crackle"] * len(ids),
            "generate_seconds": seconds / random.normal(15, 1, len(ids)),
            "run": [f"run-{bucket // 20}"] * len(ids),
            "model": ["tiny"] * len(ids),
            "created_at": [start + timedelta(seconds=0.5 * number) for number in range(first, first + len(ids))],
        }
        empty = schema.SONG.empty_table()
        songs_table = pa.table(
            {name: pa.array(column, schema.SONG.field(name).type) for name, column in values.items()}
        )
        catalog.add_songs(bucket, "rows", pa.concat_tables([empty, songs_table], promote_options="default"))
        failed = [
            {
                "id": f"{id}-failed",
                "fingerprint": id,
                "error_class": "out_of_memory",
                "message": f"{id!r} does not fit in {place} GiB",
                "request": '{"prompt": "a long one"}',
                "created_at": start,
            }
            for place, id in enumerate(ids[::FAILURES_IN])
        ]
        catalog.add_failed(bucket, "rows", schema.table_of(failed, schema.FAILED))


def measure(folder: str) -> None:
    """Print seconds of processor time and the most memory of this process, before and after."""
    from pipelines.report import ReportOptions, report_page
    from pipelines.storage import Storage

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.process_time()
    page = report_page(Storage(folder), ReportOptions())
    seconds = time.process_time() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    memory = f"{after - before:.0f} MB above {before:.0f} MB"
    print(f"{seconds:.1f} s of processor time, {memory}, page of {len(page) / 1e6:.2f} MB")


def main() -> None:
    """Write and measure a catalog of each size named on the command line."""
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
        return
    for songs in map(int, sys.argv[1:] or ["10000", "100000"]):
        with tempfile.TemporaryDirectory() as folder:
            write_rows(folder, songs)
            print(f"{songs:,} songs: ", end="", flush=True)
            subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.report", "--measure", folder], check=True)


if __name__ == "__main__":
    main()
