"""Progress and the summary: what a person, a log and a program are told."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from pipelines import progress as progress_module
from pipelines.progress import Counts, Progress
from pipelines.quantities import duration_text
from pipelines.storage import Storage
from pipelines.summary import Summary, Times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (3.6e6, "1,000 h 00 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_log_gets_lines_and_the_output_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("LOG_SECONDS", "FILE_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(progress_module, name, 0.02)
    storage, ticks = Storage(str(tmp_path)), []
    with caplog.at_level(logging.INFO):
        progress = Progress(Counts(10, 100.0), storage, "run", lambda: ticks.append(1))
        for number in range(5):
            if number:
                progress.made(10.0, 9.9)
            else:
                progress.failed("internal", 10.0)
        time.sleep(0.2)
        running = json.loads(storage.get("progress.json"))
        progress.close("finished")
    assert (running["state"], running["songs_made"], running["songs_failed"]) == ("running", 4, 1)
    assert running["seconds_left"] is not None
    assert running["failures"] == {"internal": 1}
    assert running["audio_seconds"] == pytest.approx(4 * 9.9)
    assert running["audio_seconds_left"] == 50.0
    assert json.loads(storage.get("progress.json"))["state"] == "finished"
    assert ticks
    assert "4 of 10 songs, 1 failed" in caplog.text
    assert "left" in caplog.text


def test_the_summary_says_what_happened_and_how_it_ends() -> None:
    summary = Summary("/out", "run", planned=10, already=3, made=5, audio_seconds=150.0, engines=2, rejected=1)
    summary.times = Times(execution=30.0, generate=40.0, wait=20.0, total=60.0)
    assert summary.exit_code == 0
    assert "5 songs made (3 were there already), 2 min 30 s of audio" in summary.text()
    assert "5.0 times real time with 2 engines" in summary.text()
    assert "or 67%" in summary.text()
    for number in range(5):
        summary.failed.add("internal", f"'s{number}'", "why")
    text = summary.text()
    assert summary.exit_code == 3
    assert "5 failed:" in text
    assert text.count("why") == 3
    assert "the rest is in /out/failed/" in text
    summary.stopped = "the store is gone"
    assert summary.exit_code == 4
    summary.signal, summary.stopped = 15, "SIGTERM"
    assert summary.exit_code == 143
    assert "stopped early: SIGTERM" in summary.text()
