"""The whole job on a real Ray: manifest to catalog, on a folder and on S3, with all that can go wrong on the way.

The engine is a stand-in whose audio depends on the batch that a song was in; so equal sha256 prove equal engine calls.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import soundfile
from safetensors.numpy import load_file

from acestep.audio_format import AudioFormat
from acestep.frames import num_samples
from acestep.request import GenerationRequest
from acestep.result import ModelInfo
from pipelines import execution
from pipelines.catalog import Catalog
from pipelines.config import RunConfig
from pipelines.cutting import Cutting
from pipelines.draining import DrainSwitch
from pipelines.errors import ConfigError, UnusableInputError
from pipelines.run import retry_job, run_job
from pipelines.storage import Storage
from tests.conftest import ROOT, S3, stand_in_config
from tests.running_job import calls_in, job, manifest_of, songs_of, sums_of, wait_for_songs

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_a_manifest_becomes_a_catalog_and_a_second_run_makes_nothing(tmp_path: Path) -> None:
    output, calls = str(tmp_path / "out"), tmp_path / "calls"
    prompts = [f"song {number}" for number in range(18)]
    manifest = manifest_of(tmp_path / "m.parquet", prompts, seed=pa.array([5, *[None] * 17], pa.int64()))
    config = stand_in_config(model__checkpoint=f"stand-in?{calls}", plan__bucket_rows=6)
    summary = run_job(config, manifest, output)
    assert (summary.exit_code, summary.planned, summary.made, summary.already) == (0, 18, 18, 0)
    assert summary.times.generate > 0

    songs = songs_of(output)
    assert sorted(songs) == [f"s{number:02d}" for number in range(18)]
    for number, (id, row) in enumerate(sorted(songs.items())):
        data = Path(output, row["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        samples, rate = soundfile.read(io.BytesIO(data))
        assert (len(samples), rate) == (row["num_samples"], 44100)
        assert row["num_samples"] == num_samples(row["requested_duration"])
        assert (row["label"], row["prompt"], row["requested_duration"]) == (number, prompts[number], 1.0 + number % 4)
        assert row["bytes"] == len(data)
        assert row["random_weights"] is True
        assert row["path"].endswith(f"{id}-{row['fingerprint']}.flac")
    assert songs["s00"]["seed"] == 5
    made = calls_in(calls)
    assert sorted(id for call in made for id in call.split()) == sorted(songs)
    assert max(len(call.split()) for call in made) <= 4
    record = json.loads(Path(output, "run.json").read_text())
    assert (record["planned"], record["num_buckets"], record["model"]["name"]) == (18, 3, "stand-in")
    assert json.loads(Path(output, "progress.json").read_text())["state"] == "finished"

    again = run_job(config, manifest, output)
    assert (again.exit_code, again.made, again.already) == (0, 0, 18)
    assert calls_in(calls) == made


@pytest.mark.parametrize("server", ["moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def test_s3_is_as_good_as_a_folder(tmp_path: Path, server: str, request: pytest.FixtureRequest) -> None:
    s3: S3 = request.getfixturevalue(server)
    config = stand_in_config(storage__storage_options=s3.options, audio__format="mp3")
    base = f"{s3.url}/{uuid.uuid4().hex}"
    manifest_of(tmp_path / "m.parquet", [f"song {number}" for number in range(8)])
    Storage(base, s3.options).put("in/m.parquet", (tmp_path / "m.parquet").read_bytes())
    assert run_job(config, f"{base}/in/*.parquet", f"{base}/out").exit_code == 0
    assert run_job(config, str(tmp_path / "m.parquet"), str(tmp_path / "out")).exit_code == 0
    assert sums_of(f"{base}/out", s3.options) == sums_of(str(tmp_path / "out"))
    assert len(sums_of(f"{base}/out", s3.options)) == 8
    for row in songs_of(f"{base}/out", s3.options).values():
        data = Storage(f"{base}/out", s3.options).get(row["path"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
    assert b"test" not in Storage(f"{base}/out", s3.options).get("run.json").replace(b"tests.", b"")


def test_whatever_fails_becomes_a_row_and_the_rest_is_made(tmp_path: Path) -> None:
    calls, once = tmp_path / "calls", tmp_path / "once"
    bad = {"raise": "internal", "refuse": "out_of_memory", "nan": "quality", "die": "device", "device": "device"}
    prompts = ["song"] * 6 + [*bad, f"die-once:{once}", "song", None, "song"]
    steps = [20] * 6 + list(range(21, 21 + len(bad))) + [40, 40, 41, 0]
    columns = {"num_inference_steps": steps, "id": [f"s{number:02d}" for number in range(len(prompts) - 1)] + ["s00"]}
    manifest = manifest_of(tmp_path / "m.parquet", prompts, **columns)
    config = stand_in_config(model__checkpoint=f"stand-in?{calls}")
    summary = run_job(config, manifest, str(tmp_path / "out"))
    assert summary.exit_code == 3
    assert summary.failed.counts == {"internal": 1, "out_of_memory": 1, "quality": 1, "device": 2, "input": 2}
    assert (summary.quarantined, summary.rerolls) == (1, 2)
    assert sorted(songs_of(str(tmp_path / "out"))) == ["s00", "s01", "s02", "s03", "s04", "s05", "s11", "s12"]
    failures = {row["id"]: row for row in Catalog(Storage(str(tmp_path / "out"))).failures().to_pylist()}
    for number, error_class in enumerate(bad.values(), start=6):
        assert failures[f"s{number:02d}"]["error_class"] == error_class
        assert json.loads(failures[f"s{number:02d}"]["request"])["num_inference_steps"] == 15 + number
    assert failures["s13"]["error_class"] == "input"
    assert "prompt: None is not allowed" in failures["s13"]["message"]
    assert "num_inference_steps: 0 is not allowed" in failures["s00"]["message"]
    assert "died" in failures["s09"]["message"]
    assert "told to break" in failures["s10"]["message"], "the last words of the process"
    assert [each["attempt"] for each in json.loads(failures["s08"]["evidence"])] == [1, 2, 3]
    quarantined = Path(tmp_path / "out", failures["s08"]["path"]).read_bytes()
    assert hashlib.sha256(quarantined).hexdigest() == failures["s08"]["sha256"]
    # What kills its process is tried a bounded number of times: with others, where others may die for it, then alone.
    assert execution.ATTEMPTS <= calls_in(calls).count("s09") <= 3 * execution.ATTEMPTS
    assert "device: 2" in summary.text()


def test_what_failed_is_tried_again_when_asked_and_a_longer_manifest_makes_only_what_is_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, calls, allowed = str(tmp_path / "out"), tmp_path / "calls", tmp_path / "allowed"
    config = stand_in_config(model__checkpoint=f"stand-in?{calls}")
    prompts = ["song"] * 4 + [f"refuse-until:{allowed}"]
    first = run_job(config, manifest_of(tmp_path / "m.parquet", prompts), output)
    assert (first.exit_code, first.made, first.failed.total) == (3, 4, 1)
    before = sums_of(output)

    allowed.touch()
    calls.unlink()
    with caplog.at_level("INFO"):
        second = run_job(config, manifest_of(tmp_path / "m.parquet", [*prompts, "song", "song"]), output)
    assert "7 songs planned, 4 there already, 2 to make" in caplog.text
    assert (second.exit_code, second.made, second.already, second.failed_before) == (3, 2, 4, 1)
    assert "1 failed before: `acestep retry" in second.text()
    assert sorted(id for call in calls_in(calls) for id in call.split()) == ["s05", "s06"]

    assert retry_job(config, output, error_class="storage").made == 0
    assert retry_job(config, output, ids=["s03"]).made == 0
    third = retry_job(config, output, error_class="out_of_memory", ids=["s04"])
    assert (third.exit_code, third.made, third.already, third.failed_before) == (0, 1, 6, 0)
    assert before.items() <= sums_of(output).items()
    assert Catalog(Storage(output)).failures().num_rows == 0

    caplog.clear()
    other = config.model_copy(update={"defaults": {"num_inference_steps": 5}})
    with caplog.at_level("INFO"):
        changed = run_job(other, str(tmp_path / "m.parquet"), output)
    assert (changed.made, changed.already) == (7, 0)
    assert "the config's defaults was {} and is {'num_inference_steps': 5}" in caplog.text
    assert "7 of these are there already, made by another model or with other settings" in caplog.text
    assert Catalog(Storage(output)).songs().num_rows == 14
    pruned = run_job(other, str(tmp_path / "m.parquet"), output, prune_rest=True)
    assert (pruned.made, pruned.already) == (0, 7)
    assert Catalog(Storage(output)).songs().num_rows == len(Storage(output).keys("audio")) == 7


def test_killed_and_started_again_equals_undisturbed(tmp_path: Path, ray_folder: str) -> None:
    prompts = ["song slow:0.15" for _ in range(24)]
    manifest = manifest_of(tmp_path / "m.parquet", prompts)
    calm, killed, calls = str(tmp_path / "calm"), str(tmp_path / "killed"), tmp_path / "calls"
    config = stand_in_config(model__checkpoint=f"stand-in?{calls}")
    assert run_job(config, manifest, calm).exit_code == 0
    batches = calls_in(calls)

    process = job(manifest, killed, ray_folder, "model.checkpoint=stand-in", "commit.every_songs=1")
    wait_for_songs(killed, process, 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = sums_of(killed)
    assert 0 < len(kept) < 24

    calls.unlink()
    summary = run_job(config, manifest, killed)
    assert (summary.exit_code, summary.already, summary.made) == (0, len(kept), 24 - len(kept))
    assert sums_of(killed) == sums_of(calm)
    assert set(calls_in(calls)) < set(batches)
    rows = [row for key in Storage(killed).keys("songs") for row in Storage(killed).read_table(key).to_pylist()]
    assert len(rows) == 24, "no song was made twice"


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_what_is_finished_committed(tmp_path: Path, ray_folder: str) -> None:
    manifest = manifest_of(tmp_path / "m.parquet", ["song slow:0.5" for _ in range(100)])
    output = str(tmp_path / "out")
    process = job(manifest, output, ray_folder, "model.checkpoint=stand-in", "commit.every_songs=4")
    wait_for_songs(output, process)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=180)[0]
    assert process.returncode == 130, text
    assert "finishing the batches in work, for 60 s at most" in text
    assert "stopped early: SIGINT" in text
    made = int(text.split(" songs made")[0].rsplit("\n", 1)[-1])
    assert 4 <= made < 100
    assert len(songs_of(output)) == made, "what was in work is finished and committed"
    assert json.loads(Path(output, "progress.json").read_text())["state"] == "stopped"


class DeadlyFormat(AudioFormat):
    """Kills the process that encodes."""

    def soundfile_options(self) -> dict[str, Any]:
        os._exit(1)


def test_a_song_that_kills_its_encoder_ends_as_a_failure(tmp_path: Path) -> None:
    config = stand_in_config().model_copy(update={"audio": DeadlyFormat(format="flac")})
    summary = run_job(config, manifest_of(tmp_path / "m.parquet", ["song"]), str(tmp_path / "out"))
    assert summary.exit_code == 3
    assert summary.failed.counts == {"device": 1}


def test_storage_that_fails_for_good_stops_the_job_with_the_reason(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "audio").write_text("a file where the folder should be")
    summary = run_job(stand_in_config(), manifest_of(tmp_path / "m.parquet", ["song"] * 3), str(output))
    assert summary.exit_code == 4
    assert "cannot write" in (summary.stopped or "")
    assert songs_of(str(output)) == {}
    (output / "audio").unlink()
    assert run_job(stand_in_config(), str(tmp_path / "m.parquet"), str(output)).exit_code == 0


def test_an_engine_that_cannot_be_loaded_ends_the_job_with_the_reason(tmp_path: Path) -> None:
    config = stand_in_config(model__checkpoint="broken-on-the-node")
    with pytest.raises(UnusableInputError, match=r"cannot be loaded on .*: the weights on this node are damaged"):
        run_job(config, manifest_of(tmp_path / "m.parquet", ["song"]), str(tmp_path / "out"))


def test_engines_are_fused_with_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, cutting = Storage(str(tmp_path)), Cutting("plan", 100, 4)
    for config in (stand_in_config(), stand_in_config(resources__num_gpus=1)):
        model = ModelInfo("m", "f", "float32")
        stages = execution.Stages(config, storage, model, "run", cutting, 2, 3, DrainSwitch())
        execution.songs_dataset(stages, [0, 1]).explain()
        physical = capsys.readouterr().out.split("Physical Plan (Optimized)")[1]
        operators = [line.strip(" +-|") for line in physical.splitlines() if "Operator[" in line]
        assert operators == [
            "TaskPoolMapOperator[MapBatches(encode_songs)]",
            "ActorPoolMapOperator[MapBatches(GenerateStage)]",
            "TaskPoolMapOperator[StreamingRepartition[num_rows_per_block=1,strict=True]]",
            "TaskPoolMapOperator[MapBatches(cut_bucket)]",
        ]


@pytest.mark.slow
def test_the_real_engine_makes_what_it_makes_without_ray(tmp_path: Path) -> None:
    from acestep.engine import Engine

    manifest = manifest_of(tmp_path / "m.parquet", ["rock", "pop"], lyrics=["[verse]\nla la", None], seed=[1, 2])
    config = RunConfig.load(
        ROOT / "configs" / "tiny.yaml",
        ["defaults.num_inference_steps=2", "audio={format: wav, bit_depth: 32}", "model.warm_up=false"],
    )
    summary = run_job(config, manifest, str(tmp_path / "out"))
    assert summary.exit_code == 0
    songs = songs_of(str(tmp_path / "out"))
    engine = Engine.load("tiny", dtype="float32")
    assert songs["s00"]["model_fingerprint"] == engine.model.fingerprint
    for id, row in songs.items():
        settings = {name: row[name] for name in GenerationRequest.model_fields if name in row}
        request = GenerationRequest.parse(settings | {"duration": row["requested_duration"], "id": id})
        assert request.fingerprint(engine.model.fingerprint, "wav-32") == row["fingerprint"]
        (result,) = engine.generate([request])
        samples, _ = soundfile.read(Path(tmp_path / "out", row["path"]), dtype="float32")
        error = abs(samples.T - result.waveform.numpy().clip(-1, 1)).max()  # type: ignore[union-attr]
        assert error < 1e-3, id


def test_a_song_of_the_catalog_is_repainted_from_its_kept_latents(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    settings = ["defaults.num_inference_steps=2", "model.warm_up=false", "keep_latents=true"]
    config = RunConfig.load(ROOT / "configs" / "tiny.yaml", [*settings, "loudness.mode=peak"])
    first = manifest_of(tmp_path / "first.parquet", ["rock", "pop"])
    assert run_job(config, first, output).exit_code == 0
    rows = [
        {"id": "again", "prompt": "drums", "task": "repaint", "source": "song:s01", "repaint_end": 1.0},
        {"id": "none", "prompt": "drums", "task": "repaint", "source": "song:s77"},
    ]
    second = tmp_path / "second.jsonl"
    second.write_text("\n".join(json.dumps(row) for row in rows))
    summary = run_job(config, str(second), output)
    assert (summary.exit_code, summary.made, summary.rejected) == (3, 1, 1)
    songs = songs_of(output)
    before, after = (load_file(Path(output, songs[id]["latents"]))["latents"] for id in ("s01", "again"))
    assert (before != after).any(axis=(0, 1)).tolist() == [True] * 10 + [False] * (before.shape[-1] - 10)
    samples, _ = soundfile.read(Path(output, songs["s00"]["path"]))
    assert 20 * math.log10(abs(samples).max()) == pytest.approx(-1.0, abs=0.01)


def test_engines_share_a_gpu_and_the_work(tmp_path: Path) -> None:
    config = stand_in_config(resources__num_gpus=0.5, batch__max_batch_size=1)
    assert execution.count_actors(config, local=True) == (2, 2)
    manifest = manifest_of(tmp_path / "m.parquet", ["song slow:0.3" for _ in range(12)])
    summary = run_job(config, manifest, str(tmp_path / "out"))
    assert (summary.exit_code, summary.made, summary.engines) == (0, 12, 2)
    assert {row["dtype"] for row in songs_of(str(tmp_path / "out")).values()} == {"bfloat16"}


def test_a_machine_with_too_few_gpus_is_said() -> None:
    with pytest.raises(ConfigError, match=r"resources\.num_gpus: 2 engines want 1 GPUs each, and Ray has 1 on this"):
        execution.count_actors(stand_in_config(resources__num_gpus=1, resources__num_actors=2), local=True)
