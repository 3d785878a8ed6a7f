"""The whole training: data in, checkpoint or adapter out; stopped or killed, it ends as if it had not been."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file

from acestep.checkpoint import FOLDERS, Checkpoint
from acestep.loading import load_part
from acestep.lora import Adapter
from acestep.pipeline import ACEStepPipeline
from jobs.cli import main
from pipelines.errors import ConfigError, OutputError
from pipelines.storage import Storage
from pipelines.training import job
from pipelines.training.config import TrainingConfig
from pipelines.training.job import run_training
from pipelines.training.states import TrainingStates
from pipelines.training_data.config import PrepareConfig
from pipelines.training_data.job import prepare_data
from tests.conftest import S3, nested

TRANSFORMER = "checkpoint/ace_step_transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve short pieces, with what a teacher hears in them."""
    folder = tmp_path_factory.mktemp("data")
    values = {"synth.durations": [1.0, 2.0], "synth.weights": [1.0, 1.0], "synth.pieces": 12, "shard_songs": 6}
    config = PrepareConfig.parse(nested(values | {"teachers": ["logmel-chroma"]}, {}))
    assert prepare_data(config, str(folder), local=True).exit_code == 0
    return str(folder)


def config_of(data: str | None = None, **changes: Any) -> TrainingConfig:
    """Six steps; in the names two underscores are a dot."""
    values: dict[str, Any] = {"optimization.steps": 6, "optimization.warmup_steps": 2, "data.batch_size": 4}
    values |= {"saving.every_steps": 2, "saving.log_every_steps": 2, "optimization.learning_rate": 1e-3}
    values |= {"data.songs": [data]} if data else {"data.crop_frames": 3}
    return TrainingConfig.parse(nested(values, changes))


def weights(folder: Path, name: str = TRANSFORMER) -> bytes:
    return (folder / name).read_bytes()


@pytest.fixture(scope="module")
def straight(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    assert run_training(config_of(data), str(folder), local=True) == f"{folder}/checkpoint"
    return folder


def test_what_comes_out_is_a_checkpoint_with_the_averaged_weights(straight: Path) -> None:
    checkpoint = Checkpoint.open(straight / "checkpoint")
    assert not checkpoint.random_weights
    found = TrainingStates(Storage(str(straight)), 2).newest()
    assert found is not None
    step, state = found
    average = state["optimization"]["average"]
    trained, before = load_part(checkpoint, "transformer"), load_part(Checkpoint.open("tiny"), "transformer")
    assert step == 6
    for (name, now), was in zip(trained.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, average[f"transformer.{name}"]), name
        assert not torch.equal(now, was) or "lyric" in name or "speaker" in name, name
    tiny = Checkpoint.open("tiny")
    for part in ("autoencoder", "vocoder", "text_encoder"):
        name = next(tiny.folder(part).glob("*.safetensors")).name
        assert (checkpoint.folder(part) / name).read_bytes() == (tiny.folder(part) / name).read_bytes()
    song = ACEStepPipeline.from_pretrained(str(straight / "checkpoint"))(
        prompt="piano", duration=1, num_inference_steps=2, seed=1
    )
    assert song.waveform.isfinite().all()


def test_states_and_metrics_lie_beside_it(straight: Path) -> None:
    assert sorted(path.name for path in (straight / "states").iterdir()) == [
        "state-00000004.pt",
        "state-00000006.pt",
    ]
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"loss", "flow", "gradient_norm", "learning_rate", "songs_per_second"} <= rows[0].keys()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert events.Scalars("loss")[1].value == pytest.approx(rows[1]["loss"])
    progress = json.loads((straight / "progress.json").read_text())
    assert (progress["state"], progress["step"], progress["seconds_left"]) == ("finished", 6, 0)
    assert not list(straight.rglob("*.tmp"))


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes behind a step."""

    class Stopped(job.ShownProgress):
        def show(self, done: int, words: str = "") -> None:
            if done == steps:
                raise KeyboardInterrupt

    monkeypatch.setattr(job, "ShownProgress", Stopped)


@pytest.mark.parametrize(("stop", "damage"), [(1, False), (3, False), (5, False), (5, True)])
def test_started_again_it_ends_with_the_same_bytes(
    data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, damage: bool
) -> None:
    with monkeypatch.context() as patch:
        stop_after(stop, patch)
        with pytest.raises(KeyboardInterrupt):
            run_training(config_of(data), str(tmp_path), local=True)
    if damage:  # The newest state is cut short: the one before it counts.
        newest = sorted((tmp_path / "states").iterdir())[-1]
        newest.write_bytes(newest.read_bytes()[:1000])
    run_training(config_of(data), str(tmp_path), local=True)
    assert weights(tmp_path) == weights(straight)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    run_training(config_of(data), str(tmp_path), local=True)  # Nothing is left to do.
    assert weights(tmp_path) == weights(straight)


def test_output_and_data_may_lie_in_a_store(data: str, straight: Path, tmp_path: Path, moto: S3) -> None:
    import s3fs

    base = f"{moto.url}/{uuid.uuid4().hex}"
    store = s3fs.S3FileSystem(**moto.options, use_listings_cache=False)
    for path in Path(data, "songs").iterdir():
        store.put_file(str(path), f"{base}/data/songs/{path.name}")
    store.pipe_file(f"{base}/data/prepare.json", b"{}")
    config = config_of(f"{base}/data", storage__storage_options=moto.options)
    run_training(config, f"{base}/out", local=True)
    assert store.cat_file(f"{base}/out/{TRANSFORMER}") == weights(straight)
    assert len(store.ls(f"{base}/out/states")) == 2
    assert store.ls(f"{base}/out/tensorboard")
    run_training(config, f"{base}/out", local=True)
    assert store.cat_file(f"{base}/out/{TRANSFORMER}") == weights(straight)


@pytest.mark.parametrize("part", ["autoencoder", "vocoder"])
def test_the_codec_is_trained_from_sound(part: Any, tmp_path: Path) -> None:
    config = config_of(part=part, optimization__steps=2, data__crop_frames=3, saving__export_dtype="bfloat16")
    run_training(config, str(tmp_path), local=True)
    trained = Checkpoint.open(tmp_path / "checkpoint")
    now, before = load_part(trained, part), load_part(Checkpoint.open("tiny"), part)
    changed = [not torch.equal(a.float(), b) for a, b in zip(now.parameters(), before.parameters(), strict=True)]
    assert all(changed)
    assert trained.random_weights  # The transformer still is.


def test_an_adapter_is_trained_and_gone_on_with(data: str, tmp_path: Path) -> None:
    config = config_of(data, part="lora", lora__rank=2, optimization__steps=2, gradient_checkpointing=True)
    assert run_training(config, str(tmp_path), local=True) == f"{tmp_path}/lora"
    adapter = Adapter.load(tmp_path / "lora")
    assert {update.down.shape[0] for update in adapter.updates.values()} == {2}
    assert any(update.up.abs().max() > 0 for update in adapter.updates.values())
    further = config_of(data, part="lora", start__lora=str(tmp_path / "lora"), optimization__steps=1)
    run_training(further, str(tmp_path / "further"), local=True)
    assert Adapter.load(tmp_path / "further" / "lora").updates.keys() == adapter.updates.keys()


def test_the_prompt_encoder_learns_along_and_heads_listen(data: str, tmp_path: Path) -> None:
    config = config_of(
        data,
        train_prompt_encoder=True,
        repa__enabled=True,
        optimization__steps=3,
        saving__export_every_steps=2,
        data__max_frames=8,
        autocast=True,
    )
    run_training(config, str(tmp_path), local=True)
    tiny = Checkpoint.open("tiny")
    name = f"{FOLDERS['text_encoder']}/model.safetensors"
    before = load_file(tiny.path / name)
    early, late = (load_file(tmp_path / folder / name) for folder in ("checkpoint-00000002", "checkpoint"))
    assert any((early[key] != before[key]).any() for key in before)
    assert any((late[key] != early[key]).any() for key in before)
    assert "repa_0" in json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__songs": []}, "needs data"),
        ({"data__songs": ["/nowhere"]}, r"data\.songs: '/nowhere' is not allowed"),
        ({"data__batch_size": 99}, "12 songs in 2 files are fewer than a batch of 99"),
        ({"repa__enabled": True, "repa__depth": 99}, r"repa\.depth: 99 is not allowed"),
        ({"part": "lora", "lora__target_modules": ["to_x"]}, "matches no layer"),
    ],
)
def test_what_cannot_be_trained_is_said(data: str, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(config_of(data, **changes), str(tmp_path), local=True)
    assert not (tmp_path / "states").exists()


def test_options_of_another_part_are_refused() -> None:
    overrides = ["part=vocoder", "train_prompt_encoder=true", "start.lora=x", "gradient_checkpointing=true"]
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.load(None, overrides)
    for name in ("train_prompt_encoder", "start.lora", "gradient_checkpointing"):
        assert f"{name}: " in str(caught.value)


def test_an_output_of_another_training_is_refused(data: str, straight: Path) -> None:
    with pytest.raises(OutputError, match="seed is 1, the training began with 0"):
        run_training(config_of(data, seed=1), str(straight), local=True)
    with pytest.raises(OutputError, match="another network"):
        run_training(config_of(part="autoencoder"), str(straight), local=True)


def test_the_command(data: str, straight: Path, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("optimization: {steps: 6, warmup_steps: 2, learning_rate: 1.0e-3}\nsaving: {every_steps: 2}\n")
    options = ["--config", str(config), "--data", data, "--set", "data.batch_size=4", "--local", "--device", "cpu"]
    result = CliRunner().invoke(main, ["train", "--output", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    assert f"trained: {tmp_path}/out/checkpoint" in result.output
    assert weights(tmp_path / "out") == weights(straight)
    refused = CliRunner().invoke(main, ["train", "--output", str(tmp_path / "other"), "--local"])
    assert refused.exit_code == 2


def ray_workers() -> Iterator[psutil.Process]:
    """The training processes of this session's Ray."""
    for process in psutil.Process().children(recursive=True):
        try:
            if any("RayTrainWorker" in word for word in process.cmdline()):
                yield process
        except psutil.NoSuchProcess:
            pass


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_killed_worker_changes_nothing(data: str, tmp_path: Path) -> None:
    config = config_of(data, optimization__steps=80, saving__every_steps=4, workers__threads=1)
    run_training(config, str(tmp_path / "here"), local=True)
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 240
        states = tmp_path / "ray" / "states"
        while time.monotonic() < deadline and not killed:
            if states.exists() and any(states.iterdir()):
                for process in ray_workers():
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    run_training(config, str(tmp_path / "ray"))
    thread.join()
    assert killed
    rows = [json.loads(line)["step"] for line in (tmp_path / "ray" / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))
    assert rows[-1] == 80
    assert weights(tmp_path / "ray") == weights(tmp_path / "here")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_share_the_batches(data: str, tmp_path: Path) -> None:
    config = config_of(data, optimization__steps=3, workers__count=2, data__batch_size=2, saving__log_every_steps=1)
    run_training(config, str(tmp_path))
    found = TrainingStates(Storage(str(tmp_path)), 2).newest()
    assert found is not None and found[0] == 3
    assert Checkpoint.open(tmp_path / "checkpoint")
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["songs_per_second"] == pytest.approx(4 / row["seconds"], rel=1e-3)


def test_prepared_data_is_found_by_its_record(data: str) -> None:
    from pipelines.training.batches import song_files

    files = song_files(config_of(data))
    assert [Path(file).parent.name for file in files] == ["songs", "songs"]
    assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == 12
    assert song_files(config_of(f"{data}/songs/*.parquet")) == files
