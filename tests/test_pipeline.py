"""`ACEStepPipeline` as a person uses it: the README's lines, several prompts, clear refusals."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import acestep
from acestep import ACEStepPipeline, CheckpointError, GenerationResult, InvalidRequestError
from acestep.errors import AudioFormatError, GenerationError
from acestep.loudness import integrated_loudness, sample_peak

SHORT = {"duration": 1, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe() -> ACEStepPipeline:
    return ACEStepPipeline.from_pretrained("tiny", device="cpu")


def test_one_song_says_all_about_itself(pipe: ACEStepPipeline) -> None:
    result = pipe(prompt="lo-fi hip-hop", duration=2, seed=42)
    assert isinstance(result, GenerationResult)
    assert result.waveform.shape[0] == 2
    assert result.waveform.dtype == torch.float32
    assert result.latents.shape == (8, 16, result.request.num_frames)
    assert (result.sample_rate, result.seed) == (44100, 42)
    assert result.settings["num_inference_steps"] == 27
    assert {"condition", "denoise", "decode"} <= result.timings.keys()
    assert result.model.random_weights
    assert GenerationResult.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_random_weights_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ACEStepPipeline.from_pretrained("tiny", device="cpu")
    assert "random weights" in caplog.text


@pytest.mark.parametrize("extension", ["mp3", "wav", "flac", "ogg", "opus"])
def test_saves_by_extension(pipe: ACEStepPipeline, tmp_path: Path, extension: str) -> None:
    result = pipe(prompt="x", seed=1, **SHORT)
    path = result.save(tmp_path / f"song.{extension}")
    samples, rate = soundfile.read(path, always_2d=True)
    assert samples.shape[1] == 2
    assert len(samples) / rate == pytest.approx(result.duration, abs=0.05)
    assert np.abs(samples).max() > 0.01
    assert [file.name for file in tmp_path.iterdir()] == [f"song.{extension}"]


def test_mp3_is_320_kbps(pipe: ACEStepPipeline, tmp_path: Path) -> None:
    result = pipe(prompt="x", seed=1, duration=5, num_inference_steps=1)
    size = Path(result.save(tmp_path / "song.mp3")).stat().st_size
    assert size * 8 / result.duration == pytest.approx(320_000, rel=0.05)


def test_several_prompts_make_several_songs(pipe: ACEStepPipeline) -> None:
    results = pipe(prompt=["x", "x"], seed=np.int64(7), duration=[1, 2], num_inference_steps=2)
    assert [result.seed for result in results] == [7, 8]
    assert [round(result.duration) for result in results] == [1, 2]
    assert not torch.equal(results[0].waveform, results[1].waveform[:, : results[0].waveform.shape[1]])


def test_what_the_model_does_not_read_of_a_prompt_is_said(pipe: ACEStepPipeline) -> None:
    words = [f"word{index}" for index in range(400)]
    result = pipe(prompt=" ".join(words), seed=1, **SHORT)
    (warning,) = result.warnings
    assert "the model reads 256" in warning
    assert words[-1] in warning
    assert words[0] not in warning


def test_a_song_can_be_made_as_loud_as_asked(pipe: ACEStepPipeline) -> None:
    result = pipe(prompt="x", seed=1, duration=3, num_inference_steps=2)
    quiet = result.normalized("lufs", target_lufs=-30.0)
    assert integrated_loudness(quiet.waveform, quiet.sample_rate) == pytest.approx(-30, abs=0.1)
    assert sample_peak(result.normalized("peak", peak_dbfs=-3.0).waveform) == pytest.approx(-3, abs=0.01)


def test_every_problem_is_named_at_once(pipe: ACEStepPipeline) -> None:
    with pytest.raises(InvalidRequestError) as error:
        pipe(prompt="x", duration=0, num_inference_steps=0, sheduler="euler", seed=-1)
    text = str(error.value)
    assert all(name in text for name in ("duration", "num_inference_steps", "sheduler", "seed", "'scheduler'"))
    assert isinstance(error.value, ValueError)
    with pytest.raises(InvalidRequestError, match=r"\[1\].duration: 1000 .*1 to 240"):
        pipe(prompt=["x", "y"], duration=[1, 1000])
    with pytest.raises(InvalidRequestError, match="one for each prompt"):
        pipe(prompt=["x", "y"], duration=[1])


def test_unknown_format_and_missing_checkpoint(pipe: ACEStepPipeline, tmp_path: Path) -> None:
    result = pipe(prompt="x", seed=1, **SHORT)
    with pytest.raises(AudioFormatError, match="mp3"):
        result.save(tmp_path / "song.mp9")
    with pytest.raises(CheckpointError, match="nowhere"):
        ACEStepPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"float64.*allowed"):
        ACEStepPipeline.from_pretrained("tiny", torch_dtype="float64")


def test_failures_reach_the_caller(pipe: ACEStepPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> object:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("acestep.making.denoise", broken)
    with pytest.raises(GenerationError, match="do not fit") as error:
        pipe(prompt="x", **SHORT)
    assert error.value.error_class == "out_of_memory"


def test_public_names_exist() -> None:
    for name in acestep.__all__:
        assert getattr(acestep, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = acestep.nonsense
