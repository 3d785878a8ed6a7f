"""The job on a real cluster: `ray start`, `ray job submit` to its job server, and a driver that joins by address."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog import Catalog
from pipelines.storage import Storage
from tests.conftest import ROOT, S3

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BIN = Path(sys.executable).parent
SETTINGS = ("--set", "engine=tests.stand_in:Engine", "--set", "model.checkpoint=stand-in")


@dataclass(frozen=True)
class Cluster:
    """A head node that is not ours to start or stop from within a job."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


def port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="c", dir="/tmp")  # Short: the names of sockets begin with it.
    gcs, dashboard = port(), port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_TMPDIR": folder}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    ports = {"port": gcs, "dashboard-port": dashboard}
    for name in (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "ray-client-server-port",
    ):
        ports[name] = port()
    command = [
        str(BIN / "ray"),
        "start",
        "--head",
        "--block",
        "--num-cpus=4",
        f"--temp-dir={folder}",
        "--node-ip-address=127.0.0.1",
    ]
    command += ["--disable-usage-stats", *(f"--{name}={number}" for name, number in ports.items())]
    with open(f"{folder}.log", "wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    found = Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment)
    try:
        wait_until_ready(found, head, Path(f"{folder}.log"))
        yield found
    finally:
        nodes = psutil.Process(head.pid).children(recursive=True)
        for process in (psutil.Process(head.pid), *nodes):  # `ray stop` would end every Ray of this machine.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
        os.unlink(f"{folder}.log")


def wait_until_ready(cluster: Cluster, head: subprocess.Popen[bytes], log: Path) -> None:
    """Until the job server answers, with its agent: it refuses jobs before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/")
        request.add_header("Authorization", f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}")
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"the job server does not answer: {log.read_text()}")


def manifest_of(path: Path, count: int, last: str = "song") -> str:
    columns = {
        "id": [f"s{n}" for n in range(count)],
        "prompt": ["song"] * (count - 1) + [last],
        "duration": [2.0] * count,
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


def submit(cluster: Cluster, s3: S3, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    return cluster.run(
        *("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", "."),
        *("--runtime-env-json", json.dumps({"env_vars": variables})),
        *("--", "python", "-m", "jobs.generate", *words, *SETTINGS),
    )


def test_a_submitted_job_makes_the_catalog(cluster: Cluster, moto: S3, tmp_path: Path) -> None:
    base = f"{moto.url}/{uuid.uuid4().hex}"
    store = Storage(base, moto.options)
    store.put("m.parquet", Path(manifest_of(tmp_path / "m.parquet", 6)).read_bytes())
    words = ("--manifest", f"{base}/m.parquet", "--output", f"{base}/out", "--config", "configs/tiny.yaml")
    done = submit(cluster, moto, *words)
    assert done.returncode == 0, done.stdout
    assert "6 songs made" in done.stdout
    assert Catalog(Storage(f"{base}/out", moto.options)).songs().num_rows == 6


def test_a_driver_joins_a_running_cluster_by_address(cluster: Cluster, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "m.parquet", 6, last="refuse")
    words = ("--manifest", manifest, "--output", str(tmp_path / "out"), "--address", cluster.address)
    done = cluster.run(sys.executable, "-m", "jobs.generate", *words, *SETTINGS)
    assert done.returncode == 3, done.stdout
    assert "out_of_memory: 1" in done.stdout
    assert Catalog(Storage(str(tmp_path / "out"))).songs().num_rows == 5


def test_a_cluster_that_is_not_there_is_said(cluster: Cluster, tmp_path: Path) -> None:
    words = ("--manifest", manifest_of(tmp_path / "m.parquet", 1), "--output", str(tmp_path / "out"))
    done = cluster.run(sys.executable, "-m", "jobs.generate", *words, *SETTINGS, "--address", "127.0.0.1:1")
    assert done.returncode == 2, done.stdout
    assert "ray.address: '127.0.0.1:1' cannot be reached" in done.stdout
