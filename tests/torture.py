"""The worst night: processes, nodes, the driver and the store are killed at random, and the catalog must not show it.

    python -m tests.torture --kills 50
    python -m tests.torture --kills 5 --seed 3

A manifest is made twice by an engine whose audio depends on the whole batch: once undisturbed into a folder, once on a
local Ray cluster of several nodes into a real S3 server behind a proxy that lets a fifth of all requests fail. There,
at random moments, one of these is killed with SIGKILL: an engine's process, a worker node, the driver, the store. What
is dead is started again as an operator or Kubernetes would. In the end, after a sweep, both catalogs must be equal:
the same ids, the same sha256, no row twice, no orphans, every file whole.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.orphans import delete_orphans, find_orphans
from pipelines.storage import Storage
from pipelines.verification import verify
from tests.seaweed import Seaweed, free_ports

ROOT = Path(__file__).parents[1]
KINDS = {"engine": 5, "node": 2, "driver": 2, "store": 1}
"""What is killed, and how often beside each other."""
ENGINES = 2
SLOW_SECONDS = 0.4
"""Of a song in the engine."""
GAP_SECONDS = (0.5, 3.0)
"""Between two kills, while songs are made."""
STORE_DOWN_SECONDS = 2.0
STUCK_SECONDS = 300.0
CLUSTER_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled"}
"""For the cluster and its drivers alike: a Ray that was started in this process before has asked for tokens."""


class Cluster:
    """Ray as processes of this machine: a head that makes nothing, and worker nodes that can be killed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._port = free_ports(1)[0]
        self._environment = os.environ | {
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "2000",
            "RAY_health_check_failure_threshold": "15",
            "OMP_NUM_THREADS": "1",
            **CLUSTER_ENVIRONMENT,
        }
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        """For `ray.init`."""
        return f"127.0.0.1:{self._port}"

    def start(self, nodes: int) -> None:
        """The head and so many worker nodes."""
        self._head = self._start(["--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false"])
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                break
            assert time.monotonic() < deadline, "the head of the cluster does not answer"
            time.sleep(0.2)
        for _ in range(nodes):
            self.add_node()

    def add_node(self) -> None:
        """One more worker node."""
        self.nodes.append(self._start([f"--address={self.address}", "--num-cpus=3", '--resources={"engine": 1}']))

    def heal(self) -> None:
        """New nodes for those that ended by themselves: Ray gives up one that is too slow to answer."""
        for node in [node for node in self.nodes if node.poll() is not None]:
            self.nodes.remove(node)
            self.add_node()

    def kill_node(self, number: int) -> None:
        """A node and all that runs there, as when its machine is taken away; another comes."""
        _kill_tree(self.nodes.pop(number))
        self.add_node()

    def engines(self) -> list[psutil.Process]:
        """The processes that hold engines."""
        return [
            process
            for node in self.nodes
            for process in _tree(node.pid)
            if _name(process).startswith("ray::MapWorker(MapBatches(GenerateStage))")
        ]

    def stop(self) -> None:
        """Everything."""
        for process in [*self.nodes, self._head]:
            _kill_tree(process)

    def _start(self, options: list[str]) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *options]
        if "--head" in options:
            command += [f"--temp-dir={self._folder}"]
        log = open(self._folder / "cluster.log", "ab")  # noqa: SIM115 - the process writes to it for as long as it lives
        return subprocess.Popen(
            command, env=self._environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )


class Night:
    """One manifest, made among kills."""

    def __init__(self, folder: Path, songs: int, chosen: random.Random):
        self._folder = folder
        self._chosen = chosen
        self.manifest = folder / "manifest.parquet"
        columns = {
            "id": [f"song-{number:05d}" for number in range(songs)],
            "prompt": [f"song {number} slow:{SLOW_SECONDS}" for number in range(songs)],
            "duration": [1.0 + number % 3 for number in range(songs)],
        }
        pq.write_table(pa.table(columns), self.manifest)
        self.kills: Counter[str] = Counter()
        self.starts = 0
        self._job: subprocess.Popen[bytes] | None = None

    def command(self, output: str, *more: str) -> list[str]:
        """`generate`, in a process of its own."""
        settings = ["engine=tests.stand_in:Engine", "model.checkpoint=stand-in", "batch.max_batch_size=4"]
        settings += ["plan.bucket_rows=100", "commit.every_songs=8", "commit.every_seconds=2", "storage.attempts=8"]
        settings += ["lease.heartbeat_seconds=2", "lease.stale_seconds=20", *more]
        words = [word for setting in settings for word in ("--set", setting)]
        names = ["--manifest", str(self.manifest), "--output", output]
        return [sys.executable, "-m", "jobs.generate", *names, *words]

    def calm(self, output: str) -> None:
        """Undisturbed, into a folder, without waiting in the engine."""
        done = subprocess.run(
            self.command(output, f"resources.num_actors={ENGINES}"), cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def disturbed(self, output: str, options: dict[str, str], cluster: Cluster, store: Seaweed, kills: int) -> None:
        """Until all is made; after `kills` kills nobody disturbs any more, but a fifth of the requests still fail."""
        settings = [f"resources.num_actors={ENGINES}", f"storage.storage_options={options}"]
        command = self.command(output, *settings, f"ray.address={cluster.address}")
        job, last, last_seen = None, time.monotonic(), -1
        next_kill = float("inf")
        while True:
            if job is None or job.poll() is not None:
                if job is not None and job.returncode == 0:
                    return
                assert job is None or job.returncode in (4, -9), self._log()
                job = self._start(command)
                next_kill = float("inf")
            cluster.heal()
            seen = self._songs(output, options)
            if seen != last_seen:
                last, last_seen = time.monotonic(), seen
                if next_kill == float("inf"):
                    next_kill = time.monotonic() + self._chosen.uniform(*GAP_SECONDS)
            assert time.monotonic() - last < STUCK_SECONDS, f"nothing was made for {STUCK_SECONDS:g} s\n{self._log()}"
            if self.kills.total() < kills and (time.monotonic() >= next_kill or job.poll() is not None):
                self._kill(job, cluster, store)
                next_kill = time.monotonic() + self._chosen.uniform(*GAP_SECONDS)
            time.sleep(0.1)

    def _kill(self, job: subprocess.Popen[bytes], cluster: Cluster, store: Seaweed) -> None:
        kind = self._chosen.choices(list(KINDS), list(KINDS.values()))[0]
        engines = cluster.engines()
        if kind == "engine":
            if not engines:
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                self._chosen.choice(engines).kill()
        elif kind == "node":
            cluster.kill_node(self._chosen.randrange(len(cluster.nodes)))
        elif kind == "driver":
            _kill_tree(job)
        else:
            store.kill()
            time.sleep(STORE_DOWN_SECONDS)
            store.start()
        self.kills[kind] += 1
        print(f"  kill {self.kills.total():3}: {kind}", flush=True)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        self.starts += 1
        environment = os.environ | CLUSTER_ENVIRONMENT
        with open(self._folder / "job.log", "ab") as log:
            self._job = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        return self._job

    def stop(self) -> None:
        """Whatever still runs."""
        if self._job is not None:
            _kill_tree(self._job)

    def _log(self) -> str:
        return (self._folder / "job.log").read_text(errors="replace")[-4000:]

    @staticmethod
    def _songs(output: str, options: dict[str, str]) -> int:
        try:
            return len(Storage(output, options, attempts=1).keys(layout.SONGS, ".parquet"))
        except OSError:
            return -1


def differences(calm: Storage, night: Storage) -> list[str]:
    """All in which the catalog of the night is not that of the calm; orphans are swept first."""
    found = []
    swept = find_orphans(night)
    print(f"{len(swept.keys)} orphans to sweep", flush=True)
    delete_orphans(night, swept)
    if left := find_orphans(night).keys:
        found.append(f"{len(left)} orphans after the sweep")
    first, second = (
        {row["id"]: row["sha256"] for row in Catalog(storage).songs().to_pylist()} for storage in (calm, night)
    )
    found += [f"{id}: only in one of them" for id in sorted(first.keys() ^ second.keys())]
    found += [f"{id}: another sha256" for id in sorted(first.keys() & second.keys()) if first[id] != second[id]]
    rows = sum(night.read_table(key, ["id"]).num_rows for key in night.keys(layout.SONGS, ".parquet"))
    if rows != len(second):
        found.append(f"{rows} rows for {len(second)} songs")
    if failures := Catalog(night).failures().num_rows:
        found.append(f"{failures} failures")
    report = verify(night, deep=True)
    found += [str(fault) for fault in report.faults]
    return found


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    return []


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _kill_tree(process: subprocess.Popen[Any]) -> None:
    for each in _tree(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def torture(kills: int, seed: int, songs: int, share: float) -> list[str]:
    """One night; what is wrong afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # Short: Ray's sockets lie below it.
    os.environ["RAY_TMPDIR"] = str(folder)
    night, cluster, store = Night(folder, songs, random.Random(seed)), Cluster(folder), Seaweed(folder)
    proxy = None
    try:
        started = time.monotonic()
        night.calm(str(folder / "calm"))
        print(f"{songs} songs undisturbed: {time.monotonic() - started:.0f} s", flush=True)
        store.start()
        port = free_ports(1)[0]
        words = ["--port", str(port), "--to", store.endpoint, "--share", str(share), "--seed", str(seed)]
        proxy = subprocess.Popen([sys.executable, "-m", "tests.flaky_proxy", *words], cwd=ROOT)
        cluster.start(ENGINES)
        options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "test", "secret": "test"}
        started = time.monotonic()
        night.disturbed("s3://songs/night", options, cluster, store, kills)
        seconds = time.monotonic() - started
        direct = options | {"endpoint_url": store.endpoint}
        wrong = differences(Storage(str(folder / "calm")), Storage("s3://songs/night", direct))
        if night.kills.total() < kills:
            wrong.append(f"only {night.kills.total()} of {kills} kills before all was made; take more songs")
        done = ", ".join(f"{count} {kind}" for kind, count in night.kills.most_common())
        print(f"{night.kills.total()} kills ({done}), {night.starts} starts of the job, {seconds:.0f} s", flush=True)
        return wrong
    finally:
        night.stop()
        cluster.stop()
        if proxy is not None:
            proxy.kill()
        with contextlib.suppress(AssertionError):
            store.kill()
        if os.environ.get("KEEP_TORTURE"):
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@click.command()
@click.option("--kills", default=50, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of what is killed when.")
@click.option("--songs", type=int, help="How many. [default: 24 for each kill, 60 at least]")
@click.option("--share", default=0.2, show_default=True, help="Of the store's requests that fail.")
def main(kills: int, seed: int, songs: int | None, share: float) -> None:
    """Make a catalog among kills, and hold it against an undisturbed one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wrong = torture(kills, seed, songs or max(60, 24 * kills), share)
    print("the catalogs are equal" if not wrong else "\n".join(wrong[:50]), flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
