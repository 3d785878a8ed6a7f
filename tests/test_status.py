"""Status: told from small objects alone, whatever of them there is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.status import command
from pipelines import layout
from pipelines.census import take_census
from pipelines.errors import OutputError
from pipelines.holder import Holder
from pipelines.lease import Lease
from pipelines.status import read_status
from pipelines.storage import Storage
from tests.small_catalog import NUM_BUCKETS, PLAN, make_catalog

WHOLE: dict[str, Any] = {
    "state": "running",
    "run": "r2",
    "songs_planned": 7,
    "songs_already": 2,
    "songs_to_make": 5,
    "songs_made": 1,
    "songs_failed": 1,
    "failures": {"quality": 1},
    "rerolls": 3,
    "quarantined": 1,
    "audio_seconds": 7200.0,
    "audio_seconds_left": 34_200.0,
    "real_time_factor": 31.25,
    "real_time_factor_now": 40.0,
    "seconds_left": 3700,
    "cost_left": 12.5,
    "engines": 4,
    "lora_switches": 2,
    "padding": 0.125,
    "started_at": "2026-01-01T00:00:00+00:00",
    "updated_at": "2026-01-01T00:10:00+00:00",
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path / "out"))
    make_catalog(storage)
    return storage


def progress(storage: Storage, **changes: Any) -> None:
    storage.put(layout.PROGRESS, json.dumps(WHOLE | changes).encode())


def lease(storage: Storage, seconds_ago: float, **changes: Any) -> None:
    """A lease of run `r2` on another machine."""
    beaten = datetime.now(timezone.utc) - timedelta(seconds=seconds_ago)
    holder = replace(Holder.here("r2", 5.0, 30.0), machine="far", host="gpu-7", token="t", beat=3)
    storage.put(layout.LEASE, replace(holder, time=beaten.isoformat(), **changes).text().encode())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no catalog"):
        read_status(Storage(str(tmp_path / "nothing")))


def test_a_run_at_work(storage: Storage) -> None:
    progress(storage)
    lease(storage, 2)
    status = read_status(storage)
    assert status.state == "running" and status.is_running and status.songs_made == 3
    text = status.text()
    for words in (
        "at work (run r2 on host gpu-7",
        "3 of 7 made (42.9%), 1 failed",
        "quality 1",
        "2.00 h made",
        "40.0 times real time now, 31.2 overall",
        "3 rerolls, 1 in quarantine",
        "1 h 01 min, cost 12.50, 9.50 h of audio",
        "4, 2 switches of adapters, 12.5% padding",
        "0 of 2 finished",
        "r2, started 2026-01-01T00:00:00+00:00",
    ):
        assert words in text, text


@pytest.mark.parametrize(
    ("said", "seconds_ago", "state"),
    [
        ("running", None, "died"),
        ("running", 60, "silent"),
        ("running", 500, "died"),
        ("finished", None, "finished"),
        ("stopped", None, "stopped"),
        ("failed", None, "failed"),
        ("finished", 500, "finished"),
        ("something of tomorrow", None, "planned"),
    ],
)
def test_states(storage: Storage, said: str, seconds_ago: float | None, state: str) -> None:
    progress(storage, state=said)
    if seconds_ago is not None:
        lease(storage, seconds_ago)
    status = read_status(storage)
    assert status.state == state
    assert status.text()


def test_a_run_that_died_on_this_machine_is_dead_at_once(storage: Storage) -> None:
    progress(storage)
    here = Holder.here("r2", 5.0, 30.0)
    now = datetime.now(timezone.utc).isoformat()
    storage.put(layout.LEASE, replace(here, started="1", beat=3, token="t", time=now).text().encode())
    assert read_status(storage).state == "died"


def test_without_progress_the_markers_tell(storage: Storage) -> None:
    assert read_status(storage).state == "planned"
    assert "0 of 7 made" in read_status(storage).text()
    take_census(storage, PLAN, range(NUM_BUCKETS), run="r")
    status = read_status(storage)
    assert (status.songs_made, status.finished_buckets) == (6, 2)
    assert "2 of 2 finished" in status.text()


def test_an_earlier_runs_progress_is_not_that_of_one_that_begins(storage: Storage) -> None:
    progress(storage, run="r1", state="finished")
    lease(storage, 1)
    storage.put(layout.run_key("r1"), b"{}")
    storage.put("runs/r1/a-batch.json", b"{}")
    status = read_status(storage)
    assert status.state == "running" and status.runs == ["r1"]
    assert "times real time" not in status.text() and "at work (run r2" in status.text()


@pytest.mark.parametrize("missing", sorted(WHOLE))
def test_any_field_may_be_missing_or_strange(storage: Storage, missing: str) -> None:
    lease(storage, 1)
    for strange in (None, "text", []):
        progress(storage, **{missing: strange})
        assert read_status(storage).text()
    storage.put(layout.PROGRESS, json.dumps({name: WHOLE[name] for name in WHOLE if name != missing}).encode())
    assert read_status(storage).text()


@pytest.mark.parametrize("data", [b"", b"[]", b"{"])
def test_progress_that_is_not_ours(storage: Storage, data: bytes) -> None:
    storage.put(layout.PROGRESS, data)
    assert read_status(storage).state == "planned"


def test_the_command(storage: Storage, tmp_path: Path) -> None:
    run = CliRunner()
    progress(storage, state="finished")
    told = json.loads(run.invoke(command, [storage.url, "--json"]).stdout)
    assert told["state"] == "finished" and told["songs_made"] == 3 and told["progress"]["engines"] == 4
    watched = run.invoke(command, [storage.url, "--watch", "0.1"])
    assert watched.exit_code == 0 and watched.stdout.count("finished") >= 1
    assert run.invoke(command, [str(tmp_path / "nothing")]).exit_code == 2
    with Lease(storage, "r2", heartbeat_seconds=0.1, stale_seconds=5, settle_seconds=0.1):
        assert "at work (run r2" in run.invoke(command, [storage.url]).stdout
