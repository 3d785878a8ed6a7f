"""`Storage`: whole objects or none, on a folder and on real S3 servers; retries; what cannot be written."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import storage as storage_module
from pipelines.errors import OutputError, StorageError, UnusableInputError
from pipelines.storage import Storage
from tests.conftest import S3


@pytest.fixture(params=["local", "memory", "moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A fresh place on each kind of store."""
    if request.param == "local":
        return Storage(str(tmp_path / "out"))
    if request.param == "memory":
        return Storage(f"memory://{uuid.uuid4().hex}")
    server: S3 = request.getfixturevalue(request.param)
    return Storage(f"{server.url}/{uuid.uuid4().hex}", server.options)


def test_objects_are_put_found_and_removed(store: Storage) -> None:
    assert store.keys("") == []
    with pytest.raises(FileNotFoundError):
        store.get("a/b.bin")
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"two")
    store.put("a/c/d e+f~g.parquet", b"x" * 10_000_000)
    assert store.get("a/b.bin") == b"two"
    assert store.exists("a/b.bin")
    assert not store.exists("a/x.bin")
    assert store.keys("a") == ["a/b.bin", "a/c/d e+f~g.parquet"]
    assert store.keys("a", ".parquet") == ["a/c/d e+f~g.parquet"]
    assert store.keys("nothing") == []
    store.delete(["a/b.bin", "a/nothing"])
    assert store.keys("") == ["a/c/d e+f~g.parquet"]


def test_listings_show_what_others_wrote(store: Storage) -> None:
    store.put("a/one", b"")
    assert store.keys("a") == ["a/one"]
    pickle.loads(pickle.dumps(store)).put("a/two", b"2")
    assert store.keys("a") == ["a/one", "a/two"]


def test_tables_come_back_whole_or_by_column(store: Storage) -> None:
    table = pa.table({"id": ["a", "b"], "n": [1, None]})
    store.write_table("t.parquet", table)
    assert store.read_table("t.parquet").equals(table)
    assert store.read_table("t.parquet", ["n"]).column_names == ["n"]
    with pytest.raises(FileNotFoundError):
        store.read_table("none.parquet", ["n"])


def test_a_probe_leaves_no_trace(store: Storage, tmp_path: Path) -> None:
    store.probe()
    assert store.keys("") == []
    assert not (tmp_path / "out").exists()


def test_a_local_write_that_is_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(str(tmp_path), attempts=1)
    store.put("a", b"before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        store.put("a", b"after")
    assert store.get("a") == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_failures_are_retried_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(f"memory://{uuid.uuid4().hex}", attempts=4)
    pauses: list[float] = []
    monkeypatch.setattr(storage_module.time, "sleep", pauses.append)
    monkeypatch.setattr(storage_module.random, "uniform", lambda low, high: high)
    results: list[Exception | None] = [OSError("SlowDown"), TimeoutError("late"), None]

    def pipe_file(path: str, data: bytes) -> None:
        if result := results.pop(0):
            raise result

    monkeypatch.setattr(store._filesystem, "pipe_file", pipe_file)
    store.put("a", b"")
    assert pauses == [0.2, 0.4]
    results += [OSError("SlowDown")] * 4
    with pytest.raises(StorageError, match=r"cannot write memory://.*/a, tried 4 times: OSError: SlowDown"):
        store.put("a", b"")
    results += [PermissionError("denied")]
    with pytest.raises(StorageError, match="tried once: PermissionError: denied"):
        store.put("a", b"")


@pytest.mark.parametrize("url", ["/dev/null/out", "/proc/out"])
def test_a_place_that_cannot_be_written_is_found_before_anything_starts(url: str) -> None:
    with pytest.raises(OutputError, match=f"output {url}: nothing can be written there"):
        Storage(url).probe()


def test_a_bucket_that_is_not_there_is_said(moto: S3) -> None:
    with pytest.raises(OutputError, match="nothing can be written there"):
        Storage("s3://no-such-bucket/out", moto.options).probe()


@pytest.mark.parametrize("url", ["foo://a/b", "s3://"])
def test_an_unusable_url_is_said(url: str) -> None:
    with pytest.raises(UnusableInputError):
        Storage(url, {"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:1"}, attempts=1).probe()


def test_the_endpoint_may_come_from_the_environment(moto: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    # fsspec keeps filesystems by their options: another option makes one that reads the environment now.
    store = Storage(f"{moto.url}/{uuid.uuid4().hex}", {"default_block_size": 5 << 20})
    store.put("a", b"1")
    assert store.keys("") == ["a"]


def test_secrets_are_not_shown() -> None:
    assert "hush" not in repr(Storage("s3://bucket", {"secret": "hush"}))
