"""The engine: batches equal singles, failures stay with their request, memory and device errors do what they must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from acestep.conditioning import encode_condition
from acestep.engine import Engine
from acestep.errors import CancelledError, DeviceError
from acestep.frames import num_samples
from acestep.request import GenerationRequest
from acestep.resample import resample
from acestep.result import GenerationFailure, GenerationResult
from tests.golden import TOLERANCE, relative_error

LYRICS = "[verse]\nOne light, two lights\nthree in the harbour\n\n[chorus]\nHold on"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("tiny", device="cpu")


@pytest.fixture(autouse=True)
def _keep_budget(engine: Engine) -> Iterator[None]:
    budget = engine.frame_budget
    yield
    engine.frame_budget = budget


def request(seed: int = 1, **settings: object) -> GenerationRequest:
    values = {"prompt": "piano, calm", "duration": 1.5, "num_inference_steps": 4, "seed": seed} | settings
    return GenerationRequest.parse(values)


def songs(outcomes: list) -> list[GenerationResult]:
    assert all(isinstance(outcome, GenerationResult) for outcome in outcomes), outcomes
    return outcomes


def test_a_mixed_batch_equals_its_songs_alone(engine: Engine) -> None:
    requests = [
        request(1, lyrics=LYRICS, duration=3),
        request(2, prompt="a much longer prompt, with drums and bass and a choir", guidance_scale=5),
        request(3, duration=1, lyrics="", omega_scale=2),
    ]
    together = songs(engine.generate(requests))
    assert {song.batch_size for song in together} == {3}
    for asked, song in zip(requests, together, strict=True):
        alone = songs(engine.generate([asked]))[0]
        assert relative_error(song.latents, alone.latents) <= TOLERANCE
        assert relative_error(song.waveform, alone.waveform) <= TOLERANCE


def test_the_same_call_gives_the_same_bits(engine: Engine) -> None:
    requests = [request(seed, lyrics=LYRICS) for seed in (1, 2)]
    first, second = (songs(engine.generate(requests)) for _ in range(2))
    assert all(torch.equal(a.waveform, b.waveform) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("sample_rate", [44100, 48000])
@pytest.mark.parametrize("duration", [1, 2.3, 7.77])
def test_length_is_the_request_to_one_latent_frame(engine: Engine, duration: float, sample_rate: int) -> None:
    song = songs(engine.generate([request(duration=duration, sample_rate=sample_rate)]))[0]
    assert song.waveform.shape == (2, num_samples(duration, sample_rate))
    assert 0 <= duration - song.duration <= 4096 / 44100 + 1e-6
    assert song.waveform.abs().max() > 0.01, "silence"


def test_the_resampler_of_the_original_is_a_choice(engine: Engine) -> None:
    kinds = ((44100, "kaiser"), (48000, "upstream"), (48000, "kaiser"))
    native, upstream, better = (
        songs(engine.generate([request(1, sample_rate=rate, resampler=kernel)]))[0] for rate, kernel in kinds
    )
    assert torch.equal(upstream.waveform, resample(native.waveform, 44100, 48000, "upstream"))
    assert not torch.equal(upstream.waveform, better.waveform)


def test_requests_that_cannot_share_a_pass_do_not(engine: Engine) -> None:
    outcomes = engine.generate(
        [request(1), request(2, num_inference_steps=3), request(3, scheduler="heun"), request(4)]
    )
    assert [song.batch_size for song in songs(outcomes)] == [2, 1, 1, 2]
    assert [song.seed for song in songs(outcomes)] == [1, 2, 3, 4]


def test_a_missing_seed_is_drawn_and_told(engine: Engine) -> None:
    song = songs(engine.generate([GenerationRequest(prompt="x", duration=1, num_inference_steps=1)]))[0]
    again = songs(engine.generate([song.request]))[0]
    assert torch.equal(song.waveform, again.waveform)


def test_out_of_memory_halves_and_remembers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def tight(*args: object) -> object:
        requests = args[2]
        assert isinstance(requests, list)
        sizes.append(len(requests))
        if len(requests) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode_condition(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("acestep.making.encode_condition", tight)
    outcomes = engine.generate([request(seed) for seed in range(1, 9)])
    assert [song.seed for song in songs(outcomes)] == list(range(1, 9))
    assert sizes[:3] == [8, 4, 2]
    assert engine.frame_budget == 2 * request().num_frames
    sizes.clear()
    engine.generate([request(seed) for seed in range(4)])
    assert sizes == [2, 2], "the budget was forgotten"


def test_one_song_that_cannot_fit_fails_as_such(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("acestep.making.denoise", never)
    outcome = engine.generate([request()])[0]
    assert isinstance(outcome, GenerationFailure)
    assert outcome.error_class == "out_of_memory"


def test_batch_mates_of_a_failing_request_are_finished(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def brittle(*args: object) -> object:
        if any(item.prompt == "poison" for item in args[2]):  # type: ignore[attr-defined]
            raise RuntimeError("no such chord")
        return encode_condition(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("acestep.making.encode_condition", brittle)
    outcomes = engine.generate([request(1), request(2, prompt="poison"), request(3)])
    assert isinstance(outcomes[1], GenerationFailure)
    assert (outcomes[1].error_class, outcomes[1].message) == ("internal", "RuntimeError: no such chord")
    assert [song.seed for song in songs([outcomes[0], outcomes[2]])] == [1, 3]


def test_audio_that_is_not_finite_is_a_quality_failure(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine.networks.codec.decode

    def corrupt(latents: torch.Tensor) -> torch.Tensor:
        waveform = decode(latents)
        return waveform * np.nan if latents.shape[-1] == request(duration=2).num_frames else waveform

    monkeypatch.setattr(engine.networks.codec, "decode", corrupt)
    good, bad = engine.generate([request(1), request(2, duration=2)])
    assert isinstance(good, GenerationResult)
    assert isinstance(bad, GenerationFailure)
    assert bad.error_class == "quality"


def test_a_broken_device_ends_the_call(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> object:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("acestep.making.denoise", broken)
    with pytest.raises(DeviceError, match="device-side assert"):
        engine.generate([request(1), request(2)])


def test_callback_counts_steps_and_can_cancel(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    engine.generate([request(num_inference_steps=5)], callback=lambda done, total: seen.append((done, total)))
    assert seen == [(step, 5) for step in range(1, 6)]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        engine.generate([request(1), request(2)], callback=stop)


def test_warm_up_reports_its_time(engine: Engine) -> None:
    assert engine.warm_up() > 0


def test_adapters_are_switched_per_request_and_the_base_comes_back(engine: Engine, tmp_path: Path) -> None:
    transformer = engine.networks.transformer
    weight = transformer.transformer_blocks[0].attn.to_q.weight
    generator = torch.Generator().manual_seed(3)
    sides = {"lora_A": torch.randn(4, weight.shape[1], generator=generator), "lora_B": torch.randn(weight.shape[0], 4)}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({f"transformer_blocks.0.attn.to_q.{side}.weight": value for side, value in sides.items()}, path)
    plain, adapted, again = songs(engine.generate([request(1), request(1, lora=str(path)), request(1)]))
    assert not torch.equal(plain.waveform, adapted.waveform)
    assert torch.equal(plain.waveform, again.waveform)
    assert (plain.batch_size, adapted.batch_size) == (2, 1)
    missing = engine.generate([request(1, lora=str(tmp_path / "none")), request(2)])
    assert isinstance(missing[0], GenerationFailure)
    assert missing[0].error_class == "input"
    assert isinstance(missing[1], GenerationResult)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_song() -> None:
    plain, compiled = (Engine.load("tiny", device="cpu", torch_compile=compile) for compile in (False, True))
    requests = [request(1, lyrics=LYRICS), request(2, duration=1)]
    for eager, fast in zip(plain.generate(requests), songs(compiled.generate(requests)), strict=True):
        assert relative_error(fast.latents, songs([eager])[0].latents) <= TOLERANCE
