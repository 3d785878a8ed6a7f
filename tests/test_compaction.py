"""Compaction: fewer files, the same catalog, at every moment and however it ends."""

from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.compact import command
from pipelines import layout, schema
from pipelines.catalog import Catalog
from pipelines.compaction import compact
from pipelines.lease import Lease, LeaseLostError
from pipelines.storage import Storage
from tests.conftest import S3
from tests.small_catalog import (
    NUM_BUCKETS,
    KilledError,
    Mortal,
    commit,
    fail,
    killed_after_each_step,
    make_catalog,
    song_row,
    visible,
)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def busy_catalog(storage: Storage) -> None:
    """Songs there twice, failures tried again, failed again, made since, and refused rows."""
    rows = make_catalog(storage)
    commit(storage, "r2-000000", [row | {"run": "again"} for row in rows[:3]])
    catalog = Catalog(storage)
    ids = ["again", "twice", "made"]
    fail(storage, ids)
    for bucket, keys in catalog.select_failures(ids=ids).items():
        catalog.retry(bucket, keys, "retry")
    fail(storage, ["twice"], run="r2")
    fail(storage, ["s0"], run="r0")
    commit(storage, "r3-000000", [song_row(storage, "made")])
    refused = {"id": "no", "fingerprint": "", "error_class": "input", "file": "m", "row": 9}
    for bucket in range(NUM_BUCKETS):
        key = f"{layout.bucket_folder(layout.FAILED, bucket)}/{layout.REJECTED_FILE}"
        storage.write_table(key, schema.table_of([refused | {"row": bucket}], schema.FAILED))


def files(storage: Storage) -> dict[str, int]:
    """How many Parquet files there are of each kind, refused rows apart."""
    return {
        kind: len([key for key in storage.keys(kind, ".parquet") if not key.endswith(layout.REJECTED_FILE)])
        for kind in (layout.SONGS, layout.FAILED, layout.RETRIED)
    }


def test_one_file_a_bucket_and_the_same_catalog(storage: Storage) -> None:
    busy_catalog(storage)
    before, counts = visible(storage), files(storage)
    assert counts[layout.SONGS] > NUM_BUCKETS and counts[layout.RETRIED] > 0
    report = compact(storage)
    assert visible(storage) == before
    assert files(storage)[layout.SONGS] == NUM_BUCKETS
    assert files(storage)[layout.FAILED] <= NUM_BUCKETS
    assert files(storage)[layout.RETRIED] == 0
    assert (report.files_before, report.files_after) == (sum(counts.values()), sum(files(storage).values()))
    assert len(storage.keys(layout.FAILED, layout.REJECTED_FILE)) == NUM_BUCKETS

    names = storage.keys("")
    again = compact(storage)
    assert again.buckets == 0 and storage.keys("") == names and again.files_before == report.files_after


def test_failures_that_do_not_stand_are_dropped(storage: Storage) -> None:
    busy_catalog(storage)
    compact(storage)
    table = pq.read_table(f"{storage.url}/failed").to_pylist()
    assert sorted((row["id"], row["run"]) for row in table if row["fingerprint"]) == [("bad", "r1"), ("twice", "r2")]


def test_killed_at_any_step_the_catalog_never_changes(storage: Storage) -> None:
    busy_catalog(storage)
    before = visible(storage)
    steps = []
    for step in killed_after_each_step(storage, compact):
        assert visible(storage) == before, f"killed after {step} changes"
        steps.append(step)
    assert len(steps) > 5
    assert files(storage)[layout.SONGS] == NUM_BUCKETS and files(storage)[layout.RETRIED] == 0


def test_each_step_from_the_beginning_too(tmp_path: Path) -> None:
    """Not only one step further than the last time, but killed there at the first time."""
    for lives in range(0, 100, 3):
        storage = Storage(str(tmp_path / str(lives)))
        busy_catalog(storage)
        before = visible(storage)
        try:
            compact(Mortal(storage.url, lives))
        except KilledError:
            assert visible(storage) == before
            compact(storage)
            assert visible(storage) == before and files(storage)[layout.SONGS] == NUM_BUCKETS
        else:
            return
    raise AssertionError("it never ended")


def test_equal_rows_make_equal_names(tmp_path: Path) -> None:
    names = []
    for folder in ("one", "two"):
        storage = Storage(str(tmp_path / folder))
        rows = [song_row(storage, f"s{number}") for number in range(8)]
        for number, row in enumerate(rows if folder == "one" else reversed(rows)):
            commit(storage, f"r-{number}", [row])
        compact(storage)
        names.append(storage.keys("songs"))
    assert names[0] == names[1]


def test_columns_of_different_manifests_are_all_there(storage: Storage) -> None:
    rows = make_catalog(storage, songs=2)
    extra = schema.table_of([rows[0]], schema.SONG).append_column("mood", pa.array(["sad"]))
    bucket = layout.bucket_of("s0", NUM_BUCKETS)
    extra = extra.set_column(0, "id", pa.array(["s0"])).set_column(1, "fingerprint", pa.array(["other"]))
    Catalog(storage).add_songs(bucket, "extra", extra)
    compact(storage)
    moods = {(row["id"], row["fingerprint"]): row["mood"] for row in Catalog(storage).songs().to_pylist()}
    assert moods[("s0", "other")] == "sad" and moods[("s0", "f")] is None


def test_a_lost_lease_ends_it(storage: Storage) -> None:
    busy_catalog(storage)
    names = storage.keys("songs")

    def check() -> None:
        raise LeaseLostError("gone")

    with pytest.raises(LeaseLostError):
        compact(storage, check=check)
    assert storage.keys("songs") == names


def test_on_s3(moto: S3) -> None:
    storage = Storage(f"{moto.url}/{uuid.uuid4().hex}", moto.options)
    busy_catalog(storage)
    before = visible(storage)
    compact(storage)
    assert visible(storage) == before and files(storage)[layout.SONGS] == NUM_BUCKETS


def test_the_command(storage: Storage) -> None:
    busy_catalog(storage)
    quick = ["--set", "lease.stale_seconds=0.5", "--set", "lease.heartbeat_seconds=0.1"]
    with Lease(storage, "a run", heartbeat_seconds=0.1, stale_seconds=0.5, settle_seconds=0.1):
        refused = CliRunner().invoke(command, [storage.url, *quick])
        assert refused.exit_code == 2 and "in use by run a run" in refused.output
    answer = CliRunner().invoke(command, [storage.url, *quick])
    assert answer.exit_code == 0, answer.output
    assert f"{sum(files(storage).values())} now; 2 buckets" in answer.output
    assert not storage.exists(layout.LEASE)
    nothing = CliRunner().invoke(command, [f"{storage.url}/nothing"])
    assert nothing.exit_code == 2 and "there is no catalog" in nothing.output
