"""Estimates: the work of a plan, what it takes on how many GPUs, how many bytes, and when it is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.audio_format import AudioFormat
from acestep.batching import BatchItem, form_batches
from acestep.frames import num_samples
from acestep.request import GenerationRequest
from pipelines import estimate as module
from pipelines import schema
from pipelines.catalog import Catalog
from pipelines.census import take_census
from pipelines.config import RunConfig
from pipelines.errors import ConfigError, UnusableInputError
from pipelines.estimate import BudgetError, Estimate, default_gpus, estimate_work
from pipelines.layout import plan_key
from pipelines.measured import Files
from pipelines.planned_work import COLUMNS, Cut, PlannedWork, work_left, work_of_rows
from pipelines.sizes import bytes_per_second, formats
from pipelines.speed import Range, Speed
from pipelines.storage import Storage
from pipelines.work import FRAME_SECONDS, Work
from tests.test_speed import requests


def plan_of(songs: list[GenerationRequest]) -> pa.Table:
    """Planned rows."""
    rows = [
        {"file": "m", "row": number, "fingerprint": f"f{number}", "num_frames": song.num_frames}
        | schema.request_values(song.model_copy(update={"id": f"s{number}"}))
        for number, song in enumerate(songs, 1)
    ]
    return schema.table_of(rows, schema.PLAN)


def batches_of(songs: list[GenerationRequest], cut: Cut) -> list[list[int]]:
    """As the pipeline cuts them."""
    items = [BatchItem(position, song.num_frames, song.batch_key()) for position, song in enumerate(songs)]
    most = max(1, cut.max_batch_size // cut.candidates)
    return form_batches(items, frame_budget=max(1, cut.frame_budget // cut.candidates), max_batch_size=most)


def exactly(songs: list[GenerationRequest], cut: Cut, missing: list[bool]) -> np.ndarray:
    """Parts of the work of every batch, sorted."""
    left = [[songs[position] for position in batch if missing[position]] for batch in batches_of(songs, cut)]
    works = [Work.of(batch) for batch in left if batch]
    parts = [(cut.candidates * work.denoise, cut.candidates * work.decode, work.calls) for work in works]
    return np.array(sorted(parts)).reshape(-1, 3)


cuts = st.builds(
    Cut, frame_budget=st.integers(1, 2000), max_batch_size=st.integers(1, 5), candidates=st.sampled_from([1, 1, 2, 4])
)


@given(st.lists(st.tuples(requests(), st.booleans()), min_size=1, max_size=25), cuts)
def test_the_work_of_a_plan_is_that_of_its_batches(rows: list[tuple[GenerationRequest, bool]], cut: Cut) -> None:
    songs, missing = [song for song, _ in rows], [left for _, left in rows]
    for left in (missing, [True] * len(rows)):
        work = work_of_rows(plan_of(songs).select(COLUMNS), cut, np.array(left))
        expected = exactly(songs, cut, left)
        np.testing.assert_allclose(np.array(sorted(map(tuple, work.batches))).reshape(-1, 3), expected)
        assert work.songs == sum(left)
        frames = sum(song.num_frames for song, each in zip(songs, left, strict=True) if each)
        assert sum(work.audio_seconds.values()) == pytest.approx(frames * FRAME_SECONDS)


def test_songs_with_an_adapter_or_other_chosen_steps_have_batches_of_their_own() -> None:
    kinds: list[dict[str, Any]] = [{}, {"lora": "a"}, {"lora": "a", "lora_weight": 0.5}, {"lora": "b"}]
    kinds += [{"oss_steps": [1, 5]}, {"oss_steps": [1, 6]}, {"lora_weight": 0.5}]
    songs = [GenerationRequest(prompt="p", duration=5, **kind) for kind in kinds for _ in range(2)]
    cut = Cut(10_000, 16)
    work = work_of_rows(plan_of(songs), cut)
    assert len(work.batches) == 6, "a weight without an adapter says nothing"
    np.testing.assert_allclose(np.array(sorted(map(tuple, work.batches))), exactly(songs, cut, [True] * len(songs)))


def test_only_what_is_missing_counts(tmp_path: Any) -> None:
    storage, songs = Storage(str(tmp_path)), [GenerationRequest(prompt="p", duration=n) for n in range(5, 25)]
    plan = plan_of(songs)
    for bucket in range(2):
        storage.write_table(plan_key(bucket, "plan"), plan.slice(10 * bucket, 10))
    song = {name: plan.column(name).to_pylist() for name in ("id", "fingerprint")}
    done = pa.table({**{name: values[:4] for name, values in song.items()}})
    Catalog(storage).add_songs(0, "run-1", done)
    cut = Cut(10_000, 4)
    states = take_census(storage, "plan", range(2))
    assert [state.missing for state in states] == [6, 10]
    work = work_left(storage, "plan", states, cut)
    first = exactly(songs[:10], cut, [False] * 4 + [True] * 6)
    second = exactly(songs[10:], cut, [True] * 10)
    expected = sorted(map(tuple, np.concatenate([first, second])))
    np.testing.assert_allclose(sorted(map(tuple, work.batches)), expected)
    assert work.songs == 16
    assert work_left(storage, "plan", [], cut).songs == 0


def test_many_rows_are_counted_quickly() -> None:
    import time

    songs = [GenerationRequest(prompt="p", duration=20 + number % 200) for number in range(500)]
    plan = pa.concat_tables([plan_of(songs).select(COLUMNS)] * 200)
    started = time.process_time()
    assert work_of_rows(plan, Cut(16_384, 16)).songs == 100_000
    assert time.process_time() - started < 2


SPEED = Speed(
    *("NVIDIA H100", (0.01, 0.02, 0.005), 0.2, 0.05, "measured somewhere"), batches=100, evidence=100, load_seconds=30.0
)
GUESS = Speed("NVIDIA H100", (0.02, 0.02, 0.0), 0.0, 0.77, "modelled, not measured: by hand")


def planned_work(batches: int = 100, songs: int = 400) -> PlannedWork:
    """Equal batches of 1,000 TFLOP denoising, 100 decoding, 27 calls."""
    return PlannedWork(np.tile([1000.0, 100.0, 27.0], (batches, 1)), songs, {44100: 240.0 * songs})


def estimated(
    *overrides: str, speed: Speed = SPEED, work: PlannedWork | None = None, gpus: tuple[float, ...] = (1,)
) -> Estimate:
    """An estimate on GPUs with a config of `overrides`."""
    config = RunConfig.load(None, ["resources.num_gpus=1", *overrides])
    work = planned_work() if work is None else work
    return estimate_work(config, work, speed, "the model", gpus, rows=500, refused=3, planned=497)


def test_gpu_hours_time_and_cost_follow_from_the_speed() -> None:
    estimate = estimated("budget.price_per_gpu_hour=2", gpus=(1, 8, 1000))
    batch = 0.01 * 1000 + 0.02 * 100 + 0.005 * 27
    assert estimate.gpu_hours.middle == pytest.approx(100 * batch / 3600)
    assert estimate.longest_batch == pytest.approx(batch)
    one, eight, thousand = estimate.runs
    ready = SPEED.load_seconds + module.START_SECONDS
    assert one.seconds.middle == pytest.approx(100 * batch + ready)
    assert eight.seconds.middle == pytest.approx(100 * batch / 8 + 7 / 8 * batch + ready)
    assert thousand.seconds.middle == pytest.approx(batch + 0.99 * batch + ready), "no more engines than batches"
    for run in estimate.runs:
        assert run.seconds.low < run.seconds.middle < run.seconds.high
        assert run.gpu_hours.middle == pytest.approx(run.gpus * run.seconds.middle / 3600)
        assert run.cost == run.gpu_hours.times(2)


def test_engines_on_half_a_gpu_are_twice_as_many() -> None:
    whole, half = estimated(gpus=(4,)), estimated("resources.num_gpus=0.5", gpus=(4,))
    assert (whole.runs[0].engines, half.runs[0].engines) == (4, 8)
    assert half.gpu_hours.middle == pytest.approx(whole.gpu_hours.middle / 2)


@given(st.integers(1, 300), st.integers(1, 300))
def test_more_to_make_and_fewer_gpus_never_end_earlier(batches: int, gpus: int) -> None:
    now = estimated(work=planned_work(batches), gpus=(gpus,))
    more = estimated(work=planned_work(batches + 1), gpus=(gpus,))
    wider = estimated(work=planned_work(batches), gpus=(gpus + 1,))
    assert now.gpu_hours.middle < more.gpu_hours.middle
    assert now.runs[0].seconds.middle <= more.runs[0].seconds.middle + 1e-6
    assert wider.runs[0].seconds.middle <= now.runs[0].seconds.middle + 1e-6


def test_nothing_to_make_takes_and_costs_nothing() -> None:
    estimate = estimated("budget.price_per_gpu_hour=2", "budget.max_cost=0", work=PlannedWork())
    assert estimate.runs[0].seconds.high == estimate.runs[0].gpu_hours.high == 0
    estimate.refuse_over(RunConfig.load(None, ["budget={price_per_gpu_hour: 2, max_cost: 0}"]).budget)
    assert estimate.text() == "songs      0 to make of 497 planned (500 rows, 3 refused)"


def test_the_text_says_everything_on_lines_that_line_up() -> None:
    text = estimated("budget.price_per_gpu_hour=2", "keep_latents=true", gpus=(1, 64)).text()
    lines = text.splitlines()
    assert lines[0] == "songs      400 to make of 497 planned (500 rows, 3 refused), 26 h 40 min of audio, 100 batches"
    assert lines[1] == "speed      the model on NVIDIA H100: measured somewhere"
    assert lines[2].startswith("work       0.337 (0.")
    assert "GB) flac-16, 529 MB latents beside it" in text
    assert "17 GB wav-16, 3.8 GB mp3-320" in text
    heading, one, many, last = lines[-4:]
    assert heading.split() == ["GPUs", "time", "left", "GPU-hours", "held", "cost"]
    for cell in ("20 min 50 s (", "0.347 (", "0.694 ("):
        assert cell in one
    assert one.index("20 min") == heading.index("time") == many.index("1 min")
    assert last == "In four of five cases the truth lies between the numbers in brackets."


def test_a_guess_says_so() -> None:
    assert "modelled, not measured" in estimated(speed=GUESS).text()


def test_json_holds_what_the_text_says() -> None:
    values = json.loads(json.dumps(estimated("budget.price_per_gpu_hour=2", gpus=(1, 8)).as_dict(), allow_nan=False))
    assert values["to_make"] == 400 and values["audio_seconds"] == 96_000
    assert values["speed"]["basis"] == "measured somewhere" and values["speed"]["batches"] == 100
    assert [run["gpus"] for run in values["runs"]] == [1, 8]
    assert values["runs"][0]["cost"]["middle"] == pytest.approx(2 * values["runs"][0]["gpu_hours"]["middle"])
    assert set(values["bytes"]) == {"flac-16", "wav-16", "mp3-320", "ogg-0.7", "opus-0.4"}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("{max_hours: 0.34}", "to run 0.347 (0.318 to 0.383) hours on 1 GPU, and may run 0.34 (budget.max_hours"),
        ("{max_hours: 0.2}", "may run 0.2, which even the low end of the estimate is over (budget.max_hours"),
        ("{price_per_gpu_hour: 2, max_cost: 0.69}", "to cost 0.694 (0.636 to 0.766) on 1 GPU, and may cost 0.69 (bud"),
        ("{price_per_gpu_hour: 2, max_cost: 0}", "may cost 0, which even the low end of the estimate is over (bud"),
    ],
)
def test_a_job_over_its_budget_is_refused_with_both_numbers(limits: str, expected: str) -> None:
    config = RunConfig.load(None, [f"budget={limits}"])
    estimate = estimated(f"budget={limits}")
    with pytest.raises(BudgetError) as caught:
        estimate.refuse_over(config.budget)
    assert expected in str(caught.value)
    assert "raise the limit" in str(caught.value)
    assert isinstance(caught.value, UnusableInputError) and caught.value.error_class == "input"
    with pytest.raises(BudgetError, match="the speed is modelled, not measured"):
        estimated(f"budget={limits}", speed=GUESS).refuse_over(config.budget)


def test_one_number_of_gpus_within_the_budget_is_enough() -> None:
    limits = "budget={price_per_gpu_hour: 2, max_hours: 0.05, max_cost: 10}"
    budget = RunConfig.load(None, [limits]).budget
    estimated(limits, gpus=(1, 64)).refuse_over(budget)
    with pytest.raises(BudgetError, match=r"on 1 GPU, .*on 2 GPUs"):
        estimated(limits, gpus=(1, 2)).refuse_over(budget)
    estimated(limits, gpus=(1,)).refuse_over(RunConfig().budget)


def test_a_cost_needs_a_price() -> None:
    with pytest.raises(ConfigError, match=r"budget.max_cost: 5.0 is not allowed; it needs budget.price_per_gpu_hour"):
        RunConfig.load(None, ["budget.max_cost=5"])


def test_how_many_gpus_there_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(*overrides: str) -> list[float]:
        return default_gpus(RunConfig.load(None, list(overrides)))

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(module, "local_gpus", lambda: ["NVIDIA L4"] * 4)
    assert known() == known("resources.num_actors=1") == [1]
    assert known("resources.num_gpus=1") == known("resources.num_gpus=0.5") == [4]
    assert known("resources.num_gpus=0.5", "resources.num_actors=3") == [1.5]
    assert known("resources.num_gpus=1", "resources.num_actors=3", "resources.max_actors=7") == [7]
    assert known("resources.num_gpus=1", "ray.address=auto") == [1, 8, 64]
    monkeypatch.setattr(module, "local_gpus", list)
    assert known("resources.num_gpus=1") == [1, 8, 64]


@pytest.mark.parametrize(
    "options",
    [
        *({"format": "wav", "bit_depth": depth} for depth in (16, 24, 32)),
        *({"format": "flac", "bit_depth": depth} for depth in (16, 24)),
        *({"format": "mp3", "bitrate_kbps": rate} for rate in (64, 128, 320)),
        *({"format": "ogg", "quality": quality} for quality in (0.0, 0.4, 0.7, 1.0)),
        *({"format": "opus", "quality": quality} for quality in (0.2, 0.4, 1.0)),
    ],
)
@pytest.mark.parametrize("sample_rate", [44100, 48000])
def test_files_become_as_large_as_said(options: dict[str, Any], sample_rate: int) -> None:
    from acestep.audio import encode_audio

    audio = AudioFormat.parse(**options)
    count = num_samples(20, sample_rate)
    times = np.arange(count) / sample_rate
    noise = np.random.default_rng(0).standard_normal((2, count)) * 0.02
    chords = sum(np.sin(2 * np.pi * pitch * times) * np.exp(-4 * (times % 0.5)) for pitch in (220, 277, 330, 440)) / 8
    data = encode_audio((chords + noise).astype(np.float32), sample_rate, audio, {})
    bounds = bytes_per_second(audio, sample_rate)
    size = len(data) / (count / sample_rate)
    assert 0.97 * bounds.low <= size <= 1.03 * bounds.high
    if bounds.low == bounds.high:
        assert size == pytest.approx(bounds.middle, rel=0.01)


def test_what_was_measured_of_files_goes_before_what_is_believed() -> None:
    flac, mp3 = AudioFormat.parse(format="flac"), AudioFormat.parse(format="mp3")
    files = {"flac-16": Files(50, 1000.0, 150_000_000, 4.0), "mp3-320": Files(50, 1000.0, 1, 4.0)}
    assert bytes_per_second(flac, 44100, files).middle == 150_000
    assert bytes_per_second(flac, 44100, {"flac-16": Files(2, 40.0, 1, 4.0)}).middle != 1
    assert bytes_per_second(mp3, 44100, files).middle == 40_000, "constant"
    measured = Speed("d", (0.01, 0.01, 0.0), 0.1, 0.05, "basis", batches=9, files=files)
    estimate = estimated(speed=measured)
    assert estimate.bytes["flac-16"].middle == pytest.approx(150_000 * 96_000)
    assert estimate.encode_hours == pytest.approx(0.004 * 96_000 / 3600)
    assert "encoding   0.107 CPU-hours" in estimate.text()
    assert [each.rendition for each in formats(mp3)] == ["mp3-320", "wav-16", "flac-16", "ogg-0.7", "opus-0.4"]


def test_ranges() -> None:
    ranges = [Range(1.0, 2.0, 3.0), Range(1.0, 1.0, 4.0), Range.exactly(5.0)]
    assert Range.total(ranges) == Range(7.0, 8.0, 12.0)
    assert Range.total([]) == Range.exactly(0.0)
    assert ranges[0].times(2).plus(ranges[1]) == Range(3.0, 5.0, 10.0)
    assert math.isclose(PlannedWork.total([planned_work(2), planned_work(3)]).batches.sum(), 5 * 1127)
