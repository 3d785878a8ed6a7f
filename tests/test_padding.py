"""`Padding` against what the sampling loop masks, and where it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.request import GenerationRequest
from acestep.sampling.noise import BatchNoise
from pipelines.padding import Padding
from pipelines.progress import Counts, Progress
from pipelines.runs import write_run
from pipelines.storage import Storage
from pipelines.summary import Summary


def songs(*durations: float) -> list[GenerationRequest]:
    return [GenerationRequest(prompt="p", duration=duration, seed=0) for duration in durations]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(1.0, 20.0), min_size=1, max_size=5), max_size=4))
def test_it_is_what_the_frame_masks_leave_out(batches: list[list[float]]) -> None:
    padding, padded, computed = Padding(), 0, 0
    for durations in batches:
        batch = songs(*durations)
        padding.count(batch)
        noise = BatchNoise([0] * len(batch), [request.num_frames for request in batch])
        mask = noise.frame_mask()
        computed += noise.draw()[:, 0, 0].numel()
        padded += 0 if mask is None else int((mask == 0).sum())
    assert (padding.padded, padding.computed) == (padded, computed)
    assert padding.share == (padded / computed if computed else 0.0)


def test_an_extended_song_is_as_long_as_it_becomes() -> None:
    padding = Padding()
    song = GenerationRequest(prompt="p", task="extend", source="s.wav", duration=2, extend_right=3, seed=0)
    padding.count([song, *songs(5)])
    assert padding.padded <= 1, "both have 5 s, up to rounding to frames"


def test_a_run_tells_it(tmp_path: Path) -> None:
    storage, summary = Storage(str(tmp_path)), Summary("out", "r", made=1, audio_seconds=1.0)
    assert "padding" not in summary.text()
    summary.padding.add(25, 200)
    assert "; 12.5% of the frames computed was padding" in summary.text()
    Progress(Counts(1, 1.0, padding=summary.padding), storage, "r", lambda: None).close("finished")
    write_run(storage, summary, "finished")
    for key in ("progress.json", "runs/r.json"):
        assert json.loads(storage.get(key))["padding"] == pytest.approx(0.125)
