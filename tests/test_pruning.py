"""Pruning: what the plan does not have goes, rows before sound; what it needs stays."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.errors import OutputError
from pipelines.orphans import find_orphans
from pipelines.plan import PlanRecord
from pipelines.pruning import prune
from pipelines.storage import Storage
from pipelines.verification import verify
from tests.small_catalog import (
    commit,
    fail,
    killed_after_each_step,
    make_catalog,
    plan_rows,
    song_row,
    visible,
    write_plan,
)

NEW = "fedcba9876543210"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Six songs; then a manifest without s0 and s1, where s2 has another setting."""
    storage = Storage(str(tmp_path / "out"))
    make_catalog(storage)
    fail(storage, ["left"])
    write_plan(storage, plan_rows(["s3", "s4", "s5", "bad"]), NEW)
    for key in storage.keys("plan"):
        if NEW not in key:
            storage.delete([key])
    rows = storage.read_table(layout.plan_key(layout.bucket_of("s2", 2), NEW))
    changed = plan_rows(["s2"], "changed")
    storage.write_table(layout.plan_key(layout.bucket_of("s2", 2), NEW), pa.concat_tables([rows, changed]))
    return storage


def plan_of(storage: Storage) -> PlanRecord:
    record = PlanRecord.read(storage)
    assert record and record.plan == NEW
    return record


def test_a_dry_run_tells_and_touches_nothing(storage: Storage) -> None:
    names, before = storage.keys(""), visible(storage)
    report = prune(storage, plan_of(storage), dry_run=True)
    assert (report.songs, report.left, report.changed, report.failures) == (3, 2, 1, 1)
    assert sorted(report.examples) == ["s0", "s1", "s2"]
    sound = [row for row in before["songs"] if row["id"] in ("s0", "s1", "s2")]
    assert report.bytes == sum(row["bytes"] for row in sound)
    assert storage.keys("") == names and visible(storage) == before
    assert report.text().startswith("3 songs pruned (2 left the manifest, 1 were made by another")


def test_songs_and_failures_go_with_their_sound(storage: Storage) -> None:
    told = prune(storage, plan_of(storage), dry_run=True)
    assert prune(storage, plan_of(storage)) == told
    seen = visible(storage)
    assert [row["id"] for row in seen["songs"]] == ["s3", "s4", "s5"]
    assert [row["id"] for row in seen["failures"]] == ["bad"]
    assert len(storage.keys("audio")) == len(storage.keys("latents")) == 3
    assert [key for key in storage.keys("quarantine") if "left" in key] == []
    assert len(storage.keys("quarantine")) == 1
    report = verify(storage)
    assert report.faults == [] and report.beyond_plan == 0
    assert prune(storage, plan_of(storage)).songs == 0


def test_a_song_with_a_fingerprint_of_the_plan_stays_beside_an_old_one(storage: Storage) -> None:
    commit(storage, "r2-000000", [song_row(storage, "s2", "changed")])
    prune(storage, plan_of(storage))
    assert ("s2", "changed") in Catalog(storage).done(layout.bucket_of("s2", 2))
    assert ("s2", "f") not in Catalog(storage).done(layout.bucket_of("s2", 2))
    assert verify(storage).faults == []


def test_latents_that_the_plan_begins_with_stay(storage: Storage) -> None:
    source = f"s3://an/earlier/name/{layout.latents_key('s0', 'f')}"
    write_plan(storage, plan_rows(["s3", "s4", "s5", "bad"], source=source), NEW)
    report = prune(storage, plan_of(storage))
    assert report.kept_sources == 1 and report.songs == 2
    assert storage.exists(layout.latents_key("s0", "f")) and not storage.exists(layout.latents_key("s1", "f"))
    assert ("s0", "f") in Catalog(storage).done(layout.bucket_of("s0", 2))


def test_killed_at_any_step_no_row_is_without_its_sound(storage: Storage) -> None:
    steps = 0
    for _ in killed_after_each_step(storage, lambda mortal: prune(mortal, plan_of(storage))):
        report = verify(storage)
        assert report.faults == []
        assert {row["id"] for row in visible(storage)["songs"]} >= {"s3", "s4", "s5"}
        steps += 1
    assert steps > 5
    assert [row["id"] for row in visible(storage)["songs"]] == ["s3", "s4", "s5"]
    # Sound whose row went before the end came.
    assert all(any(id in key for id in ("s0", "s1", "s2", "left")) for key in find_orphans(storage).keys)


def test_a_lost_lease_ends_it(storage: Storage) -> None:
    def check() -> None:
        raise OutputError("gone")

    before = visible(storage)
    with pytest.raises(OutputError, match="gone"):
        prune(storage, plan_of(storage), check=check)
    assert visible(storage) == before


def test_a_plan_of_which_a_part_is_gone_prunes_nothing(storage: Storage) -> None:
    before = visible(storage)["songs"]
    storage.delete([layout.plan_key(0, NEW)])
    with pytest.raises(OutputError, match="a part of the plan is gone"):
        prune(storage, plan_of(storage))
    assert visible(storage)["songs"] == before
