"""`acestep weights`: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from acestep.checkpoint import Checkpoint
from acestep.tiny import tiny_checkpoint
from jobs.weights import command

WEIGHTS = "music_vocoder/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = Path(shutil.copytree(tiny_checkpoint(), tmp_path / "small"))
    monkeypatch.setenv("ACESTEP_CACHE", str(tmp_path / "cache"))
    return copy


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("check", [False, True])
def test_a_good_checkpoint_is_described(folder: Path, check: bool) -> None:
    result = run(folder, *(["--check"] if check else []))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"small: {folder}"
    rows = {line.split("  ")[0]: line for line in lines[2:7]}
    assert list(rows) == ["part", "transformer", "autoencoder", "vocoder", "text encoder"]
    assert "ace_step_transformer" in rows["transformer"]
    assert "F32" in rows["vocoder"]
    assert all(line.endswith("fits" if check else "whole") for name, line in rows.items() if name != "part")
    assert f"{folder / 'vocab.json'} (in the checkpoint)" in result.output
    assert Checkpoint.open(folder).fingerprint("bfloat16") in result.output
    assert "never trained" in result.output


def test_tiny_is_fine() -> None:
    assert run("tiny", "--check").exit_code == 0


def test_check_lists_every_tensor_that_does_not_fit(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["head.conv_post.bias"]
    tensors |= {"extra": torch.zeros(2), "backbone.norm.weight": torch.zeros(3)}
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / WEIGHTS)
    assert run(folder).exit_code == 0
    result = run(folder, "--check")
    assert result.exit_code == 2
    assert "BF16" in result.output
    for words in (
        "3 problems",
        "music_vocoder:",
        "missing (1): head.conv_post.bias [1]",
        "unexpected (1): extra [2]",
        "of another shape (1): backbone.norm.weight [3], the model has [48]",
    ):
        assert words in result.output


def test_check_compares_checksums(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert run(folder, "--to", copy).exit_code == 0
    assert run(copy, "--check").exit_code == 0
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    result = run(copy, "--check")
    assert result.exit_code == 2
    assert f"{WEIGHTS}: not what SHA256SUMS says" in result.output


def test_a_copy_is_complete_and_the_same_model(folder: Path, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary.json"
    (folder / "vocab.json").rename(vocabulary)
    (folder / "README.md").write_text("not needed")
    copy = tmp_path / "new" / "copy"
    result = run(folder, "--vocab", vocabulary, "--to", copy)
    assert result.exit_code == 0, result.output
    assert f"{vocabulary} (given)" in result.output
    original = Checkpoint.open(folder, lyric_vocab=str(vocabulary))
    assert Checkpoint.open(copy).fingerprint("float32") == original.fingerprint("float32")
    assert not (copy / "README.md").exists()
    assert run(copy, "--to", copy).exit_code == 2


def test_without_a_vocabulary_the_rest_is_still_described(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "vocab.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run(folder)
    assert result.exit_code == 2
    assert "ace_step_transformer" in result.output
    assert "no lyric vocabulary. Tried:" in result.output


@pytest.mark.parametrize("source", ["/nowhere", "./nowhere", "nostore://bucket/x"])
def test_a_problem_is_one_message_without_a_traceback(source: str) -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.weights", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("acestep weights: ")
    assert "Traceback" not in done.stderr
    assert source in done.stderr


def test_help_needs_neither_torch_nor_the_library() -> None:
    code = "import sys, jobs.weights; print('torch' in sys.modules, 'acestep' in sys.modules, 'fsspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False", "False"]
