"""Speeds: what an engine has to do is counted as it does it, and what batches took tells what others will take."""

from __future__ import annotations

import dataclasses
import math
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.frames import num_latent_frames
from acestep.models.transformer import TimeCondition
from acestep.request import GenerationRequest
from acestep.sampling import tasks
from acestep.sampling.denoise import denoise
from acestep.sampling.edit import flow_edit
from acestep.sampling.noise import BatchNoise
from pipelines import layout
from pipelines.config import RunConfig
from pipelines.devices import UNKNOWN, modelled, peak_of, same_device, split_share, with_share
from pipelines.engines import describe_model
from pipelines.errors import StorageError
from pipelines.measured import Measured
from pipelines.speed import SHIPPED, Speed, SpeedKey, SpeedTable
from pipelines.speed_file import MOST_BATCHES, Entry, read_layer
from pipelines.storage import Storage
from pipelines.work import DECODE_TFLOP, FRAME_SECONDS, PASS_TFLOP, Work

KEY = SpeedKey("model", "f1", "NVIDIA H100 80GB HBM3", "bfloat16")
FRAMES = 6
works = st.builds(
    Work, denoise=st.floats(0.01, 1000), decode=st.floats(0.01, 1000), calls=st.integers(1, 400).map(float)
)
observations = st.lists(st.tuples(works, st.floats(0.01, 1000)), min_size=1, max_size=20)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that other tests and this machine's user do not see."""
    monkeypatch.setenv("ACESTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class CountingTransformer:
    """Predicts nothing and counts how often and on how many rows it was asked."""

    def __init__(self) -> None:
        self.calls = self.rows = 0
        self.final_layer = torch.nn.Module()
        self.final_layer.linear = torch.nn.Linear(1, 1)

    def embed_time(self, timesteps: torch.Tensor) -> TimeCondition:
        return TimeCondition(timesteps, timesteps)

    def __call__(self, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.calls += 1
        self.rows += len(latents)
        return torch.zeros_like(latents)


class AnyCondition:
    """Conditions that are the same for all rows."""

    def rows(self, *which: Any) -> AnyCondition:
        return self


def counted(request: GenerationRequest) -> tuple[int, int]:
    """Calls and rows that sampling really makes for one song of `FRAMES` latent frames."""
    request, transformer, condition = request.resolved(), CountingTransformer(), AnyCondition()
    noise = BatchNoise([request.seed or 0], [FRAMES], torch.device("cpu"))
    latents, steps = torch.zeros(1, 8, 16, FRAMES), request.num_inference_steps
    arguments: Any = (transformer, condition)
    if request.task == "edit":
        assert request.edit_n_min is not None and request.edit_n_max is not None and request.edit_n_avg is not None
        flow_edit(
            *(*arguments, condition, latents, noise.draw),
            num_inference_steps=steps,
            guidance_scale=request.guidance_scale if request.is_guided else 1.0,
            n_min=request.edit_n_min,
            n_max=request.edit_n_max,
            n_avg=request.edit_n_avg,
        )
        return transformer.calls, transformer.rows
    start = None
    if request.task == "repaint":
        start = tasks.repaint(latents, latents, latents, range(2), steps, request.variance)
    elif request.task == "audio2audio":
        start = tasks.from_reference(latents, latents, steps, request.reference_strength)
    denoise(*arguments, [request], noise, start=start)
    return transformer.calls, transformer.rows


@st.composite
def requests(draw: st.DrawFn, *, sources: bool = True) -> GenerationRequest:
    """Any request whose cost may be asked for."""
    share = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.77, 1.0])
    values: dict[str, Any] = {
        "prompt": "p",
        "seed": draw(st.integers(0, 5)),
        "duration": draw(st.sampled_from([1.0, 1.5, 3.0, 12.0, 60.0])),
        "num_inference_steps": draw(st.integers(1, 12)),
        "scheduler": draw(st.sampled_from(["euler", "heun", "pingpong"])),
        "guidance_interval": draw(share),
        "guidance_scale": draw(st.sampled_from([0.0, 1.0, 7.0, 15.0])),
        "guidance_scale_text": draw(st.sampled_from([0.0, 3.0])),
        "guidance_scale_lyric": draw(st.sampled_from([0.0, 3.0])),
        "sample_rate": draw(st.sampled_from([44100, 48000])),
    }
    task = draw(st.sampled_from(["text2music", "retake", *(["repaint", "audio2audio", "edit"] if sources else [])]))
    if task in ("repaint", "audio2audio", "edit"):
        values |= {"task": task, "source": draw(st.sampled_from(["a.safetensors", "b.safetensors"]))}
    if task == "repaint":
        values["variance"] = draw(share)
    if task == "audio2audio":
        values["reference_strength"] = draw(share)
    if task == "edit":
        low, high = draw(st.sampled_from([(0.0, 1.0), (0.2, 0.6), (0.0, 0.5), (0.5, 1.0)]))
        values |= {"edit_n_min": low, "edit_n_max": high, "edit_n_avg": draw(st.integers(1, 3)), "target_prompt": "q"}
    if task == "text2music" and draw(st.booleans()):
        values["oss_steps"] = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5, unique=True).map(sorted))
    return GenerationRequest.parse(values)


@given(requests())
def test_the_work_of_a_request_is_what_sampling_does(request: GenerationRequest) -> None:
    work = Work.of([request])
    calls, rows = counted(request)
    assert work.calls == calls
    assert work.denoise == pytest.approx(PASS_TFLOP * rows * request.num_frames)


def test_the_work_of_a_batch_is_padded_but_not_where_it_is_decoded() -> None:
    batch = [GenerationRequest(prompt="p", duration=seconds) for seconds in (10, 30, 20)]
    frames = [request.num_frames for request in batch]
    work = Work.of(batch)
    assert work.denoise == pytest.approx(PASS_TFLOP * 41 * 3 * max(frames))
    assert work.decode == pytest.approx(DECODE_TFLOP * sum(frames))
    assert work.calls == 27
    assert Work.of([]) == Work()
    assert Work.total([work, work]) == work + work == work.times(2)


def test_a_second_of_audio_is_what_the_published_model_needs() -> None:
    work = Work.of([GenerationRequest(prompt="p", duration=240)])
    seconds = num_latent_frames(240) * FRAME_SECONDS
    assert work.denoise / seconds == pytest.approx(1.88)
    assert work.decode / seconds == pytest.approx(0.33)


def test_an_extended_song_costs_what_is_added_too() -> None:
    same: dict[str, Any] = {"prompt": "p", "task": "extend", "source": "a.safetensors", "duration": 10}
    short, long = (GenerationRequest(**same, extend_right=seconds) for seconds in (5, 20))
    assert Work.of([long]).denoise == pytest.approx(Work.of([short]).denoise * (107 + 215) / (107 + 53))


def speed(spread: float = 0.1, doubt: float = 0.05, batches: float = 50, **changes: Any) -> Speed:
    """A speed of one second a TFLOP."""
    return Speed("d", (1.0, 1.0, 0.01), spread, doubt, "basis", batches=batches, evidence=batches, **changes)


@given(observations, works, works)
def test_more_work_never_takes_less(seen: list[tuple[Work, float]], work: Work, more: Work) -> None:
    measured = Measured()
    for each, seconds in seen:
        measured.observe(each, seconds)
    rates = measured.rates()
    assert (rates >= 0).all()
    assert rates @ measured.work == pytest.approx(measured.seconds), "all batches together take what they took"
    fast = Speed("d", (float(rates[0]), float(rates[1]), float(rates[2])), measured.spread(), 0.1, "basis", 1)
    assert fast.seconds(work) <= fast.seconds(work + more) * (1 + 1e-9)


@given(observations, st.randoms(use_true_random=False), st.integers(0, 20))
def test_adding_in_any_order_and_grouping_gives_the_same(
    seen: list[tuple[Work, float]], order: random.Random, cut: int
) -> None:
    one, first, second = Measured(), Measured(), Measured()
    for each in seen:
        one.observe(*each)
    shuffled = order.sample(seen, len(seen))
    for number, each in enumerate(shuffled):
        (first if number < cut else second).observe(*each)
    second.add(first)
    assert second.batches == one.batches
    np.testing.assert_allclose(second.products, one.products)
    np.testing.assert_allclose(second.rates(), one.rates(), rtol=1e-6, atol=1e-9 * one.rates().max())
    assert Measured.from_dict(one.as_dict()).as_dict() == one.as_dict()


def simulated(rng: random.Random, spread: float, count: int) -> list[tuple[Work, float]]:
    """Batches of an engine whose speed is known: 0.01 s a TFLOP denoising, 0.02 decoding, 0.03 a call."""
    done = []
    for _ in range(count):
        steps = rng.choice((10, 27, 60))
        batch = [GenerationRequest(prompt="p", duration=rng.uniform(10, 200), num_inference_steps=steps)] * 4
        work = Work.of(batch[: rng.randint(1, 4)])
        exact = 0.01 * work.denoise + 0.02 * work.decode + 0.03 * work.calls
        done.append((work, exact * math.exp(rng.gauss(0, spread))))
    return done


@pytest.mark.parametrize(
    ("spread", "seen", "share"), [(0.1, 30, 0.95), (0.2, 30, 0.95), (0.3, 60, 0.95), (0.2, 5, 0.8)]
)
def test_an_interval_holds_what_a_known_engine_takes(spread: float, seen: int, share: float) -> None:
    held, cases = 0, 200
    for case in range(cases):
        rng = random.Random(case)
        table = SpeedTable()
        for work, seconds in simulated(rng, spread, seen):
            table.observe(KEY, work, seconds)
        ahead = simulated(rng, spread, 200)
        found = table.find(KEY)
        bounds, _ = found.of_batches(np.array([work.parts for work, _ in ahead]))
        assert bounds.middle == pytest.approx(sum(found.seconds(work) for work, _ in ahead))
        held += bounds.low <= sum(seconds for _, seconds in ahead) <= bounds.high
    assert held >= share * cases


def test_the_parts_of_an_exact_engine_are_found() -> None:
    table = SpeedTable()
    for work, seconds in simulated(random.Random(1), 0.0, 200):
        table.observe(KEY, work, seconds)
    assert table.find(KEY).rates == pytest.approx((0.01, 0.02, 0.03), rel=0.2)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 1000), st.integers(1, 1000))
def test_an_interval_widens_with_spread_and_narrows_with_count(
    spread: float, more: float, doubt: float, batches: int, ahead: int
) -> None:
    bounds = speed(spread, doubt, batches).interval(100.0, ahead)
    assert bounds.low <= bounds.middle == 100.0 <= bounds.high
    assert speed(spread + more, doubt, batches).interval(100.0, ahead).high >= bounds.high
    assert speed(spread, doubt, batches + 1).interval(100.0, ahead).high <= bounds.high
    assert speed(spread, doubt, batches).interval(100.0, ahead + 1).low >= bounds.low


def test_an_interval_is_never_narrower_than_five_percent() -> None:
    table = SpeedTable()
    for _ in range(10_000):
        table.observe(KEY, Work(1.0, 1.0, 1.0), 1.0)
    bounds = table.find(KEY).interval(100.0, 10_000)
    assert bounds.low <= 95 and bounds.high >= 105


def test_a_deadline_allows_for_the_doubt_and_a_minimum() -> None:
    work = Work(100.0, 20.0, 27.0)
    sure, unsure = speed(doubt=0.05), speed(doubt=1.0)
    assert sure.deadline(work, 10, 1) > 10 * sure.seconds(work)
    assert unsure.deadline(work, 10, 1) > sure.deadline(work, 10, 1)
    assert sure.deadline(work, 10, 1e6) == 1e6


def test_what_was_measured_is_found_again_in_the_catalog_and_on_this_machine(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "a"))
    table = SpeedTable.load(storage)
    for work, seconds in simulated(random.Random(2), 0.1, 20):
        table.observe(KEY, work, seconds, songs=4)
    table.observe_load(KEY, 40.0)
    table.observe_load(KEY, 50.0)
    table.observe_file(KEY, "flac-16", 100.0, 9_000_000, 0.5)
    here = table.find(KEY)
    table.save(storage)
    table.save(storage)  # What was written down once is not counted twice.
    for found, words in (
        (SpeedTable.load(storage).find(KEY), "in this catalog"),
        (SpeedTable.load(Storage(str(tmp_path / "b"))).find(KEY), "on this machine"),
        (table.find(KEY), "in this catalog"),
    ):
        assert found.rates == pytest.approx(here.rates)
        assert (found.batches, found.songs, found.load_seconds) == (20, 80, 45.0)
        assert found.files["flac-16"].bytes == 9_000_000
        assert words in found.basis
    assert SpeedTable.load(storage).last_device(describe_model(RunConfig())) is None


def test_what_storage_does_not_take_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: str, data: bytes) -> None:
        raise StorageError("full")

    storage, table = Storage(str(tmp_path)), SpeedTable()
    table.observe(KEY, Work(1.0, 1.0, 1.0), 5.0)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "put", refuse)
        with pytest.raises(StorageError):
            table.save(storage)
    table.observe(KEY, Work(1.0, 1.0, 1.0), 5.0)
    assert table.find(KEY).batches == 2
    table.save(storage)
    assert SpeedTable.load(storage).find(KEY).batches == 2


def test_a_table_is_written_by_one_thread_while_another_measures(tmp_path: Path) -> None:
    storage, table = Storage(str(tmp_path)), SpeedTable()
    end = threading.Event()

    def write() -> None:
        while not end.is_set():
            table.save(storage)

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(500):
        key = dataclasses.replace(KEY, device=f"GPU {number % 50}")
        table.observe(key, Work(1.0, 1.0, 1.0), 5.0)
    end.set()
    writer.join()
    table.save(storage)
    assert sum(entry.measured.batches for entry in read_layer(lambda: storage.get(layout.SPEEDS), "").values()) == 500


def test_other_models_dtypes_and_devices_are_told_apart() -> None:
    table = SpeedTable()
    table.observe(KEY, Work(1.0, 1.0, 1.0), 5.0)
    for other in (
        SpeedKey("other", "f2", KEY.device, KEY.dtype),
        SpeedKey("model", "f1", "NVIDIA L4", KEY.dtype),
        SpeedKey("model", "f1", KEY.device, "float32"),
        SpeedKey("model", "f1", KEY.device, KEY.dtype, cpu_offload=True),
    ):
        assert not table.find(other).is_measured, other
    renamed = table.find(SpeedKey("renamed", "f1", KEY.device, KEY.dtype))
    assert renamed.is_measured and renamed.rates == table.find(KEY).rates
    compiled = table.find(SpeedKey("model", "f1", KEY.device, KEY.dtype, torch_compile=True))
    assert compiled.doubt > table.find(KEY).doubt and "without torch_compile" in compiled.basis


def test_other_numbers_of_cores_and_shares_of_a_gpu_are_scaled_with_doubt() -> None:
    table, key = SpeedTable(), SpeedKey("tiny", "f", "cpu x2", "float32")
    for work, seconds in simulated(random.Random(3), 0.1, 30):
        table.observe(key, work, seconds)
    two, eight = table.find(key), table.find(SpeedKey("tiny", "f", "cpu x8", "float32"))
    assert eight.rates == pytest.approx([rate / 4 for rate in two.rates])
    assert eight.doubt > two.doubt and "of cpu x2" in eight.basis


def test_where_a_speed_is_most_certain_it_is_believed() -> None:
    def layer(count: int, seconds: float) -> dict[SpeedKey, Entry]:
        measured = Measured()
        for _ in range(count):
            measured.observe(Work(1.0, 0.0, 0.0), seconds)
        return {KEY: Entry(measured)}

    for own, machine, shipped, expected in (
        (50, 1000, 1000, "in this catalog"),
        (1, 50, 1000, "on this machine"),
        (1, 1, 1000, "elsewhere"),
        (3, 0, 1000, "elsewhere"),
        (60, 0, 1000, "in this catalog"),
    ):
        table = SpeedTable(layer(own, 1.0), layer(machine, 2.0), layer(shipped, 3.0))
        assert expected in table.find(KEY).basis, (own, machine, shipped)
    for _ in range(50):
        table.observe(KEY, Work(1.0, 0.0, 0.0), 1.0)
    assert "in this catalog on 110 batches" in table.find(KEY).basis


def test_what_is_old_fades() -> None:
    measured = Measured()
    for _ in range(3):
        measured.observe(Work(1.0, 1.0, 1.0), 2.0)
    assert measured.faded(MOST_BATCHES).batches == 3
    assert measured.faded(1).batches == pytest.approx(1)
    assert measured.faded(1).rates() == pytest.approx(measured.rates(), rel=0.1)


def test_two_tables_of_one_job_are_one() -> None:
    one, other, both = SpeedTable(), SpeedTable(), SpeedTable()
    for number, (work, seconds) in enumerate(simulated(random.Random(4), 0.2, 20)):
        (one if number % 2 else other).observe(KEY, work, seconds)
        both.observe(KEY, work, seconds)
    one.merge(other)
    assert one.find(KEY).rates == pytest.approx(both.find(KEY).rates)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 9, "speeds": []}', b'{"format":1,"speeds":[{}]}'])
def test_a_file_that_is_not_ours_is_left_alone(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(str(tmp_path))
    storage.put(layout.SPEEDS, content)
    assert not SpeedTable.load(storage).find(KEY).is_measured
    assert "cannot be read" in caplog.text


def test_the_shipped_table_knows_the_tiny_model_on_a_cpu() -> None:
    layer = read_layer(SHIPPED.read_bytes, "shipped")
    assert layer and all(entry.measured.batches >= 10 and entry.hardware for entry in layer.values())
    config = RunConfig()
    model = describe_model(config)
    for cores in (1, 2, 64):
        found = SpeedTable.load().find(SpeedKey.of(config, model, f"cpu x{cores}"))
        assert found.is_measured
        assert 0.001 < found.seconds(Work.of([GenerationRequest(prompt="p", duration=10)])) < 20
        assert found.interval(1.0, 1e6).high > 1.5, "other machines are not this one"


@pytest.mark.parametrize(
    ("name", "known", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 989),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", "A100", 312),
        ("NVIDIA A10G", "A10G", 70),
        ("NVIDIA L4", "L4", 121),
        ("nvidia l40s", "L40S", 362),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165),
    ],
)
def test_a_device_that_nobody_measured_is_modelled_loudly(name: str, known: str, peak: float) -> None:
    assert peak_of(name) == (known, peak)
    found = SpeedTable().find(SpeedKey("m", "f", name, "bfloat16"))
    assert not found.is_measured
    assert found.basis.startswith("modelled, not measured: 20% of the")
    assert found.basis.endswith("give or take a factor of 2.7")
    assert found.seconds(Work(100.0, 0.0, 27.0)) == pytest.approx(100 / (0.2 * peak))
    bounds = found.interval(1.0, 1e6)
    assert bounds.high / bounds.low == pytest.approx(2.7**2, rel=0.01)


def test_the_less_is_known_the_wider_it_is() -> None:
    known, unknown = modelled("NVIDIA H100", "bfloat16"), modelled(UNKNOWN, "bfloat16")
    assert peak_of(UNKNOWN) is None
    assert unknown.factor > known.factor
    assert modelled("NVIDIA L4", "bfloat16").tflops < unknown.tflops < known.tflops
    assert modelled("NVIDIA H100", "float32").tflops < known.tflops / 4
    assert modelled("NVIDIA H100", "float32").factor > known.factor
    assert modelled("cpu x8", "float32").tflops == pytest.approx(8 * modelled("cpu x1", "float32").tflops)
    assert modelled("mps", "float32").factor > known.factor
    assert modelled("NVIDIA H100 x0.5", "bfloat16").tflops == pytest.approx(known.tflops / 2)


def test_names_of_devices() -> None:
    assert split_share("cpu x2") == ("cpu", 2.0)
    assert split_share("NVIDIA L4 x0.25") == ("NVIDIA L4", 0.25)
    assert split_share("NVIDIA L4") == ("NVIDIA L4", 1.0)
    assert split_share(with_share("NVIDIA L4", 0.5)) == ("NVIDIA L4", 0.5)
    assert with_share("NVIDIA L4", 1.0) == "NVIDIA L4"
    assert same_device("H100", "NVIDIA H100 80GB HBM3")
    assert not same_device("NVIDIA L4", "NVIDIA L40S")
    table = SpeedTable()
    assert table.device_named("H100") == "H100"
    table.observe(KEY, Work(1.0, 1.0, 1.0), 1.0)
    assert table.device_named("h100") == KEY.device


@settings(max_examples=20)
@given(st.floats(0.1, 1.0))
def test_an_engine_on_a_part_of_a_gpu_has_a_key_of_its_own(share: float) -> None:
    config = RunConfig.load(None, [f"resources.num_gpus={share}"])
    key = SpeedKey.of(config, describe_model(RunConfig()), "NVIDIA L4")
    assert split_share(key.device) == ("NVIDIA L4", pytest.approx(share, rel=1e-5))
