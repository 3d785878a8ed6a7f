"""How long until the first song? A fresh process each, stage by stage, on a machine that knows the checkpoint or not.

    python -m benchmarks.startup --checkpoint tiny
    python -m benchmarks.startup --checkpoint published --blocks 2 --steps 2   # a laptop: 6 GB written
    python -m benchmarks.startup --device cuda --seconds 30 --log              # all of it: 22 GB written, then removed

`cold`: no file of the checkpoint is in the page cache, and its hashes are not known; from S3, it is fetched first.
`warm`: the same once more. From a folder, and from an S3 server on this machine (SeaweedFS, of the `dev` extra) with
the checkpoint as `acestep weights --to` writes it. The published one has random weights
(`benchmarks.random_checkpoint`); on a busy machine, believe the CPU seconds, in parentheses.
Beside the table: what this machine's disk and its sha256 do with the largest file, which is the least that stages take.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.log import append_to_log

ROOT = Path(__file__).parents[1]
READ_BYTES = 8 * 2**20
AFTERWARDS = "second song"
"""Of the stages, the one that is not on the way to the first song."""


def drop_from_page_cache(folder: Path) -> None:
    """Have the kernel forget the content of the files in a folder; what is not yet written is written first."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_per_second(file: Path, use: Callable[[memoryview], object]) -> float:
    """Of reading a file from start to end and giving it to `use` bit by bit."""
    buffer, started = memoryview(bytearray(READ_BYTES)), time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            use(buffer[:count])
    return file.stat().st_size / (time.perf_counter() - started)


def limits(folder: Path) -> str:
    """What this machine does with a checkpoint's largest file."""
    file = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    drop_from_page_cache(folder)
    rates = [bytes_per_second(file, use) / 1e9 for use in (len, len, hashlib.sha256().update)]
    return "{}, {:.2f} GB: disk {:.2f} GB/s, page cache {:.2f}, sha256 {:.2f}".format(
        file.parent.name, file.stat().st_size / 1e9, *rates
    )


def first_song(arguments: list[Any], cache: Path) -> dict[str, Any]:
    """What `benchmarks.first_song` prints, in a process of its own whose cache folder is `cache`."""
    command = [sys.executable, "-m", "benchmarks.first_song", json.dumps([time.time(), *arguments])]
    environment = os.environ | {"ACESTEP_CACHE": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _written(kind: str, blocks: int, folder: Path) -> Iterator[Path]:
    """The folder of a checkpoint."""
    if kind == "tiny":
        from acestep.tiny import build as write
    else:
        from benchmarks.random_checkpoint import write_checkpoint

        def write(folder: Path) -> None:
            write_checkpoint(folder, blocks)

    place = folder / kind
    place.mkdir()
    write(place)
    yield place
    shutil.rmtree(place)


@contextmanager
def _source(place: Path, where: str, folder: Path) -> Iterator[str]:
    """What a checkpoint in a folder is opened by."""
    if where == "folder":
        yield str(place)
        return
    from acestep.checkpoint import Checkpoint
    from acestep.upload import copy_checkpoint
    from benchmarks.restart import s3_server

    data = folder / "s3"
    data.mkdir()
    with s3_server(str(data)):
        url = f"s3://songs/{place.name}"
        copy_checkpoint(Checkpoint.open(place), url)
        yield url
    shutil.rmtree(data)


def table(runs: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each stage; for each run, its seconds on the clock and of the CPU."""
    most_first = sorted((run["stages"] for run in runs.values()), key=len, reverse=True)
    names = [name for name in dict.fromkeys(name for stages in most_first for name in stages) if name != AFTERWARDS]
    lines = [f"{'seconds (CPU)':18}" + "".join(f"{title:>17}" for title in runs)]

    def line(name: str, values: list[tuple[float, float] | None]) -> None:
        lines.append(
            f"{name:18}" + "".join(f"{each[0]:9.2f} {f'({each[1]:.2f})':>7}" if each else " " * 17 for each in values)
        )

    for name in names:
        line(name, [run["stages"].get(name) for run in runs.values()])
    columns = [[run["stages"][name] for name in names if name in run["stages"]] for run in runs.values()]
    line("until first song", [(sum(clock for clock, _ in each), sum(cpu for _, cpu in each)) for each in columns])
    line(AFTERWARDS, [run["stages"][AFTERWARDS] for run in runs.values()])
    lines.append(f"{'peak GiB':18}" + "".join(f"{run['peak'] / 2**30:9.2f}{'':8}" for run in runs.values()))
    return lines


@click.command()
@click.option("--checkpoint", "kinds", multiple=True, type=click.Choice(["tiny", "published"]), help="[default: both]")
@click.option("--where", "places", multiple=True, type=click.Choice(["folder", "s3"]), help="[default: both]")
@click.option("--blocks", default=24, show_default=True, help="Of the published transformer.")
@click.option("--device", help="[default: the best there is]")
@click.option("--dtype", help="[default: bfloat16 on CUDA, float32 elsewhere]")
@click.option("--seconds", default=10.0, show_default=True, help="Of the songs.")
@click.option("--steps", default=27, show_default=True, help="Of the songs.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False), help="Where to write. [default: as tempfile]")
@click.option("--log", is_flag=True, help="Append the tables to benchmarks/LOG.md.")
def main(
    kinds: tuple[str, ...],
    places: tuple[str, ...],
    blocks: int,
    device: str | None,
    dtype: str | None,
    seconds: float,
    steps: int,
    folder: str | None,
    log: bool,
) -> None:
    """Measure, print, and log if asked."""
    lines: list[str] = []
    for kind in kinds or ("tiny", "published"):
        runs: dict[str, dict[str, Any]] = {}
        with tempfile.TemporaryDirectory(dir=folder) as room, _written(kind, blocks, Path(room)) as place:
            os.environ["ACESTEP_CACHE"] = str(Path(room, "cache"))
            limit = limits(place)
            for where in places or ("folder", "s3"):
                cache = Path(room, f"cache-{where}")
                with _source(place, where, Path(room)) as source:
                    drop_from_page_cache(place)
                    for state in ("cold", "warm"):
                        arguments = [source, device, dtype, seconds, steps]
                        runs[f"{where} {state}"] = first_song(arguments, cache)
                shutil.rmtree(cache)
        shown = [f"{kind}: {limit}", *table(runs), ""]
        print("\n".join(shown), flush=True)
        lines += shown
    if log:
        append_to_log("seconds until the first song", _hardware(device), lines[:-1])


def _hardware(device: str | None) -> str:
    from acestep.device import best_device, device_name

    return device_name(best_device(device))


if __name__ == "__main__":
    main()
