"""The catalog and its committer: whole batches, rows once for readers, readable at any time by everyone."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipelines import schema
from pipelines.catalog import Catalog, failed_table
from pipelines.census import take_census
from pipelines.committer import Committer
from pipelines.errors import StorageError
from pipelines.layout import plan_key
from pipelines.schema import pack
from pipelines.storage import Storage

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def song(id: str, fingerprint: str = "f", minutes: int = 0, **more: Any) -> pa.Table:
    """One row of `songs/`."""
    row = {"id": id, "fingerprint": fingerprint, "duration": 1.0, "created_at": NOW + timedelta(minutes=minutes)}
    table = schema.table_of([row], schema.SONG)
    for name, value in more.items():
        table = table.append_column(name, pa.array([value]))
    return table


def plan_rows(ids: list[str], fingerprint: str = "f") -> pa.Table:
    """Rows of a plan."""
    rows = [{"id": id, "fingerprint": fingerprint, "duration": 2.0, "prompt": "p", "file": "m", "row": 1} for id in ids]
    return schema.table_of(rows, schema.PLAN)


def failure(id: str, fingerprint: str = "f", run: str = "r") -> pa.Table:
    """One row of `failed/`."""
    return failed_table(plan_rows([id], fingerprint), "internal", "why", attempts=1, batch="b", run=run)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(Storage(str(tmp_path / "out")))


def committer_of(catalog: Catalog, songs: int = 1, seconds: float = 1e9) -> Committer:
    return Committer(catalog, "run", every_songs=songs, every_seconds=seconds)


def test_a_batch_becomes_visible_whole(catalog: Catalog) -> None:
    committer = committer_of(catalog)
    for id in ("a", "b"):
        committer.take(3, "batch", 3, song=pack(song(id)))
        committer.commit_if_due()
        assert catalog.done(3) == set()
    committer.take(3, "batch", 3, failed=pack(failure("c")))
    committer.commit_if_due()
    assert catalog.done(3) == {("a", "f"), ("b", "f")}
    assert catalog.failed(3, "r") == {("c", "f")}
    assert catalog.failed(3, "other") == set()
    assert catalog.storage.keys("songs") == ["songs/bucket=000003/run-000000.parquet"]


def test_commits_wait_for_songs_or_seconds(catalog: Catalog) -> None:
    committer = committer_of(catalog, songs=2)
    committer.take(0, "1", 1, song=pack(song("a")))
    committer.commit_if_due()
    assert catalog.done(0) == set()
    committer.take(1, "2", 1, song=pack(song("b")))
    committer.commit_if_due()
    assert catalog.done(0) | catalog.done(1) == {("a", "f"), ("b", "f")}

    impatient = committer_of(catalog, songs=100, seconds=0.0)
    impatient.take(0, "3", 1, song=pack(song("c")))
    impatient.commit_if_due()
    assert ("c", "f") in catalog.done(0)


def test_the_end_commits_what_came_of_broken_batches(catalog: Catalog) -> None:
    committer = committer_of(catalog, songs=100)
    committer.take(0, "1", 2, song=pack(song("a")))
    committer.commit()
    assert catalog.done(0) == set()
    committer.finish()
    assert catalog.done(0) == {("a", "f")}


def test_rows_survive_a_commit_that_fails(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = committer_of(catalog)
    committer.take(0, "1", 1, song=pack(song("a")))

    def fail(*_: object) -> None:
        raise StorageError("full")

    monkeypatch.setattr(catalog, "add_songs", fail)
    committer.commit_if_due()
    with pytest.raises(StorageError, match="full"):
        committer.take(0, "2", 1, song=pack(song("b")))
    monkeypatch.undo()
    committer.finish()
    assert catalog.done(0) == {("a", "f")}


def test_taking_and_committing_at_the_same_time_loses_nothing(catalog: Catalog) -> None:
    committer, end = committer_of(catalog), threading.Event()

    def commit() -> None:
        while not end.is_set():
            committer.commit_if_due()

    thread = threading.Thread(target=commit)
    thread.start()
    for number in range(300):
        committer.take(number % 4, f"b{number // 12}", 3, song=pack(song(str(number))))
    end.set()
    thread.join()
    committer.finish()
    assert {id for bucket in range(4) for id, _ in catalog.done(bucket)} == {str(number) for number in range(300)}


def test_readers_see_each_song_once_and_the_newest(catalog: Catalog) -> None:
    catalog.add_songs(0, "1", pa.concat_tables([song("a", label=1), song("b", label=2)]))
    catalog.add_songs(0, "2", pa.concat_tables([song("a", minutes=1, label=3), song("a", "other", label=4)]))
    catalog.add_songs(1, "3", song("c", label="text"))
    rows = {(row["id"], row["fingerprint"]): row["label"] for row in catalog.songs().to_pylist()}
    assert rows == {("a", "f"): "3", ("a", "other"): "4", ("b", "f"): "2", ("c", "f"): "text"}


def test_a_failure_counts_only_while_there_is_no_song(catalog: Catalog) -> None:
    catalog.add_failed(0, "1", pa.concat_tables([failure("a"), failure("b"), failure("c", "old")]))
    catalog.add_failed(0, "2", failure("b", run="later"))
    catalog.add_songs(0, "2", pa.concat_tables([song("a"), song("c", "new")]))
    rows = [(row["id"], row["fingerprint"], row["run"]) for row in catalog.failures().to_pylist()]
    assert sorted(rows) == [("b", "f", "later"), ("c", "old", "r")]


def test_an_empty_catalog_has_no_rows(catalog: Catalog) -> None:
    assert catalog.songs().num_rows == 0
    assert catalog.failures().num_rows == 0
    assert catalog.done(0) == set()


def test_the_census_counts_what_is_missing(catalog: Catalog) -> None:
    catalog.storage.write_table(plan_key(0, "p"), plan_rows(["a", "b", "c"]))
    catalog.storage.write_table(plan_key(1, "p"), plan_rows(["d"]))
    catalog.add_songs(0, "1", pa.concat_tables([song("a"), song("b", "another sound")]))
    catalog.add_failed(0, "1", failure("c"))
    first, second = take_census(catalog.storage, "p", range(2))
    assert (first.planned, first.missing, first.missing_seconds) == (3, 2, 4.0)
    assert (second.planned, second.missing) == (1, 1)
    assert take_census(catalog.storage, "p", [0], run="r")[0].missing == 1


def test_pyarrow_duckdb_and_pandas_read_it(catalog: Catalog, tmp_path: Path) -> None:
    catalog.add_songs(0, "1", pa.concat_tables([song("a", label=1), song("b", label=2)]))
    catalog.add_songs(11, "2", song("c", label=3))
    catalog.add_failed(0, "1", failure("x"))
    songs, failed = str(tmp_path / "out" / "songs"), str(tmp_path / "out" / "failed")

    table = pq.read_table(songs)
    assert sorted(table.column("id").to_pylist()) == ["a", "b", "c"]
    assert sorted(int(bucket) for bucket in table.column("bucket").to_pylist()) == [0, 0, 11]
    assert ds.dataset(songs, partitioning="hive").count_rows(filter=ds.field("bucket") == 11) == 1

    frame = pd.read_parquet(songs)
    assert sorted(frame["label"]) == [1, 2, 3]
    assert str(frame["created_at"].dtype).endswith("UTC]")

    rows = duckdb.sql(f"select id, label, bucket from read_parquet('{songs}/*/*.parquet') order by id").fetchall()
    assert [(id, label, int(bucket)) for id, label, bucket in rows] == [("a", 1, 0), ("b", 2, 0), ("c", 3, 11)]
    joined = duckdb.sql(
        f"select count(*) from read_parquet('{failed}/*/*.parquet') f "
        f"anti join read_parquet('{songs}/*/*.parquet') s using (id, fingerprint)"
    )
    assert joined.fetchall() == [(1,)]
