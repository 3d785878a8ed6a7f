"""What lets a job run unwatched, on a real Ray: one run at a time, a clean end, deadlines, the gate, budgets, progress.

The engine is the stand-in of `tests.stand_in`; words in a prompt command it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner, Result

from acestep.provenance import read_credentials
from acestep.request import derived_seed
from benchmarks.pipeline import adapter
from jobs.cli import main
from pipelines import layout, progress
from pipelines.catalog import Catalog
from pipelines.plan import PlanRecord
from pipelines.run import run_job
from pipelines.storage import Storage
from tests.conftest import ROOT, stand_in_config
from tests.running_job import calls_in, job, manifest_of, num_rows, songs_of, wait_for_songs
from tests.stand_in import Engine
from tests.test_provenance import identity

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

LEASE = ("lease.heartbeat_seconds=0.5", "lease.stale_seconds=60")
ENGINE = ("engine=tests.stand_in:Engine", "model.checkpoint=stand-in")


class NumberedEngine(Engine):
    """Says in its songs' rows which process made them."""

    @property
    def device_name(self) -> str:
        return f"process {os.getpid()}"


def generate(manifest: str, output: str, *words: str, settings: tuple[str, ...] = ()) -> Result:
    """`acestep generate` in this process, where it does not get as far as Ray."""
    options = [word for setting in (*ENGINE, *settings) for word in ("--set", setting)]
    return CliRunner().invoke(main, ["generate", "--manifest", manifest, "--output", output, *options, *words])


def failures_of(output: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in Catalog(Storage(output)).failures().to_pylist()}


def facts_of(output: str, name: str = "progress") -> dict[str, Any]:
    """A JSON object of the output."""
    return json.loads(Path(output, f"{name}.json").read_text())


def planned_in(output: str) -> dict[str, str]:
    """Fingerprints of the plan, by id."""
    storage = Storage(output)
    record = PlanRecord.read(storage)
    assert record is not None
    tables = [storage.read_table(layout.plan_key(bucket, record.plan)) for bucket in range(record.num_buckets)]
    return {row["id"]: row["fingerprint"] for table in tables for row in table.to_pylist()}


def made_in(calls: Path) -> Counter[str]:
    """How often each song was asked of the engine."""
    return Counter(id for call in calls_in(calls) for id in call.split())


def assert_whole(output: str, ids: list[str]) -> None:
    """Exactly these songs, a row each, and no sound besides."""
    songs = songs_of(output)
    assert sorted(songs) == sorted(ids)
    assert num_rows(output) == len(ids), "a row each"
    assert sorted(Storage(output).keys("audio")) == sorted(row["path"] for row in songs.values())


@pytest.mark.slow
def test_one_run_at_a_time_and_the_first_is_not_disturbed(tmp_path: Path, ray_folder: str) -> None:
    output, calls = str(tmp_path / "out"), tmp_path / "calls"
    manifest = manifest_of(tmp_path / "m.parquet", ["song slow:0.5"] * 20)
    process = job(manifest, output, ray_folder, f"model.checkpoint=stand-in?{calls}", "commit.every_songs=1", *LEASE)
    wait_for_songs(output, process)
    plan = facts_of(output, "run")
    refused = generate(manifest, output, settings=("seed=3", *LEASE))
    at_work = CliRunner().invoke(main, ["status", output]).stdout
    assert process.poll() is None, "the first ended too early for this test"
    assert refused.exit_code == 2
    assert "is in use by run" in refused.output
    assert f"pid {process.pid}" in refused.output
    assert f"(pid {process.pid})" in at_work and "at work" in at_work
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0, text
    assert "20 songs made" in text
    assert facts_of(output, "run") == plan, "the one that was refused has written nothing"
    assert_whole(output, [f"s{number:02d}" for number in range(20)])
    assert set(made_in(calls).values()) == {1}


@pytest.mark.slow
def test_after_sigkill_the_next_run_starts_at_once(tmp_path: Path, ray_folder: str) -> None:
    output = str(tmp_path / "out")
    manifest = manifest_of(tmp_path / "m.parquet", ["song slow:0.3"] * 16)
    process = job(manifest, output, ray_folder, "model.checkpoint=stand-in", "commit.every_songs=1", *LEASE)
    wait_for_songs(output, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    already = len(songs_of(output))
    summary = run_job(stand_in_config(lease__stale_seconds=60), manifest, output)
    assert summary.times.plan < 20, "it did not wait for the lease to get old"
    assert (summary.exit_code, summary.already, summary.made) == (0, already, 16 - already)
    assert_whole(output, [f"s{number:02d}" for number in range(16)])


@pytest.mark.slow
def test_sigterm_drains_and_what_was_in_work_is_committed(tmp_path: Path, ray_folder: str) -> None:
    output, calls = str(tmp_path / "out"), tmp_path / "calls"
    manifest = manifest_of(tmp_path / "m.parquet", ["song slow:0.3"] * 100)
    process = job(manifest, output, ray_folder, f"model.checkpoint=stand-in?{calls}", "commit.every_songs=4")
    wait_for_songs(output, process)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 143, text
    assert "SIGTERM: finishing the batches in work, for 60 s at most" in text
    made = made_in(calls)
    assert 4 <= made.total() < 100
    assert_whole(output, list(made))
    run = facts_of(output, f"runs/{facts_of(output)['run']}")
    assert (run["state"], run["stopped"], run["made"]) == ("stopped", "SIGTERM", made.total())


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_leaves_nothing_by_halves(tmp_path: Path, ray_folder: str) -> None:
    output, calls = str(tmp_path / "out"), tmp_path / "calls"
    steps = [20] * 4 + [21] * 4 + [22] * 4
    prompts = ["song"] * 4 + ["song slow:30"] * 8
    durations = [2.0] * 4 + [1.0] * 8
    manifest = manifest_of(tmp_path / "m.parquet", prompts, num_inference_steps=steps, duration=durations)
    settings = (f"model.checkpoint=stand-in?{calls}", "commit.every_songs=1", "stopping.drain_seconds=100")
    process = job(manifest, output, ray_folder, *settings)
    wait_for_songs(output, process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    for line in process.stdout:
        if "finishing the batches in work" in line:
            break
    time.sleep(1)
    assert process.poll() is None, "the batch in work takes 120 s"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=120)[0]
    assert time.monotonic() - started < 75, "far below the time to drain"
    assert process.returncode == 143, text
    assert len(calls_in(calls)) > 1, "slow songs were in work"
    assert_whole(output, [f"s{number:02d}" for number in range(4)])
    assert not Storage(output).keys("failed")
    assert not Path(output, layout.LEASE).exists()
    assert facts_of(output)["state"] == "stopped"
    assert not psutil.wait_procs(family, timeout=90)[1], "a process outlived the job"


@pytest.mark.slow
def test_what_hangs_or_crawls_is_given_up_and_its_batch_mates_are_made(tmp_path: Path) -> None:
    """Nothing is known of this model's speed but what its one batch took in the run before."""
    output, calls = str(tmp_path / "out"), tmp_path / "calls"
    prompts = ["song"] * 4 + ["song", "hang", "song"] + ["song", "song", "crawl:0.5"]
    steps = [60] * 4 + [20] * 3 + [21] * 3
    durations = [4.0] * 4 + [1.0] * 6
    columns = {"num_inference_steps": steps, "duration": durations}
    first = manifest_of(tmp_path / "first.parquet", prompts[:4], **{name: all[:4] for name, all in columns.items()})
    manifest = manifest_of(tmp_path / "m.parquet", prompts, **columns)
    config = stand_in_config(stopping__batch_timeout_min_seconds=1, model__checkpoint=f"hanging?{calls}")
    assert run_job(config, first, output).made == 4
    started = time.monotonic()
    summary = run_job(config, manifest, output)
    assert time.monotonic() - started < 120
    assert (summary.exit_code, summary.made, summary.failed.counts) == (3, 4, {"timeout": 2})
    assert_whole(output, ["s00", "s01", "s02", "s03", "s04", "s06", "s07", "s08"])
    failures = failures_of(output)
    assert "much longer than batches of its cost do; it hangs" in failures["s05"]["message"]
    assert "much longer than batches of its cost do; it was at step" in failures["s09"]["message"]
    # Once more where it was in the process that the other song took along.
    assert made_in(calls)["s09"] in (2, 3), "with its batch-mates and alone"
    assert made_in(calls)["s00"] == 1


def test_processes_are_replaced_and_nothing_is_lost_or_made_twice(tmp_path: Path) -> None:
    output, calls = str(tmp_path / "out"), tmp_path / "calls"
    manifest = manifest_of(tmp_path / "m.parquet", ["song slow:0.2"] * 12)
    config = stand_in_config(
        engine="tests.test_overnight_job:NumberedEngine",
        model__checkpoint=f"stand-in?{calls}",
        resources__recycle_after_batches=2,
        batch__max_batch_size=2,
    )
    summary = run_job(config, manifest, output)
    assert (summary.exit_code, summary.made) == (0, 12)
    assert_whole(output, [f"s{number:02d}" for number in range(12)])
    assert set(made_in(calls).values()) == {1}
    batches = Counter(device for device, _ in {(row["device"], row["batch"]) for row in songs_of(output).values()})
    assert sorted(batches.values()) == [2, 2, 2], "batches of each process"


def test_the_pool_of_engines_grows_with_the_backlog(tmp_path: Path) -> None:
    output, calls = str(tmp_path / "out"), tmp_path / "calls"
    manifest = manifest_of(tmp_path / "m.parquet", ["song slow:0.5"] * 30)
    config = stand_in_config(
        engine="tests.test_overnight_job:NumberedEngine",
        model__checkpoint=f"stand-in?{calls}",
        resources__num_actors=1,
        resources__max_actors=3,
        resources__num_cpus=0.5,
        batch__max_batch_size=1,
    )
    summary = run_job(config, manifest, output)
    assert (summary.exit_code, summary.made, summary.engines) == (0, 30, 3)
    assert_whole(output, [f"s{number:02d}" for number in range(30)])
    assert set(made_in(calls).values()) == {1}
    assert 2 <= len({row["device"] for row in songs_of(output).values()}) <= 3


def test_the_gate_makes_again_gives_up_and_tells_siblings_apart(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    columns = {"seed": [5, 6, 7, 8], "num_songs": [1, 1, 1, 3]}
    manifest = manifest_of(tmp_path / "m.parquet", ["song", "song silent-at:6", "silent", "song"], **columns)
    summary = run_job(stand_in_config(), manifest, output)
    assert (summary.exit_code, summary.made, summary.failed.counts) == (3, 5, {"quality": 1})
    songs = songs_of(output)
    assert (summary.rerolls, summary.quarantined) == (2 + sum(row["attempt"] - 1 for row in songs.values()), 1)
    assert sorted(songs) == ["s00", "s01", "s03.1", "s03.2", "s03.3"]
    assert [songs["s00"][name] for name in ("seed", "requested_seed", "attempt")] == [5, 5, 1]
    again = derived_seed("reroll", 6, 2)
    assert [songs["s01"][name] for name in ("seed", "requested_seed", "attempt")] == [again, 6, 2]
    assert soundfile.read(Path(output, songs["s01"]["path"]))[0].any()

    siblings = [songs[f"s03.{number}"] for number in (1, 2, 3)]
    assert [row["parent"] for row in siblings] == ["s03"] * 3
    assert [row["requested_seed"] for row in siblings] == [8, *(derived_seed("song", 8, number) for number in (2, 3))]
    assert len({row["acoustic_hash"] for row in siblings}) == 3
    assert songs["s00"]["parent"] is None

    failed = failures_of(output)["s02"]
    data = Path(output, failed["path"]).read_bytes()
    assert failed["path"].startswith("quarantine/")
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (failed["sha256"], failed["bytes"])
    assert not soundfile.read(Path(output, failed["path"]))[0].any()
    assert failed["attempts"] == 3
    evidence = json.loads(failed["evidence"])
    seeds = [7, *(derived_seed("reroll", 7, attempt) for attempt in (2, 3))]
    assert [(each["attempt"], each["seed"]) for each in evidence] == list(enumerate(seeds, start=1))
    assert all(each["quality"]["silence_share"] == 1 and each["problems"] for each in evidence)


def test_the_best_of_three_is_kept_and_the_others_are_recorded(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    prompts = ["song silent-at:0", *["song"] * 5]
    manifest = manifest_of(tmp_path / "m.parquet", prompts, seed=list(range(6)))
    assert run_job(stand_in_config(best_of__candidates=3), manifest, output).exit_code == 0
    songs = songs_of(output)
    for number, (_, row) in enumerate(sorted(songs.items())):
        seeds = [number, *(derived_seed("candidate", number, candidate) for candidate in (1, 2))]
        others = json.loads(row["candidates"])
        assert sorted([row["seed"], *(each["seed"] for each in others)]) == sorted(seeds)
        assert (row["requested_seed"], row["attempt"], row["scorer"]) == (number, 1, "clean")
        assert all(each["score"] <= row["score"] for each in others if each["score"] is not None)
    (silent,) = [each for each in json.loads(songs["s00"]["candidates"]) if each["seed"] == 0]
    assert silent["score"] is None
    assert any("silence" in problem for problem in silent["problems"])


def test_without_the_gate_silence_is_a_song(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    manifest = manifest_of(tmp_path / "m.parquet", ["silent", "nan"])
    summary = run_job(stand_in_config(quality__enabled=False), manifest, output)
    assert (summary.made, summary.failed.counts, summary.rerolls) == (1, {"quality": 1}, 0)
    assert songs_of(output)["s00"]["attempt"] == 1
    assert_whole(output, ["s00"])
    assert not Storage(output).keys("quarantine")


def test_a_row_becomes_many_songs_and_only_what_changes_the_sound_makes_them_anew(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    manifest = manifest_of(tmp_path / "m.parquet", ["song", "song"], seed=pa.array([7, None], pa.int64()))
    many: dict[str, Any] = {"sweep": {"guidance_scale": [5, 15]}, "num_songs": 2}
    summary = run_job(stand_in_config(**many), manifest, output)
    assert (summary.exit_code, summary.planned, summary.made) == (0, 8, 8)
    songs, own = songs_of(output), {"s00": 7, "s01": derived_seed(0, "s01")}
    expected = {
        f"{parent}.guidance_scale-{scale}.{number}": (
            parent,
            scale,
            seed if number == 1 else derived_seed("song", seed, 2),
        )
        for parent, seed in own.items()
        for scale in (5, 15)
        for number in (1, 2)
    }
    assert {id: (row["parent"], row["guidance_scale"], row["requested_seed"]) for id, row in songs.items()} == expected
    fingerprints = planned_in(output)
    assert {id: row["fingerprint"] for id, row in songs.items()} == fingerprints

    limits = {"quality__limits__max_silence_share": 0.4, "quality__rerolls": 5}
    stricter = run_job(stand_in_config(**many, **limits), manifest, output, dry_run=True)
    assert (stricter.already, planned_in(output)) == (8, fingerprints)
    best = run_job(stand_in_config(**many, best_of__candidates=2), manifest, output, dry_run=True)
    assert (best.planned, best.already) == (8, 0)
    assert not set(planned_in(output).values()) & set(fingerprints.values())


def test_an_edited_manifest_makes_only_what_changed_and_pruning_takes_the_rest_away(tmp_path: Path) -> None:
    output, calls = str(tmp_path / "out"), tmp_path / "calls"
    config = stand_in_config(model__checkpoint=f"stand-in?{calls}")
    manifest = manifest_of(tmp_path / "m.parquet", ["song"] * 6)
    assert run_job(config, manifest, output).made == 6
    before = songs_of(output)

    calls.unlink()
    table = pq.read_table(manifest).to_pylist()
    table[1]["prompt"] = "another song"
    table = [*table[:2], *table[3:], table[3] | {"id": "new"}]
    pq.write_table(pa.Table.from_pylist(table), manifest)
    summary = run_job(config, manifest, output)
    assert (summary.exit_code, summary.made, summary.already) == (0, 2, 4)
    assert made_in(calls) == {"s01": 1, "new": 1}
    assert num_rows(output) == len(Storage(output).keys("audio")) == 8, "nothing is taken away without being asked"

    assert run_job(config, manifest, output, prune_rest=True).made == 0
    after = songs_of(output)
    assert_whole(output, ["s00", "s01", "s03", "s04", "s05", "new"])
    assert after["s01"]["prompt"] == "another song"
    same = ("s00", "s03", "s04", "s05")
    assert [after[id] for id in same] == [before[id] for id in same]
    gone = {before["s01"]["path"], before["s02"]["path"]}
    assert not any(Path(output, path).exists() for path in gone)


def test_progress_tells_how_far_it_is_and_what_it_will_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FILE_SECONDS", 0.1)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.1)
    output, over, seen = str(tmp_path / "out"), threading.Event(), []

    def watch() -> None:
        while not over.wait(0.05):
            if Path(output, layout.PROGRESS).exists():
                seen.append(facts_of(output))

    prompts = ["song slow:0.3"] * 14 + ["silent", "refuse"]
    manifest = manifest_of(tmp_path / "m.parquet", prompts, duration=[2.0] * 14 + [1.0] * 2)
    config = stand_in_config(budget__price_per_gpu_hour=3600, batch__max_batch_size=2)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        summary = run_job(config, manifest, output)
    finally:
        over.set()
        thread.join()

    last = facts_of(output)
    assert last | {"started_at": 0, "updated_at": 0, "real_time_factor": 0, "real_time_factor_now": 0} == {
        "state": "finished",
        "run": summary.run,
        "songs_planned": 16,
        "songs_already": 0,
        "songs_to_make": 16,
        "songs_made": 14,
        "songs_failed": 2,
        "failures": {"quality": 1, "out_of_memory": 1},
        "rerolls": 2,
        "quarantined": 1,
        "lora_switches": 0,
        "padding": 0.0,
        "audio_seconds": last["audio_seconds"],
        "audio_seconds_left": 0.0,
        "real_time_factor": 0,
        "real_time_factor_now": 0,
        "engines": 1,
        "seconds_left": 0,
        "cost_left": 0.0,
        "started_at": 0,
        "updated_at": 0,
    }
    assert 27 < last["audio_seconds"] <= 28
    assert 0 < last["real_time_factor"] < 28 / (0.3 * 14)
    halfway = [each for each in seen if each["state"] == "running" and 0 < each["songs_made"] < 14]
    assert halfway, "it was told while it ran"
    for each in halfway:
        assert each["cost_left"] == pytest.approx(each["seconds_left"], abs=1), "one engine at 1 a second"
        assert each["audio_seconds_left"] == pytest.approx(30 - 2 * each["songs_made"] - each["songs_failed"])
        assert each["seconds_left"] > 0
        assert each["real_time_factor_now"] > 0

    run = facts_of(output, f"runs/{summary.run}")
    told = {"planned": 16, "already": 0, "made": 14, "failed": {"quality": 1, "out_of_memory": 1}, "rerolls": 2}
    told |= {"quarantined": 1, "engines": 1, "device": "stand-in", "lora_switches": 0, "padding": 0.0, "stopped": None}
    told |= {"state": "finished", "run": summary.run}
    assert told.items() <= run.items()
    rows = songs_of(output).values()
    assert run["audio_seconds"] == pytest.approx(sum(row["duration"] for row in rows), abs=0.01)
    assert run["bytes"] == sum(row["bytes"] for row in rows)
    times = run["times"]
    assert times["generate"] > 0.3 * 14
    assert times["plan"] > 0 and times["encode"] > 0 and times["upload"] > 0 and times["load"] > 0
    assert run["seconds"] == times["execution"] > times["generate"]
    assert times["total"] >= times["execution"] + times["plan"]

    done = subprocess.run([sys.executable, "-m", "jobs.status", output], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("finished", "14 of 16 made (87.5%), 2 failed", "quality 1", "out_of_memory 1", "2 rerolls, 1 in"):
        assert words in done.stdout
    assert f"{last['real_time_factor']:,.1f} overall" in done.stdout


def test_a_job_over_its_budget_and_a_dry_run_make_nothing(tmp_path: Path) -> None:
    manifest, output = manifest_of(tmp_path / "m.parquet", ["song"] * 9), str(tmp_path / "out")
    price = ("budget.price_per_gpu_hour=1000",)
    for words, settings, message in (
        (("--max-cost", "0.0001"), price, "is estimated to cost"),
        (("--max-hours", "0.0001"), (), "is estimated to run"),
    ):
        refused = generate(manifest, output, *words, settings=settings)
        assert refused.exit_code == 2, refused.output
        assert message in refused.output
        assert "nothing is made" in refused.output
    unpriced = generate(manifest, output, "--max-cost", "1")
    assert (unpriced.exit_code, "needs budget.price_per_gpu_hour" in unpriced.output) == (2, True)
    dry = generate(manifest, output, "--dry-run", "--max-cost", "1000000", settings=price)
    assert dry.exit_code == 0, dry.output
    assert len(planned_in(output)) == 9
    assert facts_of(output, "plan/estimate")["to_make"] == 9
    assert {key.partition("/")[0] for key in Storage(output).keys("")} == {"plan", "run.json"}


def test_signed_songs_hold_and_what_cannot_be_signed_is_refused_early(tmp_path: Path) -> None:
    output, us = str(tmp_path / "out"), identity()
    for name, pem in us._asdict().items():
        Path(tmp_path, f"{name}.pem").write_bytes(pem)
    files = {"certificate": str(tmp_path / "chain.pem"), "private_key": str(tmp_path / "key.pem")}
    signing = {"provenance": {"mode": "c2pa", **files}}
    manifest = manifest_of(tmp_path / "m.parquet", ["song"] * 3)
    assert run_job(stand_in_config(**signing), manifest, output).exit_code == 0
    rows = songs_of(output)
    assert len(rows) == 3
    for id, row in rows.items():
        data = Path(output, row["path"]).read_bytes()
        assert (row["signed"], row["sha256"]) == ("c2pa", hashlib.sha256(data).hexdigest())
        said = read_credentials(data, "flac", trust_anchors=tmp_path / "root.pem")
        assert said["trusted"]
        assert said["ai_generated"]
        assert {name: said["facts"][name] for name in ("id", "fingerprint", "seed", "model_fingerprint")} == {
            "id": id,
            **{name: row[name] for name in ("fingerprint", "seed", "model_fingerprint")},
        }
        assert len(soundfile.read(Path(output, row["path"]))[0]) == row["num_samples"]

    other = str(tmp_path / "other")
    settings = ("provenance.mode=c2pa", *(f"provenance.{name}={path}" for name, path in files.items()))
    ogg = generate(manifest, other, settings=(*settings, "audio.format=ogg"))
    assert (ogg.exit_code, "c2pa signs wav, flac, mp3" in ogg.output) == (2, True)
    swapped = (*settings, f"provenance.certificate={tmp_path / 'root.pem'}")
    assert generate(manifest, other, settings=swapped).exit_code == 2
    assert not Path(other).exists()


def test_an_engine_switches_adapters_rarely(tmp_path: Path) -> None:
    adapters, chosen = [adapter(tmp_path, number) for number in range(5)], random.Random(0)
    columns = {
        "id": [f"song-{number:03d}" for number in range(200)],
        "duration": [1.0] * 200,
        "label": list(range(200)),
        "lora": [chosen.choice([*adapters, None]) for _ in range(200)],
    }
    # Batches that take no time would race for the engine.
    manifest = manifest_of(tmp_path / "m.parquet", ["song slow:0.02"] * 200, **columns)
    summary = run_job(stand_in_config(plan__bucket_rows=100), manifest, str(tmp_path / "out"))
    assert (summary.exit_code, summary.made) == (0, 200)
    record = facts_of(str(tmp_path / "out"), "run")
    assert record["num_buckets"] == 2
    in_order = (len(adapters) + 1) * record["num_buckets"]
    as_they_come = sum(one != other for one, other in pairwise(columns["lora"]))
    assert as_they_come > 150
    # Of two batches that wait for the engine the later one may go first, now and then.
    assert 6 <= summary.switches <= in_order + 4
    assert facts_of(str(tmp_path / "out"))["lora_switches"] == summary.switches
