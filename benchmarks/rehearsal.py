"""The whole of a job, as a person does it: every command, on a real S3 server, with all that goes wrong on the way.

    python -m benchmarks.rehearsal                   # a quarter of an hour on a laptop without a GPU
    python -m benchmarks.rehearsal --keep out/rehearsal --steps 27

The real prompts and, beside them, a poisoned row, a row whose source file is damaged, one with an adapter, one that
repaints latents on S3, and two swept rows go through plan, generate (killed twice), status, sweep, retry, verify,
compact, report and export. What the commands say is held against what is really there, read without them, and in the
end every song against those of an undisturbed run. The exit code is 0 only if everything held. Takes 5 GB of disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import fsspec
import psutil
import pyarrow.parquet as pq

from benchmarks.rehearsal_inputs import config_text, manifest_rows, mended, tape, write_adapter, write_manifest
from benchmarks.restart import rows_of, s3_server

CATALOG, SKETCHES = "s3://songs/catalog", "s3://songs/sketches"
DATASET, TARS = "s3://songs/dataset", "s3://songs/tars"
KILLED_AT = (0.2, 0.6)
"""Shares of the songs that are committed when the job is killed."""


@dataclass(slots=True)
class Step:
    """One line of the table."""

    name: str
    code: int | str
    seconds: float
    found: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    out: str = ""
    """What the command wrote to stdout."""

    def check(self, holds: bool, found: str) -> None:
        """Note a fact, and whether it is as it must be."""
        (self.found if holds else self.wrong).append(found)


class RehearsalError(Exception):
    """A command ended as it should not: what comes after would say nothing."""


class Rehearsal:
    """A folder with a manifest, and the steps done so far."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        self.table: list[Step] = []
        self.manifest = str(folder / "prompts.parquet")
        self.config = str(folder / "job.yaml")
        self.source = folder / "demo-tape.flac"
        self.job = ("--manifest", self.manifest, "--output", CATALOG, "--config", self.config)

    def run(self, name: str, module: str, *words: str, code: int = 0) -> Step:
        """One command to its end; its output goes to a file of its own."""
        step, process, log = self._start(name, module, words)
        return self._ended(step, process, log, code)

    def run_until(
        self, name: str, module: str, *words: str, ready: Callable[[], bool], seen: Callable[[], None]
    ) -> Step:
        """One command, killed with all its processes when `ready`; `seen` is called before that."""
        step, process, log = self._start(name, module, words)
        try:
            for act in (seen, lambda: None):
                while process.poll() is None and not ready():
                    time.sleep(0.3)
                act()
        finally:
            _kill(process)
        step = self._ended(step, process, log, -signal.SIGKILL)
        step.check(not (left := self._processes()), f"{left} of Ray's processes live on" if left else "no process left")
        return step

    def _start(self, name: str, module: str, words: tuple[str, ...]) -> tuple[Step, subprocess.Popen, Path]:
        step = Step(name, "", time.perf_counter())
        log = self.folder / "logs" / f"{len(self.table):02d}-{name.replace(' ', '-').replace(',', '')}"
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", f"jobs.{module}", *words]
        log.with_suffix(".command").write_text(" ".join(command) + "\n")
        with open(log.with_suffix(".out"), "wb") as out, open(log.with_suffix(".err"), "wb") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        self.table.append(step)
        return step, process, log

    def _ended(self, step: Step, process: subprocess.Popen, log: Path, code: int) -> Step:
        try:
            step.code = process.wait()
        finally:  # Ctrl-C does not reach it: it has a session of its own.
            _kill(process)
        step.seconds = time.perf_counter() - step.seconds
        step.out, err = (log.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        if "Traceback" in err:
            step.wrong.append(f"a traceback in {log}.err")
        print(f"{step.name}: exit {step.code}, {step.seconds:.1f} s", flush=True)
        if step.code != code:
            last = " ".join((err or step.out).split())[-300:]
            step.wrong.append(f"exit code {step.code}, not {code}: ... {last}")
            raise RehearsalError
        return step

    def _processes(self) -> int:
        """How many processes of the killed job are there 10 s later."""
        deadline = time.monotonic() + 10
        while (count := sum(map(_is_ours, psutil.process_iter()))) and time.monotonic() < deadline:
            time.sleep(0.5)
        return count


def _kill(process: subprocess.Popen) -> None:
    """With all of its processes, like a machine that is gone."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _is_ours(process: psutil.Process) -> bool:
    try:
        ours = process.environ().get("RAY_TMPDIR") == os.environ["RAY_TMPDIR"]
        return ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def objects(output: str, *folders: str) -> dict[str, int]:
    """Keys and sizes of objects below a URL or folder, as a reader finds them at this moment."""
    store, root = fsspec.core.url_to_fs(output)
    store.invalidate_cache()
    found = [store.find(f"{root}/{folder}", detail=True) for folder in folders or ("",)]
    return {key[len(root.rstrip("/")) + 1 :]: about["size"] for each in found for key, about in each.items()}


def orphans(output: str) -> set[str]:
    """Sound that no row names."""
    named = {row[name] for row in rows_of(output, ["path", "latents"]) for name in ("path", "latents")}
    failed = [row["path"] for row in failures_of(output)]
    return set(objects(output, "audio", "latents", "quarantine")) - named - set(failed)


def failures_of(output: str) -> list[dict[str, Any]]:
    """The rows of `failed/`."""
    store, root = fsspec.core.url_to_fs(output)
    keys = [key for key in objects(output, "failed") if key.endswith(".parquet")]
    return [row for key in keys for row in pq.read_table(io.BytesIO(store.cat_file(f"{root}/{key}"))).to_pylist()]


def songs_of(output: str) -> set[tuple[str, str, str]]:
    """(id, fingerprint, sha256) of every row."""
    return {(row["id"], row["fingerprint"], row["sha256"]) for row in rows_of(output)}


def rehearse(here: Rehearsal) -> None:
    """All steps; each adds to the table."""
    latents = sketch(here)
    write_adapter(here.folder / "adapter")
    adapter, source = str(here.folder / "adapter"), str(here.source)
    rows, planned = manifest_rows(here.steps, adapter=adapter, source=source, latents=latents)
    write_manifest(here.manifest, rows)
    Path(here.config).write_text(config_text(here.steps))
    data = tape()
    here.source.write_bytes(data[: len(data) // 2])  # Its header is whole: nobody knows before it is read.
    plan(here, planned)
    make(here, planned)
    mend(here, rows, planned + 1)
    look_after(here, planned + 1)
    deliver(here)
    compare(here)


def sketch(here: Rehearsal) -> str:
    """A first catalog of one song; where its latents lie, to be repainted."""
    manifest = here.folder / "sketch.jsonl"
    manifest.write_text(json.dumps({"id": "sketch", "prompt": "bossa nova", "duration": 12, "num_inference_steps": 4}))
    words = ("--manifest", str(manifest), "--output", SKETCHES, "--set", "keep_latents=true")
    step = here.run("sketch", "generate", *words)
    (song,) = rows_of(SKETCHES)
    step.check(song["latents"] in objects(SKETCHES), "1 song with latents")
    return f"{SKETCHES}/{song['latents']}"


def plan(here: Rehearsal, planned: int) -> None:
    """The poisoned row is named with everything that is wrong with it, and nothing else is refused."""
    step = here.run("plan", "plan", *here.job, code=3)
    store, root = fsspec.core.url_to_fs(CATALOG)
    rejects = pq.read_table(io.BytesIO(store.cat_file(f"{root}/plan/rejects.parquet"))).to_pylist()
    text = json.dumps(rejects, default=str)
    named = "poisoned" in text and "duration" in text and "scheduler" in text
    step.check(named and len({row["row"] for row in rejects}) == 1, "1 row refused, for its duration and scheduler")
    step.check("poisoned" in step.out and "duration 900.0" in step.out, "it says so")
    step.check(f"{planned} to make of {planned} planned" in step.out, f"{planned} songs planned")


def make(here: Rehearsal, planned: int) -> None:
    """Killed twice, started again twice; every row of a killed run stays as it is."""
    before: list[dict[str, Any]] = []
    for number, share in enumerate(KILLED_AT, 1):

        def is_time(least: int = round(share * planned)) -> bool:
            return len(rows_of(CATALOG, ["id"])) >= least and len(orphans(CATALOG)) > 0

        def look() -> None:
            status = here.run("status, at work", "status", CATALOG)
            status.check(": at work (" in status.out, status.out.splitlines()[1].split(None, 1)[1])

        step = here.run_until(f"generate, killed ({number})", "generate", *here.job, ready=is_time, seen=look)
        rows, left = rows_of(CATALOG), orphans(CATALOG)
        step.check(planned > len(rows) > len(before), f"{len(rows)} songs, {len(left)} objects without a row")
        step.check(all(row in rows for row in before), "earlier rows as they were")
        before = rows
        status = here.run("status, killed", "status", CATALOG)
        status.check(": the run died" in status.out, status.out.splitlines()[1].split(None, 1)[1])
        listed = here.run("sweep --list", "sweep", CATALOG, "--list")
        keys = set(listed.out.split())
        listed.check(left <= keys, f"{len(keys)} listed, all {len(left)} among them")
    step = here.run("sweep --yes", "sweep", CATALOG, "--yes")
    step.check(not orphans(CATALOG), f"{len(orphans(CATALOG))} left, {len(rows_of(CATALOG))} songs")
    step = here.run("generate, to the end", "generate", *here.job, code=3)
    step.check("times real time" in step.out, step.out.splitlines()[1])
    rows, failed = rows_of(CATALOG), failures_of(CATALOG)
    ids = [row["id"] for row in rows]
    step.check(all(row in rows for row in before) and len(set(ids)) == len(ids), f"{len(ids)} songs, none twice")
    step.check(len(ids) == planned - 1, "all but one")
    names = {row["id"]: row["error_class"] for row in failed if row["fingerprint"]}
    step.check(names == {"damaged-source": "input"}, f"failed: {names}")
    step = here.run("verify", "verify", CATALOG)
    step.check("1 failed, 0 missing" in step.out, "1 failed, 0 missing")


def mend(here: Rehearsal, rows: list[dict[str, Any]], songs: int) -> None:
    """The source file is repaired, then the poisoned row."""
    here.source.write_bytes(tape())
    step = here.run("retry, source mended", "retry", CATALOG, code=3)  # One row is still refused.
    step.check(len(rows_of(CATALOG)) == songs - 1, f"{len(rows_of(CATALOG))} songs")
    write_manifest(here.manifest, mended(rows))
    step = here.run("generate, manifest mended", "generate", *here.job)
    step.check(len(rows_of(CATALOG)) == songs, f"{len(rows_of(CATALOG))} songs")
    step = here.run("status, finished", "status", CATALOG)
    step.check(": finished" in step.out and f"{songs} of {songs} made" in step.out, f"finished, {songs} of {songs}")


def look_after(here: Rehearsal, songs: int) -> None:
    """Verify, sweep, compact, verify, report."""
    step = here.run("verify --deep", "verify", CATALOG, "--deep")
    step.check(f"{songs} made, 0 failed, 0 missing" in step.out, step.out.splitlines()[0])
    step = here.run("sweep, at the end", "sweep", CATALOG)
    step.check(not orphans(CATALOG) and step.out.startswith("0 orphans"), step.out.split(";")[0])
    before, files = songs_of(CATALOG), len(objects(CATALOG, "songs"))
    step = here.run("compact", "compact", CATALOG)
    step.check(songs_of(CATALOG) == before, f"the same {len(before)} rows")
    step.check(
        len(objects(CATALOG, "songs")) <= files, f"{files} row files before, {len(objects(CATALOG, 'songs'))} now"
    )
    step = here.run("verify, compacted", "verify", CATALOG)
    step.check(f"{songs} made, 0 failed, 0 missing" in step.out, "everything as the rows say")
    step = here.run("report", "report", CATALOG)
    size = objects(CATALOG).get("report.html", 0)
    step.check(size > 100_000, f"{size / 1e6:.1f} MB")


def deliver(here: Rehearsal) -> None:
    """Exports to S3, read back with the readers that they are for."""
    os.environ["HF_HOME"] = str(here.folder / "hf")
    rows = sorted((row["id"], row["sha256"]) for row in rows_of(CATALOG))
    readers = {
        "parquet": (DATASET, songs_in_parquet),
        "webdataset": (TARS, lambda: songs_in_tars(here.folder / "tars")),
    }
    for kind, (place, read) in readers.items():
        step = here.run(f"export {kind}", "export", CATALOG, place, "--as", kind)
        started = time.perf_counter()
        found = sorted(read())
        seconds = time.perf_counter() - started
        step.check(found == rows, f"{len(found)} songs read back in {seconds:.1f} s, sha256 equal: {found == rows}")


def songs_in_parquet() -> list[tuple[str, str]]:
    """(id, sha256) of what `datasets` reads."""
    import datasets

    loaded = datasets.load_dataset("parquet", data_files=f"{DATASET}/data/*.parquet", split="train", streaming=True)
    plain = loaded.cast_column("audio", datasets.Audio(decode=False))
    return [(row["id"], hashlib.sha256(row["audio"]["bytes"]).hexdigest()) for row in plain]


def songs_in_tars(folder: Path) -> list[tuple[str, str]]:
    """(id, sha256) of what `webdataset` reads."""
    import webdataset

    folder.mkdir()
    store, root = fsspec.core.url_to_fs(TARS)
    for key in store.glob(f"{root}/*.tar"):
        store.get_file(key, f"{folder}/{Path(key).name}")
    samples = webdataset.WebDataset(sorted(map(str, folder.iterdir())), shardshuffle=False)
    return [(json.loads(each["json"])["id"], hashlib.sha256(each["flac"]).hexdigest()) for each in samples]


def compare(here: Rehearsal) -> None:
    """An undisturbed run of the mended manifest into a folder gives the same songs."""
    calm = str(here.folder / "calm")
    step = here.run("undisturbed, folder", "generate", *here.job[:2], "--output", calm, "--config", here.config)
    step.check("times real time" in step.out, step.out.splitlines()[1])
    one, other = songs_of(CATALOG), songs_of(calm)
    names = sorted({each[0] for each in one ^ other})
    step.check(
        one == other, f"{len(other)} songs, ids, fingerprints and sha256 equal: {one == other} {names[:5] or ''}"
    )


@click.command()
@click.option("--steps", default=8, show_default=True, help="Denoising steps of a song.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Do it there, and leave everything. [default: a temporary folder]"
)
def main(steps: int, keep: Path | None) -> None:
    """Rehearse the whole job and print a table."""
    with ExitStack() as stack:
        folder = Path(keep or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "s3").mkdir()
        stack.enter_context(s3_server(str(folder / "s3")))
        ray = tempfile.mkdtemp(prefix="rh", dir="/tmp")  # Short: Ray's sockets lie there.
        stack.callback(shutil.rmtree, ray, ignore_errors=True)
        os.environ["RAY_TMPDIR"] = ray  # Not of the server: what has it is the job's.
        here = Rehearsal(folder, steps)
        started = time.perf_counter()
        try:
            rehearse(here)
        except RehearsalError:
            print("stopped")
        finally:
            show(here.table, time.perf_counter() - started)
    sys.exit(1 if any(step.wrong for step in here.table) else 0)


def show(table: list[Step], seconds: float) -> None:
    """The table, with what is wrong at the end."""
    width = max(len(step.name) for step in table)
    print(f"\n{'step'.ljust(width)}  exit  seconds  found")
    for step in table:
        found = "; ".join([*step.found, *(f"WRONG: {each}" for each in step.wrong)])
        print(f"{step.name.ljust(width)}  {step.code!s:>4}  {step.seconds:7.1f}  {found}")
    wrong = sum(len(step.wrong) for step in table)
    print(f"{len(table)} commands in {seconds:.0f} s; " + (f"{wrong} things are wrong" if wrong else "everything held"))


if __name__ == "__main__":
    main()
