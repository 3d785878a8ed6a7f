"""Orphans: all that no row names, and never anything that a row names."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.sweep import command
from pipelines import layout, orphans
from pipelines.listing import Sizes, among, hashed, objects_below
from pipelines.orphans import delete_orphans, find_orphans
from pipelines.storage import Storage
from tests.conftest import S3
from tests.small_catalog import commit, make_catalog, song_row, visible

QUICK = ["--set", "lease.stale_seconds=0.5", "--set", "lease.heartbeat_seconds=0.1"]


@pytest.fixture(params=["folder", "moto", "seaweed"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return Storage(str(tmp_path / "out"))
    server: S3 = request.getfixturevalue(request.param)
    return Storage(f"{server.url}/{uuid.uuid4().hex}", server.options)


def test_they_are_found_and_deleted_and_nothing_else(storage: Storage) -> None:
    make_catalog(storage)
    assert find_orphans(storage).keys == []
    kept = storage.keys("")
    left = {
        layout.audio_key("never committed", "f", ".flac"): 10,
        layout.latents_key("never committed", "f"): 20,
        layout.quarantine_key("never committed", "f", ".flac"): 30,
        f"probe-{uuid.uuid4().hex}": 5,
        layout.plan_key(0, "fedcba9876543210"): 7,
    }
    for key, size in left.items():
        storage.put(key, b"x" * size)
    found = find_orphans(storage)
    assert sorted(found.keys) == sorted(left)
    assert (found.bytes, found.leftovers) == (sum(left.values()), 2)
    before, deleted = visible(storage), []
    delete_orphans(storage, found, on_deleted=deleted.append)
    assert sum(deleted) == 5
    assert storage.keys("") == kept and visible(storage) == before
    assert find_orphans(storage).keys == []


def test_unfinished_local_files_are_leftovers(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    make_catalog(storage)
    names = [f"{folder}.{uuid.uuid4().hex}.tmp" for folder in ("", "songs/bucket=000000/", "audio/00/", "runs/")]
    for name in names:
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"half")
    (tmp_path / "out" / ".gitignore").write_text("mine")
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "notes" / "mine.txt").write_text("mine")
    found = find_orphans(storage)
    assert sorted(found.keys) == sorted(names)
    delete_orphans(storage, found)
    assert not any((tmp_path / "out" / name).exists() for name in names)
    assert (tmp_path / "out" / "notes" / "mine.txt").exists()


def test_a_song_that_is_committed_while_we_look_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path / "out"))
    make_catalog(storage)
    row = song_row(storage, "late")
    read = orphans.files_by_bucket

    def commit_first(*arguments: object) -> object:
        monkeypatch.setattr(orphans, "files_by_bucket", read)
        commit(storage, "late", [row])
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(orphans, "files_by_bucket", commit_first)
    assert find_orphans(storage).keys == []

    # Sound that comes after the listing is not even looked at.
    def put_first(*arguments: object) -> object:
        song_row(storage, "later")
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(orphans, "files_by_bucket", put_first)
    assert find_orphans(storage).keys == []


def test_old_rows_of_a_song_keep_their_objects(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    rows = make_catalog(storage)
    storage.put("audio/00/moved.flac", b"x")
    commit(storage, "r2", [rows[0] | {"path": "audio/00/moved.flac", "created_at": rows[-1]["created_at"]}])
    assert find_orphans(storage).keys == []


def test_the_command_lists_and_deletes_only_when_told(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    make_catalog(storage)
    keys = [layout.audio_key(f"lost {number}", "f", ".flac") for number in range(30)]
    for key in keys:
        storage.put(key, b"x" * 1000)
    run = CliRunner()
    listed = run.invoke(command, [storage.url])
    assert listed.exit_code == 0
    assert listed.stdout.startswith("30 orphans, 30 kB; 36 objects") or "30 orphans, 30 kB" in listed.stdout
    assert "... and 10 more" in listed.stdout and "--yes deletes them" in listed.stdout
    whole = run.invoke(command, [storage.url, "--list"])
    assert sorted(whole.stdout.split("\n")[:-1]) == sorted(keys)
    assert all(map(storage.exists, keys))

    from pipelines.lease import Lease

    with Lease(storage, "a run", heartbeat_seconds=0.1, stale_seconds=0.5, settle_seconds=0.1):
        assert "run a run on host" in run.invoke(command, [storage.url]).stdout
        refused = run.invoke(command, [storage.url, "--yes", *QUICK])
        assert refused.exit_code == 2 and "in use by run a run" in refused.output
    assert all(map(storage.exists, keys))

    deleted = run.invoke(command, [storage.url, "--yes", *QUICK])
    assert deleted.exit_code == 0 and "30 deleted" in deleted.stdout
    assert not any(map(storage.exists, keys)) and not storage.exists(layout.LEASE)
    assert run.invoke(command, [str(tmp_path)]).exit_code == 2


def test_hashes_find_exactly_what_is_there() -> None:
    keys = [f"audio/{number}" for number in range(5000)]
    known = sorted(keys[::2])
    import numpy as np

    found = among(hashed(keys), np.unique(hashed(known)))
    assert [key for key, there in zip(keys, found, strict=True) if there] == keys[::2]
    assert not among(hashed(keys), hashed([])).any()
    sizes = Sizes((key, number) for number, key in enumerate(keys))
    assert sizes.get("audio/77") == 77 and sizes.get("audio/x") is None and "audio/4999" in sizes


def test_listing_goes_as_deep_as_asked(storage: Storage) -> None:
    for key in ("a", "x/b", "x/y/c", "x/y/z/d"):
        storage.put(key, b"12")
    assert sorted(objects_below(storage, "", deep=False)) == [("a", 2)]
    assert sorted(objects_below(storage, "x")) == [("x/b", 2), ("x/y/c", 2), ("x/y/z/d", 2)]
    assert list(objects_below(storage, "nothing")) == []
    storage.delete(["x/y/z/d"])
    assert sorted(objects_below(storage, "")) == [("a", 2), ("x/b", 2), ("x/y/c", 2)]
