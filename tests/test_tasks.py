"""Variations, repaint, extend, edit and audio2audio on the tiny model: what is kept is kept, what is new is new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from acestep import ACEStepPipeline, GenerationResult, InvalidRequestError
from acestep.audio import save_audio
from acestep.errors import GenerationError
from acestep.frames import SAMPLES_PER_FRAME, num_latent_frames
from acestep.request import GenerationRequest
from acestep.task_fields import variance_of_alpha
from acestep.tasks import BLEND_SAMPLES

FEW = {"num_inference_steps": 4, "seed": 5}


@pytest.fixture(scope="module")
def pipe() -> ACEStepPipeline:
    return ACEStepPipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def song(pipe: ACEStepPipeline) -> GenerationResult:
    return pipe(prompt="piano", lyrics="[verse]\nla la", duration=6, **FEW)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, torch.Tensor]:
    """A chord that is no output of the model, as a file and as its samples."""
    time = torch.arange(5 * 44100) / 44100
    chord = sum(torch.sin(2 * torch.pi * pitch * time) for pitch in (220.0, 277.2, 329.6)) / 6
    waveform = torch.stack([chord, chord.roll(400)])
    path = tmp_path_factory.mktemp("audio") / "chord.wav"
    save_audio(waveform, 44100, path, bit_depth=32)
    return str(path), waveform


def differing(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """The samples or frames at which two tensors differ at all."""
    length = min(a.shape[-1], b.shape[-1])
    return np.flatnonzero((a[..., :length] != b[..., :length]).flatten(0, -2).any(0).numpy())


def test_a_retake_of_no_variance_is_the_song_and_more_goes_further(
    pipe: ACEStepPipeline, song: GenerationResult
) -> None:
    settings = {"prompt": "piano", "lyrics": "[verse]\nla la", "duration": 6, "task": "retake"} | FEW
    distances = [
        (pipe(**settings, variance=variance).latents - song.latents).norm().item() for variance in (0.0, 0.2, 0.5, 1.0)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-4)
    assert distances == sorted(distances)
    similar = pipe(**settings, alpha=0.9)
    assert similar.settings["variance"] == pytest.approx(variance_of_alpha(0.9))
    assert similar.settings["variation_seed"] is not None
    other = pipe(**settings, variance=0.5, variation_seed=99)
    assert not torch.equal(other.latents, pipe(**settings, variance=0.5).latents)


def test_alpha_and_variance_are_one_thing() -> None:
    assert [round(variance_of_alpha(alpha), 2) for alpha in (1, 0.9, 0.5, 0.1, 0)] == [0, 0.07, 0.5, 0.93, 1]
    with pytest.raises(ValueError, match=r"alpha: 1.5 .*0 to 1"):
        variance_of_alpha(1.5)


def test_retakes_batch_like_songs(pipe: ACEStepPipeline) -> None:
    requests = [
        GenerationRequest(
            prompt="x", task="retake", variance=variance, duration=duration, seed=1, num_inference_steps=3
        )
        for variance, duration in ((0.1, 2), (0.8, 3))
    ]
    together = pipe.engine.generate(requests)
    for request, both in zip(requests, together, strict=True):
        alone = pipe.engine.generate([request])[0]
        assert isinstance(both, GenerationResult)
        assert isinstance(alone, GenerationResult)
        assert both.batch_size == 2
        torch.testing.assert_close(both.latents, alone.latents, rtol=1e-4, atol=1e-4)


def test_repaint_keeps_latents_to_the_bit_and_sound_beyond_a_short_blend(
    pipe: ACEStepPipeline, song: GenerationResult
) -> None:
    new = pipe(prompt="drums", task="repaint", source=song, repaint_start=2, repaint_end=4, **FEW)
    begin, end = num_latent_frames(2), num_latent_frames(4)
    frames = differing(new.latents, song.latents)
    assert (frames.min(), frames.max()) == (begin, end - 1)
    samples = differing(new.waveform, song.waveform)
    assert begin * SAMPLES_PER_FRAME - BLEND_SAMPLES <= samples.min() <= begin * SAMPLES_PER_FRAME
    assert end * SAMPLES_PER_FRAME - 1 <= samples.max() < end * SAMPLES_PER_FRAME + BLEND_SAMPLES


def test_repaint_of_a_recording_returns_the_recording_outside_the_span(
    pipe: ACEStepPipeline, recording: tuple[str, torch.Tensor]
) -> None:
    path, waveform = recording
    new = pipe(prompt="drums", task="repaint", source=path, repaint_start=1, repaint_end=2, **FEW)
    samples = differing(new.waveform, waveform)
    length = new.waveform.shape[-1]
    inside = num_latent_frames(2) * SAMPLES_PER_FRAME + BLEND_SAMPLES
    assert samples[samples < waveform.shape[-1] - SAMPLES_PER_FRAME].max() < inside
    assert abs(length - waveform.shape[-1]) < SAMPLES_PER_FRAME


@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
def test_extend_grows_on_both_sides(pipe: ACEStepPipeline, song: GenerationResult, scheduler: str) -> None:
    new = pipe(prompt="piano", task="extend", source=song, extend_left=1, extend_right=2.5, scheduler=scheduler, **FEW)
    left, right = num_latent_frames(1), num_latent_frames(2.5)
    total = left + song.latents.shape[-1] + right
    assert new.latents.shape[-1] == total
    assert torch.equal(new.latents[..., left : total - right], song.latents)
    assert new.latents[..., :left].abs().max() > 0.1
    assert new.waveform.shape[-1] == total * SAMPLES_PER_FRAME


def test_edit_moves_towards_the_target_and_keeps_the_length(pipe: ACEStepPipeline, song: GenerationResult) -> None:
    settings = {"prompt": "piano", "lyrics": "[verse]\nla la", "task": "edit", "source": song} | FEW
    same = pipe(**settings, target_prompt="piano", target_lyrics="[verse]\nla la")
    lyrics = pipe(**settings, target_lyrics="[verse]\nother words")
    remix = pipe(**settings, target_prompt="loud drums", edit_n_min=0.25, edit_n_max=0.75, edit_n_avg=2)
    assert {result.latents.shape for result in (same, lyrics, remix)} == {song.latents.shape}
    assert not torch.equal(lyrics.latents, song.latents)
    assert not torch.equal(remix.latents, lyrics.latents)


def test_audio2audio_is_nearer_the_source_the_stronger(pipe: ACEStepPipeline, song: GenerationResult) -> None:
    settings = {"prompt": "strings", "task": "audio2audio", "source": song, "seed": 5, "num_inference_steps": 20}
    distances = [
        (pipe(**settings, reference_strength=strength).latents - song.latents).norm().item()
        for strength in (0.9, 0.6, 0.2)
    ]
    assert distances == sorted(distances)


def test_tasks_chain_without_decoding(
    pipe: ACEStepPipeline, song: GenerationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(latents: torch.Tensor) -> torch.Tensor:
        raise AssertionError("decoded")

    monkeypatch.setattr(pipe.engine.networks.codec, "decode", never)
    longer = pipe(prompt="piano", task="extend", source=song, extend_right=1, output="latents", **FEW)
    new = pipe(prompt="drums", task="repaint", source=longer, repaint_end=1, output="latents", **FEW)
    assert new.latents.shape[-1] == song.latents.shape[-1] + num_latent_frames(1)
    assert new.waveform.shape == (2, 0)


def test_kept_latents_are_a_source(pipe: ACEStepPipeline, song: GenerationResult, tmp_path: Path) -> None:
    path = tmp_path / "song.safetensors"
    save_file({"latents": song.latents.contiguous()}, path)
    from_file = pipe(prompt="drums", task="repaint", source=path, repaint_end=1, **FEW)
    in_memory = pipe(prompt="drums", task="repaint", source=song, repaint_end=1, **FEW)
    assert torch.equal(from_file.latents, in_memory.latents)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "repaint"}, "source: None is not allowed; the task repaint needs one"),
        ({"variance": 0.5}, "variance: 0.5 is not allowed; the task text2music has none; it belongs to retake"),
        ({"task": "extend", "source": "x.wav"}, "extend needs seconds to add"),
        ({"task": "edit", "source": "x.wav"}, "edit needs target_prompt or target_lyrics"),
        ({"task": "repaint", "source": "x.wav", "repaint_start": 3, "repaint_end": 2}, "behind repaint_start"),
        ({"task": "edit", "source": "x", "target_prompt": "y", "edit_n_min": 1.0}, "below edit_n_max"),
    ],
)
def test_what_does_not_go_together_is_named(settings: dict, words: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        GenerationRequest.parse({"prompt": "x"} | settings)
    assert words in str(error.value)


def test_a_source_that_does_not_fit_is_named(pipe: ACEStepPipeline, song: GenerationResult, tmp_path: Path) -> None:
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"not audio")
    for settings, words in (
        ({"task": "repaint", "source": song, "repaint_end": 100}, "the source has 5.9"),
        ({"task": "repaint", "source": str(noise)}, "cannot be read"),
        ({"task": "repaint", "source": str(tmp_path / "none.wav")}, "none.wav"),
        ({"task": "extend", "source": song, "extend_right": 239}, "240"),
    ):
        with pytest.raises(GenerationError, match=words) as error:
            pipe(prompt="x", **settings, **FEW)
        assert error.value.error_class == "input"
    with pytest.raises(InvalidRequestError, match="it must be a path, a URL"):
        pipe(prompt="x", task="repaint", source=5)
