"""Verification: each way in which a catalog can be wrong is found, and told where it is."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from acestep.audio import encode_audio
from acestep.audio_format import AudioFormat
from jobs.verify import command
from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.census import take_census
from pipelines.decoding import fault_of_audio
from pipelines.errors import OutputError
from pipelines.storage import Storage
from pipelines.verification import Fault, verify, withdraw
from tests.conftest import S3
from tests.small_catalog import (
    NUM_BUCKETS,
    PLAN,
    RATE,
    commit,
    fail,
    killed_after_each_step,
    make_catalog,
    plan_rows,
    song_row,
    visible,
    write_plan,
)

QUICK = ["--set", "lease.stale_seconds=0.5", "--set", "lease.heartbeat_seconds=0.1"]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def found(faults: list[Fault]) -> set[tuple[str, str]]:
    """Which song, which kind."""
    return {(fault.id, fault.kind) for fault in faults}


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("deep", [True, False])
def test_a_catalog_as_it_should_be(storage: Storage, checksum: bool, deep: bool) -> None:
    rows = make_catalog(storage)
    write_plan(storage, plan_rows([*(row["id"] for row in rows), "bad", "to come"]))
    commit(storage, "r2", [rows[0], song_row(storage, "gone from the manifest")])
    looked: list[int] = []
    report = verify(storage, checksum=checksum, deep=deep, on_progress=looked.append)
    assert report.faults == [] and report.exit_code == 0
    assert (report.songs, sum(looked), report.duplicates, report.beyond_plan) == (7, 7, 1, 1)
    assert (report.planned, report.made, report.failed, report.missing) == (8, 6, 1, 1)
    assert report.bytes == sum(row["bytes"] for row in visible(storage)["songs"])


def spoil(storage: Storage, rows: list[dict]) -> set[tuple[str, str]]:
    """Make something wrong with each of five songs; what is to be found."""
    storage.delete([rows[0]["path"]])
    storage.put(rows[1]["path"], storage.get(rows[1]["path"])[:-7])
    data = bytearray(storage.get(rows[2]["path"]))
    data[len(data) // 2] ^= 1
    storage.put(rows[2]["path"], bytes(data))
    storage.delete([rows[3]["latents"]])
    return {("s0", "missing"), ("s1", "size"), ("s2", "sha256"), ("s3", "latents")}


def test_each_fault_is_found(storage: Storage) -> None:
    rows = make_catalog(storage)
    wrong = spoil(storage, rows)
    report = verify(storage)
    assert found(report.faults) == wrong and report.exit_code == 3
    assert report.kinds == {kind: 1 for _, kind in wrong}
    first = next(fault for fault in report.faults if fault.kind == "missing")
    assert first.path == rows[0]["path"] and str(first) == f"{rows[0]['path']}: there is no such object"
    assert found(verify(storage, checksum=False).faults) == wrong - {("s2", "sha256")}
    deep = found(verify(storage, deep=True).faults)
    assert deep >= wrong and deep - wrong <= {("s1", "audio"), ("s2", "audio")} and ("s2", "audio") in deep


def test_what_the_row_says_of_the_samples_is_checked(storage: Storage) -> None:
    rows = make_catalog(storage, songs=2)
    commit(storage, "r2", [rows[0] | {"num_samples": 99, "created_at": rows[1]["created_at"]}])
    assert verify(storage).faults == []
    faults = verify(storage, deep=True, checksum=False).faults
    assert [(fault.id, fault.kind, fault.what) for fault in faults] == [
        ("s0", "audio", f"{RATE // 2:,} samples; its row says 99")
    ]


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "ogg", "opus"])
def test_every_format_has_the_length_that_was_encoded(format: str) -> None:
    for samples in (RATE // 2 + 17, 5000):
        waveform = (np.random.default_rng(0).standard_normal((2, samples)) * 0.1).astype(np.float32)
        data = encode_audio(waveform, RATE, AudioFormat(format=format))  # type: ignore[arg-type]
        assert fault_of_audio(data, samples, RATE) is None
        assert "its row says" in (fault_of_audio(data, samples + 50, RATE) or "")
        assert fault_of_audio(data[: len(data) // 3], samples, RATE)
    assert "cannot be decoded" in (fault_of_audio(b"no audio", 5, RATE) or "")


def test_samples_that_are_no_numbers_are_found() -> None:
    import io

    import soundfile

    buffer = io.BytesIO()
    samples = np.zeros((1000, 2), np.float32)
    samples[7, 1] = np.nan
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="FLOAT")
    assert fault_of_audio(buffer.getvalue(), 1000, RATE) == "1 samples are not finite"


def test_a_plan_that_is_gone_and_a_marker_that_is_wrong(storage: Storage) -> None:
    make_catalog(storage)
    take_census(storage, PLAN, range(NUM_BUCKETS), run="r")
    assert verify(storage).faults == []
    bucket = layout.bucket_of("s0", NUM_BUCKETS)
    storage.delete(storage.keys(layout.bucket_folder(layout.SONGS, bucket)))
    storage.delete([layout.plan_key(1 - bucket, PLAN)])
    report = verify(storage)
    assert {fault.kind for fault in report.faults} == {"plan", "marker"}
    assert withdraw(storage, report.faults, "verify") == 0
    assert not storage.exists(layout.finished_key(bucket))


def test_withdrawn_songs_are_missing_again(storage: Storage) -> None:
    rows = make_catalog(storage)
    fail(storage, ["s0"], run="r0")  # from before it was made
    take_census(storage, PLAN, range(NUM_BUCKETS), run="r")
    spoil(storage, rows)
    assert withdraw(storage, verify(storage).faults, "verify") == 4
    states = take_census(storage, PLAN, range(NUM_BUCKETS))
    assert sum(state.missing for state in states) == 4 and sum(state.failed for state in states) == 1
    assert {row["id"] for row in Catalog(storage).songs().to_pylist()} == {"s4", "s5"}
    report = verify(storage)
    assert report.faults == [] and report.missing == 4


def test_killed_at_any_step_no_other_song_is_lost(storage: Storage) -> None:
    rows = make_catalog(storage)
    spoil(storage, rows)
    faults = verify(storage).faults
    for _ in killed_after_each_step(storage, lambda mortal: withdraw(mortal, faults, "verify")):
        assert {row["id"] for row in visible(storage)["songs"]} >= {"s4", "s5"}
    assert {row["id"] for row in visible(storage)["songs"]} == {"s4", "s5"}


def test_on_s3_and_what_is_no_catalog(moto: S3) -> None:
    storage = Storage(f"{moto.url}/{uuid.uuid4().hex}", moto.options)
    with pytest.raises(OutputError, match="there is no catalog"):
        verify(storage)
    wrong = spoil(storage, make_catalog(storage))
    assert found(verify(storage).faults) == wrong
    assert found(verify(storage, checksum=False).faults) == wrong - {("s2", "sha256")}


def test_the_command(storage: Storage, tmp_path: Path) -> None:
    rows, run = make_catalog(storage), CliRunner()
    fine = run.invoke(command, [storage.url, "--deep"])
    assert fine.exit_code == 0 and "everything is as the rows say" in fine.output
    assert "7 songs, 6 made, 1 failed, 0 missing" in fine.output

    for row in rows:
        storage.delete([row["path"]])
    wrong = run.invoke(command, [storage.url])
    assert wrong.exit_code == 3 and "missing: 6" in wrong.output and "... and 1 more" in wrong.output
    told = json.loads(run.invoke(command, [storage.url, "--json"]).stdout)
    assert told["kinds"] == {"missing": 6} and len(told["faults"]) == 6 and told["withdrawn"] is None

    repaired = run.invoke(command, [storage.url, "--repair", *QUICK])
    assert repaired.exit_code == 3 and "6 songs withdrawn" in repaired.output
    assert not storage.exists(layout.LEASE)
    again = run.invoke(command, [storage.url])
    assert again.exit_code == 0 and "0 made, 1 failed, 6 missing" in again.output
    nothing = run.invoke(command, [str(tmp_path / "nothing")])
    assert nothing.exit_code == 2 and "there is no catalog" in nothing.output
    misspelt = run.invoke(command, [storage.url, "--set", "storage.option={}"])
    assert misspelt.exit_code == 2 and "storage_options" in misspelt.output


def test_the_command_reaches_an_s3_server(moto: S3) -> None:
    url = f"{moto.url}/{uuid.uuid4().hex}"
    make_catalog(Storage(url, moto.options))
    answer = CliRunner().invoke(command, [url, "--set", f"storage.storage_options={json.dumps(moto.options)}"])
    assert answer.exit_code == 0, answer.output
