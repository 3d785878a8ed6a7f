"""`acestep song`: one prompt to one file, with every setting of a request as an option."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from click.testing import CliRunner, Result

from acestep.request import GenerationRequest
from jobs.song import command

QUICK = ["--duration", "1.5", "--num-inference-steps", "2", "--seed", "3", "--device", "cpu"]


def song(*words: str) -> Result:
    return CliRunner().invoke(command, list(words), catch_exceptions=False)


def test_a_song_lands_in_a_file_and_says_how_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "song.flac"
    result = song("bossa nova", "-o", str(path), "--lyrics", "[verse]\\nla la", *QUICK)
    assert result.exit_code == 0, result.output
    samples, rate = soundfile.read(path, always_2d=True)
    assert (samples.shape[1], rate) == (2, 44100)
    assert "seed 3, model tiny (random weights: noise, not music)" in result.output
    again = tmp_path / "again.flac"
    song("bossa nova", "-o", str(again), "--lyrics", "[verse]\\nla la", *QUICK)
    assert again.read_bytes() == path.read_bytes()


def test_tasks_and_alpha_are_options_too(tmp_path: Path) -> None:
    first, second = tmp_path / "first.wav", tmp_path / "second.wav"
    assert song("piano", "-o", str(first), *QUICK).exit_code == 0
    assert song("piano", "-o", str(second), "--task", "retake", "--alpha", "0.9", *QUICK).exit_code == 0
    assert first.read_bytes() != second.read_bytes()
    result = song("drums", "-o", str(second), "--task", "repaint", "--source", str(first), *QUICK[2:])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--duration", "0", "--scheduler", "eulr"], ["duration: '0' is not allowed", "did you mean 'euler'?"]),
        (["-o", "song.mp9"], ["mp9"]),
        (["--checkpoint", "/nowhere/at/all"], ["/nowhere/at/all", "does not exist"]),
        (["--device", "warp"], ["device: 'warp' is not allowed"]),
        (["--task", "repaint"], ["the task repaint needs one"]),
    ],
)
def test_what_cannot_be_is_said_without_a_traceback(tmp_path: Path, words: list[str], said: list[str]) -> None:
    output = [] if "-o" in words else ["-o", str(tmp_path / "song.wav")]
    result = song("x", *output, *words)
    assert result.exit_code == 2
    assert all(part in result.output for part in said), result.output
    assert not list(tmp_path.iterdir())


def test_every_setting_is_an_option() -> None:
    names = {parameter.name for parameter in command.params}
    assert set(GenerationRequest.model_fields) - {"id"} <= names
