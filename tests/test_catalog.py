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
from pipelines.census import read_markers, take_census
from pipelines.committer import Committer
from pipelines.compaction import rewrite_songs
from pipelines.errors import StorageError
from pipelines.layout import finished_key, plan_key
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


def test_a_failure_stands_until_somebody_asks_to_try_again(catalog: Catalog) -> None:
    catalog.add_failed(0, "1", pa.concat_tables([failure("a"), failure("b")]))
    catalog.add_failed(0, "2", failure("a", run="r2"))
    assert catalog.failed(0) == {("a", "f"), ("b", "f")}
    assert catalog.retry(0, [("a", "f"), ("x", "f")], "retry") == 1
    assert catalog.retry(0, [("a", "f")], "retry") == 0
    assert catalog.failed(0) == {("b", "f")}
    assert catalog.failed(0, "r") == {("a", "f"), ("b", "f")}
    assert [row["id"] for row in catalog.failures().to_pylist()] == ["b"]

    catalog.add_failed(0, "3", failure("a", run="r3"))
    assert catalog.failed(0) == {("a", "f"), ("b", "f")}
    assert catalog.retry(0, [("a", "f"), ("b", "f")], "retry") == 2
    assert catalog.failed(0) == set()


def test_trying_again_does_not_depend_on_clocks(catalog: Catalog) -> None:
    """The machine that failed was a year ahead of the one that asks, and the next one a year behind."""

    def at(minutes: int, run: str) -> pa.Table:
        table = failure("a", run=run)
        when = pa.array([NOW + timedelta(minutes=minutes)], schema.TIME)
        return table.set_column(table.column_names.index("created_at"), "created_at", when)

    catalog.add_failed(0, "1", at(10**6, "r1"))
    assert catalog.retry(0, [("a", "f")], "retry") == 1
    assert catalog.failed(0) == set()
    catalog.add_failed(0, "2", at(-(10**6), "r2"))
    assert catalog.failed(0) == {("a", "f")}


def test_refused_rows_are_shown_and_never_tried_again(catalog: Catalog) -> None:
    refused = [{"id": None, "fingerprint": "", "error_class": "input", "file": "m", "row": row} for row in (1, 2)]
    catalog.storage.write_table("failed/bucket=000000/rejected.parquet", schema.table_of(refused, schema.FAILED))
    catalog.add_failed(0, "1", failure("a"))
    assert [row["row"] for row in catalog.failures().to_pylist() if row["fingerprint"] == ""] == [1, 2]
    assert catalog.failed(0) == {("a", "f")}
    assert catalog.select_failures() == {0: [("a", "f")]}


def test_failures_are_selected_by_class_and_by_id_of_song_or_manifest_row(catalog: Catalog) -> None:
    rows = [
        {"id": id, "fingerprint": "f", "parent": parent, "duration": 1.0}
        for id, parent in (("a", None), ("b-0", "b"), ("b-1", "b"))
    ]
    catalog.storage.write_table(plan_key(0, "p"), schema.table_of(rows, schema.PLAN))
    catalog.add_failed(0, "1", pa.concat_tables([failure("a"), failure("b-0"), failure("b-1")]))
    timeout = failed_table(plan_rows(["c"]), "timeout", "why", attempts=1, batch="b", run="r")
    catalog.add_failed(3, "1", timeout)
    assert catalog.select_failures() == {0: [("a", "f"), ("b-0", "f"), ("b-1", "f")], 3: [("c", "f")]}
    assert catalog.select_failures(error_class="timeout") == {3: [("c", "f")]}
    assert catalog.select_failures(ids=["b"]) == {0: [("b-0", "f"), ("b-1", "f")]}
    assert catalog.select_failures(ids=["b-1", "c", "unknown"]) == {0: [("b-1", "f")], 3: [("c", "f")]}
    assert catalog.select_failures("internal", ["c"]) == {}


def test_one_bucket_is_read_in_the_columns_asked_for(catalog: Catalog) -> None:
    catalog.add_songs(0, "1", pa.concat_tables([song("a", label=1), song("b", label=2)]))
    catalog.add_songs(0, "2", song("a", minutes=1, label=3))
    catalog.add_songs(4, "3", song("c"))
    catalog.add_failed(7, "1", failure("x"))
    assert catalog.buckets() == [0, 4, 7]
    songs = catalog.songs_of(0, ["label", "id", "path", "no such column"])
    assert songs.column_names == ["label", "id", "path"]
    assert {(row["id"], row["label"], row["path"]) for row in songs.to_pylist()} == {("a", 3, None), ("b", 2, None)}
    assert set(catalog.songs_of(4).column_names) == set(schema.SONG.names)
    assert catalog.songs_of(9).num_rows == 0


def test_files_of_earlier_versions_lack_columns(catalog: Catalog) -> None:
    catalog.add_songs(0, "1", song("a").drop_columns(["latents", "attempt", "path"]))
    catalog.add_failed(0, "1", failure("b").drop_columns(["path", "evidence"]))
    assert catalog.songs_of(0, ["id", "path"]).to_pylist() == [{"id": "a", "path": None}]
    assert catalog.failures().column("evidence").to_pylist() == [None]


def test_readers_outlive_a_compaction(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        catalog.add_songs(0, str(number), song(str(number)))
    everything = catalog.done(0)
    real, moved = Storage.get, False

    def get(storage: Storage, key: str) -> bytes:
        nonlocal moved
        if not moved:
            moved = True
            rewrite_songs(Storage(storage.url), 0)
        return real(storage, key)

    monkeypatch.setattr(Storage, "get", get)
    assert catalog.done(0) == everything
    assert len(catalog.storage.keys("songs")) == 1


def test_files_that_keep_disappearing_are_an_error(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.add_songs(0, "1", song("a"))

    def get(storage: Storage, key: str) -> bytes:
        raise FileNotFoundError(key)

    monkeypatch.setattr(Storage, "get", get)
    with pytest.raises(StorageError, match="disappeared"):
        catalog.done(0)


def test_the_census_counts_what_is_missing(catalog: Catalog) -> None:
    catalog.storage.write_table(plan_key(0, "p"), plan_rows(["a", "b", "c", "d"]))
    catalog.storage.write_table(plan_key(1, "p"), plan_rows(["e"]))
    catalog.add_songs(0, "1", pa.concat_tables([song("a"), song("b", "another sound"), song("x")]))
    catalog.add_failed(0, "1", pa.concat_tables([failure("c"), failure("d", "old"), failure("a")]))
    first, second = take_census(catalog.storage, "p", range(2))
    assert (first.planned, first.made, first.failed, first.missing, first.missing_seconds) == (4, 1, 1, 2, 4.0)
    assert first.changed == 1
    assert (second.planned, second.missing, second.failed, second.changed) == (1, 1, 0, 0)
    catalog.retry(0, [("c", "f")], "retry")
    assert take_census(catalog.storage, "p", [0])[0].missing == 3
    assert take_census(catalog.storage, "p", [0], run="r")[0].missing == 2
    assert catalog.storage.keys("finished") == []


def test_a_finished_bucket_is_not_read_again(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.storage.write_table(plan_key(0, "p"), plan_rows(["a", "b"]))
    catalog.storage.write_table(plan_key(1, "p"), plan_rows(["c"]))
    catalog.add_songs(0, "1", song("a"))
    catalog.add_failed(0, "1", failure("b"))
    before = take_census(catalog.storage, "p", range(2), run="r")
    assert catalog.storage.keys("finished") == ["finished/bucket=000000.json"]
    assert [state.bucket for state in read_markers(catalog.storage, "p")] == [0]

    read: list[str] = []
    real = Storage.read_table
    monkeypatch.setattr(Storage, "read_table", lambda self, key, *more: [read.append(key), real(self, key, *more)][1])
    after = take_census(catalog.storage, "p", range(2))
    assert read == [plan_key(1, "p")]
    assert [(each.planned, each.made, each.failed, each.missing) for each in after] == [(2, 1, 1, 0), (1, 0, 0, 1)]
    assert [(each.planned, each.made, each.failed, each.missing) for each in before] == [(2, 1, 1, 0), (1, 0, 0, 1)]


def test_a_marker_is_worth_nothing_for_another_plan_or_after_a_retry(catalog: Catalog) -> None:
    for plan in ("p", "q"):
        catalog.storage.write_table(plan_key(0, plan), plan_rows(["a", "b"] if plan == "p" else ["a", "c"]))
    catalog.add_songs(0, "1", song("a"))
    catalog.add_failed(0, "1", failure("b"))
    take_census(catalog.storage, "p", [0], run="r")
    marker = catalog.storage.get(finished_key(0))
    assert take_census(catalog.storage, "q", [0])[0].missing == 1
    catalog.retry(0, [("b", "f")], "retry")
    assert not catalog.storage.exists(finished_key(0))
    # A run that counted before the retry may leave its marker after it.
    catalog.storage.put(finished_key(0), marker)
    assert take_census(catalog.storage, "p", [0])[0].missing == 1
    catalog.storage.put(finished_key(0), b"{}")
    assert take_census(catalog.storage, "p", [0])[0].missing == 1


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
