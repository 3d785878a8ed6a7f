"""`acestep evaluate`, with the built-in model and few, short songs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from click.testing import CliRunner, Result

from jobs.cli import COMMANDS
from jobs.evaluate import MISSED, command

QUICK = ["--prompts", "2", "--steps", "2", "--duration", "4", "--device", "cpu"]


def evaluate(*words: str) -> Result:
    return CliRunner().invoke(command, list(words), catch_exceptions=False)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    result = evaluate(*QUICK, "--tasks", "--output", str(folder))
    assert result.exit_code == 0, result.output
    (folder / "console.txt").write_text(result.output)
    return folder


def test_the_report_says_what_was_made_and_found(output: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    assert (report["model"], report["prompts"], report["steps"], report["duration"]) == ("tiny", 2, 2, 4.0)
    shares = {share["name"]: share for share in report["shares"]}
    assert shares["tempo"]["goal"] == shares["key"]["goal"] == shares["instrument"]["goal"] == 0.8
    assert shares["same seed, same sha256"]["share"] == shares["other seed, other song"]["share"] == 1
    assert shares["repaint keeps the rest"]["share"] == shares["extend keeps the source"]["share"] == 1
    assert report["comparisons"][0]["name"] == "guidance scale"
    assert report["round_trip"]["log_mel_error"] > 0
    assert report["speed"]["seconds"] > 0


def test_every_song_is_a_row_and_a_file(output: Path) -> None:
    rows = [json.loads(line) for line in (output / "songs.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        samples, rate = soundfile.read(output / "audio" / f"{row['id']}.mp3", always_2d=True)
        assert rate == 44100 and samples.shape[1] == 2 and row["failure"] is None


def test_there_is_a_page_with_pictures(output: Path) -> None:
    text = (output / "index.html").read_text()
    assert text.count("<audio") == 2 and "spectrograms.png" in text
    assert (output / "spectrograms.png").read_bytes()[:4] == b"\x89PNG"


def test_the_console_gets_a_table(output: Path) -> None:
    text = (output / "console.txt").read_text()
    for words in (
        "by chance",
        "instrument",
        "80%",
        "codec: log-mel error",
        "speed: 30 s of music in 2 steps",
        "index.html",
    ):
        assert words in text, words


def test_strict_fails_where_a_goal_is_missed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jobs.evaluate

    class Missed:
        met = False

    monkeypatch.setattr(jobs.evaluate, "_evaluate", lambda engine, plan, output: Missed())
    assert evaluate(*QUICK).exit_code == 0
    assert evaluate(*QUICK, "--strict").exit_code == MISSED


@pytest.mark.parametrize(
    ("words", "said"), [(["--checkpoint", "/nowhere/at/all"], "does not exist"), (["--device", "warp"], "warp")]
)
def test_what_cannot_be_is_said_without_a_traceback(tmp_path: Path, words: list[str], said: str) -> None:
    result = evaluate(*QUICK, "--output", str(tmp_path / "out"), *words)
    assert result.exit_code == 2 and said in result.output
    assert not (tmp_path / "out").exists()


def test_the_command_is_listed() -> None:
    assert "evaluate" in COMMANDS
