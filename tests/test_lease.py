"""The lease: one holder at a time, taken over from the dead at once or when they have been silent for long enough."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pipelines import layout
from pipelines.errors import OutputError, StorageError
from pipelines.holder import Holder
from pipelines.lease import Lease, LeaseLostError, read_lease
from pipelines.storage import Storage
from tests.conftest import ROOT, S3

TIMES = {"heartbeat_seconds": 0.2, "stale_seconds": 2.5, "settle_seconds": 0.4}

CONTENDER = """
import json, sys, time
from pipelines.errors import OutputError
from pipelines.lease import Lease
from pipelines.storage import Storage
url, options, run, start, hold = json.loads(sys.argv[1])
lease = Lease(Storage(url, options), run, heartbeat_seconds=0.3, stale_seconds=6.0, settle_seconds=1.0)
while time.time() < start:
    time.sleep(0.001)
try:
    lease.acquire()
except OutputError as error:
    print("refused", error, flush=True)
    sys.exit()
print("held", flush=True)
time.sleep(hold)
lease.check()
lease.release()
print("released", flush=True)
"""


@pytest.fixture(params=["folder", "moto"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return Storage(str(tmp_path / "out"), attempts=2)
    moto: S3 = request.getfixturevalue("moto")
    return Storage(f"{moto.url}/{uuid.uuid4().hex}", moto.options, attempts=2)


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"), attempts=2)


def contender(storage: Storage, run: str, start: float = 0.0, hold: float = 0.0) -> subprocess.Popen[str]:
    """A process that takes the lease at the time `start` and holds it for `hold` seconds."""
    arguments = json.dumps([storage.url, storage.options, run, start, hold])
    return subprocess.Popen([sys.executable, "-c", CONTENDER, arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def said(process: subprocess.Popen[str]) -> str:
    """The next line of a process."""
    assert process.stdout
    return process.stdout.readline().strip()


def elsewhere(**changes: Any) -> Holder:
    """A holder on another machine."""
    here = Holder.here("theirs", 0.1, 1.0)
    now = datetime.now(timezone.utc).isoformat()
    return replace(here, **({"machine": "m", "host": "far", "token": "t", "beat": 7, "time": now} | changes))


def write(storage: Storage, holder: Holder) -> None:
    storage.put(layout.LEASE, holder.text().encode())


class Beating:
    """A holder elsewhere that lives: it counts, and writes over claims but not over leases."""

    def __init__(self, storage: Storage, seconds_ahead: float = 0.0):
        time_there = (datetime.now(timezone.utc) + timedelta(seconds=seconds_ahead)).isoformat()
        self.lease = Lease(storage, "theirs", **TIMES)
        self.lease._mine = elsewhere(time=time_there)
        self.lease._put = self.put  # type: ignore[method-assign]
        self.put(storage)

    def put(self, storage: Storage) -> None:
        write(storage, self.lease._mine)  # with the time that its clock has

    def __enter__(self) -> Beating:
        self.lease._last_beat = time.monotonic() + 1e6
        self.lease._thread = threading.Thread(target=self.lease._keep, daemon=True)
        self.lease._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.lease.release()


def test_it_is_taken_renewed_and_given_back(storage: Storage) -> None:
    with Lease(storage, "mine", **TIMES) as lease:
        first = read_lease(storage)
        assert first and first.run == "mine" and first.pid == os.getpid() and not first.is_claim
        time.sleep(0.6)
        second = read_lease(storage)
        assert second and second.token == first.token and second.beat > first.beat
        assert lease.lost is None
        lease.check()
    assert not storage.exists(layout.LEASE)
    with Lease(storage, "next", **TIMES):
        pass


def test_of_two_processes_that_start_together_exactly_one_wins(storage: Storage) -> None:
    for _ in range(2):
        start = time.time() + 4
        racers = [contender(storage, name, start, hold=0.6) for name in ("one", "two")]
        answers = [racer.communicate(timeout=60)[0] for racer in racers]
        assert sorted(answer.split()[0] for answer in answers) == ["held", "refused"], answers
        assert any("released" in answer for answer in answers), answers
        refused = next(answer for answer in answers if answer.startswith("refused"))
        assert "is in use by run" in refused and f"(pid {os.getpid()})" not in refused
        assert not storage.exists(layout.LEASE)


def test_the_second_is_refused_and_told_who_is_there(storage: Storage) -> None:
    first = contender(storage, "first", hold=30)
    try:
        assert said(first) == "held"
        with pytest.raises(OutputError, match=rf"in use by run first on host .* \(pid {first.pid}\), which was alive"):
            Lease(storage, "second", **TIMES).acquire()
        holder = read_lease(storage)
        assert holder and holder.run == "first"
    finally:
        first.kill()
        first.wait()


def test_a_killed_holder_of_this_machine_is_replaced_at_once(folder: Storage) -> None:
    killed = contender(folder, "killed", hold=60)
    assert said(killed) == "held"
    killed.send_signal(signal.SIGKILL)
    started = time.monotonic()
    while (holder := read_lease(folder)) and not holder.is_gone() and time.monotonic() < started + 10:
        time.sleep(0.01)
    # Not waited for: a zombie is dead, too.
    started = time.monotonic()
    with Lease(folder, "next", **(TIMES | {"settle_seconds": 0.1})):
        assert time.monotonic() - started < 1.0
    killed.wait()


def test_another_process_with_the_same_id_is_another(folder: Storage) -> None:
    write(folder, replace(Holder.here("before the reboot", 5.0, 60.0), token="t", beat=3, started="1"))
    started = time.monotonic()
    with Lease(folder, "next", **TIMES):
        assert time.monotonic() - started < 5


def test_a_holder_elsewhere_is_replaced_when_it_stays_silent(storage: Storage) -> None:
    write(storage, elsewhere())
    started = time.monotonic()
    with Lease(storage, "next", **TIMES):
        assert time.monotonic() - started >= 1.0
        holder = read_lease(storage)
        assert holder and holder.run == "next"


def test_one_that_has_long_been_silent_by_the_clock_is_not_watched(folder: Storage) -> None:
    long_ago = (datetime.now(timezone.utc) - timedelta(days=1)).isoformat()
    write(folder, elsewhere(time=long_ago, stale_seconds=60.0))
    started = time.monotonic()
    with Lease(folder, "next", **TIMES):
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("seconds_ahead", [-86_400.0, 86_400.0])
def test_wrong_clocks_let_nobody_in(folder: Storage, seconds_ahead: float) -> None:
    with Beating(folder, seconds_ahead):
        with pytest.raises(OutputError, match=r"in use by run theirs on host far .* alive \d+ s ago"):
            Lease(folder, "second", **TIMES).acquire()
        time.sleep(0.3)
        holder = read_lease(folder)
        assert holder and holder.run == "theirs"


def test_a_dead_one_whose_clock_was_ahead_is_replaced_too(folder: Storage) -> None:
    write(folder, elsewhere(time=(datetime.now(timezone.utc) + timedelta(days=1)).isoformat()))
    with Lease(folder, "next", **TIMES):
        pass


def test_waiting_ends_when_it_is_given_back(folder: Storage) -> None:
    write(folder, elsewhere(stale_seconds=30.0))
    threading.Timer(0.5, lambda: folder.delete([layout.LEASE])).start()
    started = time.monotonic()
    with Lease(folder, "second", **TIMES):
        assert time.monotonic() - started < 10


def test_a_slow_claim_over_a_living_lease_is_refused(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that found the place free and then slept, while another came and settled."""
    late = Lease(folder, "late", **TIMES)
    looks: Iterator[None] = iter([None])
    real = read_lease

    def look(storage: Storage) -> Holder | None:
        if storage is folder and next(looks, "again") is None:
            early.acquire()
            time.sleep(0.3)
            return None
        return real(storage)

    early = Lease(Storage(folder.url), "early", **TIMES)
    monkeypatch.setattr("pipelines.lease.read_lease", look)
    with pytest.raises(OutputError, match="in use by run early"):
        late.acquire()
    early.check()
    early.release()


def test_who_finds_another_lease_in_its_place_has_lost_its_own(storage: Storage) -> None:
    told: list[bool] = []
    lease = Lease(storage, "mine", **TIMES, on_lost=lambda: told.append(True))
    with lease:
        write(storage, elsewhere())
        for _ in range(100):
            if lease.lost:
                break
            time.sleep(0.05)
        with pytest.raises(LeaseLostError, match="run theirs on host far"):
            lease.check()
    assert told == [True]
    holder = read_lease(storage)
    assert holder and holder.run == "theirs"  # not deleted with ours


def test_storage_that_fails_for_a_moment_is_borne(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(folder, "mine", **TIMES) as lease:
        real = lease._storage.put
        failing = True

        def put(key: str, data: bytes) -> None:
            if failing:
                raise StorageError("away")
            real(key, data)

        monkeypatch.setattr(lease._storage, "put", put)
        time.sleep(0.4)
        lease.check()
        failing = False
        time.sleep(0.4)
        failing = True
        time.sleep(0.5)
        lease.check()
        time.sleep(TIMES["stale_seconds"])
        with pytest.raises(LeaseLostError, match=r"could not be renewed for \d+ s"):
            lease.check()
        failing = False
        time.sleep(0.3)
        with pytest.raises(LeaseLostError):  # for good: others may be at work by now
            lease.check()


def test_a_lease_that_cannot_be_read_is_one_of_somebody(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put(layout.LEASE, b"{")
    holder = read_lease(folder)
    assert holder and holder.run == "unknown" and not holder.is_gone()
    unread = Holder.parse
    monkeypatch.setattr(
        "pipelines.lease.Holder.parse",
        lambda data: replace(found, stale_seconds=0.5) if (found := unread(data)).run == "unknown" else found,
    )
    with Lease(folder, "next", **TIMES):
        pass
