"""The checkpoint that a small model begins with, and the first part of its vocoder's training as a job."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from acestep.checkpoint import FOLDERS, Checkpoint
from acestep.loading import load_part
from acestep.models.vocoder import Vocoder
from acestep.tokens import RequestTokenizer
from acestep.training.export import write_part
from acestep.training.first_checkpoint import CONFIGS, write_first_checkpoint
from pipelines.errors import ConfigError
from pipelines.storage import Storage
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import Worker, train

FRAMES = ("part=vocoder", "codec.frames=true", "data.batch_size=2", "data.crop_frames=8", "optimization.steps=2")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_first_checkpoint(tmp_path_factory.mktemp("first")))


def test_it_is_complete_and_twice_the_same(first: Checkpoint, tmp_path: Path) -> None:
    again = Checkpoint.open(write_first_checkpoint(tmp_path))
    assert again.fingerprint("float32") == first.fingerprint("float32")
    assert first.random_weights
    for part in FOLDERS:
        load_part(first, part)
    assert RequestTokenizer.from_checkpoint(first) is not None


def test_it_fits_in_20_megabytes_in_half_precision(first: Checkpoint) -> None:
    weights = sum(path.stat().st_size for path in first.files().values() if path.suffix == ".safetensors")
    others = sum(path.stat().st_size for path in first.files().values() if path.suffix != ".safetensors")
    assert weights / 2 + others < 20e6


def test_writing_it_does_not_touch_the_callers_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    write_first_checkpoint(tmp_path)
    assert torch.equal(torch.rand(3), expected)


@torch.no_grad()
def test_the_vocoder_is_quiet_before_it_was_trained_and_whole_after_writing(first: Checkpoint, tmp_path: Path) -> None:
    vocoder = load_part(first, "vocoder")
    assert isinstance(vocoder, Vocoder)
    mel = torch.randn(1, 128, 24)
    before = vocoder(mel)
    write_part(tmp_path, "vocoder", CONFIGS["vocoder"], vocoder.state_dict())
    stored = load_file(tmp_path / FOLDERS["vocoder"] / "diffusion_pytorch_model.safetensors")
    assert "head.conv_pre.weight_g" in stored and "head.conv_pre.weight" not in stored
    again = write_first_checkpoint(tmp_path / "whole")
    write_part(again, "vocoder", CONFIGS["vocoder"], vocoder.state_dict())
    assert torch.allclose(load_part(Checkpoint.open(again), "vocoder")(mel), before, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda state: {k: v for k, v in state.items() if k != "head.conv_pre.bias"}, "conv_pre.bias .* is missing"),
        (lambda state: state | {"head.conv_pre.bias": torch.zeros(3)}, r"is \[3\], the network has \[512\]"),
        (lambda state: state | {"tail.weight": torch.zeros(3)}, "has no tail.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(first: Checkpoint, tmp_path: Path, tensors, words: str) -> None:
    state = load_part(first, "vocoder").state_dict()
    with pytest.raises(ValueError, match=words):
        write_part(tmp_path, "vocoder", CONFIGS["vocoder"], tensors(state))


def test_the_vocoders_frames_are_trained_and_folded_into_a_checkpoint(first: Checkpoint, tmp_path: Path) -> None:
    config = TrainingConfig.load(None, [*FRAMES, f"start.checkpoint={first.path}"])
    train(config, Storage(str(tmp_path)), Worker())
    made = Checkpoint.open(tmp_path / "checkpoint")
    old, new = load_part(first, "vocoder").state_dict(), load_part(made, "vocoder").state_dict()
    changed = {name.rpartition(".")[0] for name in old if not torch.allclose(old[name], new[name], atol=1e-6)}
    assert "head.conv_pre" in changed and any(name.startswith("backbone.") for name in changed)
    assert not any(name.startswith(("head.ups", "head.resblocks", "head.conv_post")) for name in changed)
    half = new["head.conv_pre.weight"].shape[0] // 2
    assert torch.allclose(new["head.conv_pre.weight"][:half], -new["head.conv_pre.weight"][half:], atol=1e-6)


def test_frames_need_a_vocoder_that_has_room_for_samples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"codec.frames: upsample_initial_channel must be hop_length 512"):
        train(TrainingConfig.load(None, FRAMES), Storage(str(tmp_path)), Worker())
    with pytest.raises(ConfigError, match=r"codec.frames.*it is for part vocoder"):
        TrainingConfig.load(None, ["part=autoencoder", "codec.frames=true"])
