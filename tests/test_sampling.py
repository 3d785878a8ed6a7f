"""Ragged batches: each item gets what it gets alone, for any mix of prompts, lyrics, lengths, seeds and scales."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.conditioning import condition_rows
from acestep.frames import num_latent_frames
from acestep.models.transformer import ACEStepTransformer
from acestep.request import GenerationRequest
from acestep.sampling.denoise import denoise
from acestep.sampling.guidance import guided_steps
from acestep.sampling.noise import BatchNoise
from acestep.sampling.schedule import flow_sigmas
from tests.golden import TOLERANCE, relative_error
from tests.golden_cases.networks import TINY_CONFIG
from tests.recipe import fill_by_recipe


@pytest.fixture(scope="module")
def transformer() -> ACEStepTransformer:
    """Twenty blocks, so that ERG reaches some, and a small lyric encoder with six layers for the same reason."""
    config = json.loads(TINY_CONFIG.read_text())["TINY"]
    small = {"num_layers": 20, "lyric_hidden_size": 64, "lyric_encoder_num_heads": 4, "lyric_encoder_ff_size": 128}
    model = ACEStepTransformer.from_config(config | small | {"patch_embed_size": 128, "lyric_encoder_vocab_size": 300})
    fill_by_recipe(model)
    return model.eval()


class Song:
    """A request with its encoded prompt and lyrics."""

    def __init__(self, request: GenerationRequest, prompt_tokens: int, lyric_tokens: int, frames: int):
        generator = torch.Generator().manual_seed(request.seed or 0)
        self.request, self.frames = request, frames
        self.text = torch.randn(prompt_tokens, 32, generator=generator)
        self.weakened = torch.randn(prompt_tokens, 32, generator=generator)
        self.lyrics = torch.randint(1, 300, (lyric_tokens,), generator=generator)


def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(1, *(len(row) for row in rows))
    out = torch.zeros(len(rows), length, *rows[0].shape[1:], dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), length)
    for index, row in enumerate(rows):
        out[index, : len(row)], mask[index, : len(row)] = row, 1
    return out, mask


@torch.inference_mode()
def sample(model: ACEStepTransformer, songs: list[Song]) -> list[torch.Tensor]:
    text, text_mask = padded([song.text for song in songs])
    weakened, _ = padded([song.weakened for song in songs])
    lyrics, lyric_mask = padded([song.lyrics for song in songs])
    requests = [song.request for song in songs]
    condition = condition_rows(model, requests, text, text_mask, lyrics, lyric_mask, weakened_text=weakened)
    noise = BatchNoise([request.seed or 0 for request in requests], [song.frames for song in songs])
    latents = denoise(model, condition, requests, noise)
    for row, song in zip(latents, songs, strict=True):
        assert not row[..., song.frames :].any(), "something leaked behind an item's end"
    return [row[..., : song.frames] for row, song in zip(latents, songs, strict=True)]


songs_strategy = st.lists(
    st.tuples(st.integers(1, 90), st.integers(1, 40), st.integers(0, 60), st.integers(0, 2**64 - 1), st.floats(2, 20)),
    min_size=2,
    max_size=4,
)


@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
@pytest.mark.parametrize("guidance", ["apg", "cfg", "cfg_star"])
@settings(max_examples=3, deadline=None)
@given(mix=songs_strategy)
def test_batched_equals_alone(transformer: ACEStepTransformer, scheduler: str, guidance: str, mix: list) -> None:
    songs = []
    for frames, prompt_tokens, lyric_tokens, seed, scale in mix:
        request = GenerationRequest(
            prompt="x", seed=seed, guidance_scale=scale, scheduler=scheduler, guidance=guidance, num_inference_steps=4
        )
        songs.append(Song(request, prompt_tokens, lyric_tokens, frames))
    together = sample(transformer, songs)
    for song, got in zip(songs, together, strict=True):
        assert relative_error(got, sample(transformer, [song])[0]) <= TOLERANCE


def test_doubly_guided_songs_batch_too(transformer: ACEStepTransformer) -> None:
    songs = [
        Song(GenerationRequest(prompt="x", seed=seed, num_inference_steps=4, **scales), tokens, lyrics, frames)
        for seed, tokens, lyrics, frames, scales in (
            (1, 1, 0, 11, {"guidance_scale_text": 5.0, "guidance_scale_lyric": 1.5}),
            (2, 30, 40, 64, {"guidance_scale_text": 2.0, "guidance_scale_lyric": 3.0}),
        )
    ]
    for song, got in zip(songs, sample(transformer, songs), strict=True):
        assert relative_error(got, sample(transformer, [song])[0]) <= TOLERANCE


@pytest.mark.parametrize("kinds", [("euler", "apg"), ("heun", "cfg"), ("pingpong", "cfg_star")], ids="-".join)
def test_the_extremes_batch_too(transformer: ACEStepTransformer, kinds: tuple[str, str]) -> None:
    """1 s beside 240 s, no lyrics beside 1,500 tokens, a prompt of one token beside 256."""
    settings = {"scheduler": kinds[0], "guidance": kinds[1], "num_inference_steps": 2}
    songs = [
        Song(GenerationRequest(prompt="x", seed=seed, **settings), tokens, lyrics, num_latent_frames(seconds))
        for seed, tokens, lyrics, seconds in ((1, 256, 0, 1), (2, 1, 1500, 240))
    ]
    for song, got in zip(songs, sample(transformer, songs), strict=True):
        assert relative_error(got, sample(transformer, [song])[0]) <= TOLERANCE


def test_unguided_and_weakened_settings_batch_too(transformer: ACEStepTransformer) -> None:
    for changes in ({"guidance_scale": 1.0}, {"use_erg_lyric": False, "use_erg_diffusion": False}):
        songs = [
            Song(GenerationRequest(prompt="x", seed=seed, num_inference_steps=3, **changes), 5, lyrics, frames)
            for seed, lyrics, frames in ((1, 0, 11), (2, 30, 64))
        ]
        for song, got in zip(songs, sample(transformer, songs), strict=True):
            assert relative_error(got, sample(transformer, [song])[0]) <= TOLERANCE


def test_noise_depends_on_the_seed_alone() -> None:
    alone, crowd = BatchNoise([7], [20]), BatchNoise([3, 7], [50, 20])
    assert torch.equal(alone.draw()[0], crowd.draw()[1, ..., :20])
    assert torch.equal(alone.draw()[0], crowd.draw()[1, ..., :20])


@given(steps=st.integers(1, 200), interval=st.floats(0, 1))
def test_schedule_falls_to_zero_and_guided_steps_lie_inside(steps: int, interval: float) -> None:
    sigmas = flow_sigmas(steps)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    guided = guided_steps(steps, interval)
    assert 0 <= guided.start <= guided.stop <= steps
    assert len(guided) <= math.ceil(interval * steps) + 1
