"""The vocoder's training: the lapped transform, the head that strings samples together, and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from acestep.models.mel import LogMel
from acestep.models.vocoder import Vocoder
from acestep.synth import random_piece, render
from acestep.tiny import VOCODER
from acestep.training.optimization import Optimization, OptimizationConfig
from acestep.training.vocoder import FrameTraining, LappedTransform, VocoderTraining, at_half_rate, string_samples

CONFIG = VOCODER | {
    "dims": [24, 32],
    "depths": [1, 1],
    "num_mels": 32,
    "upsample_initial_channel": 512,
    "upsample_rates": [2, 4, 8, 8],
    "upsample_kernel_sizes": [4, 8, 16, 16],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1]],
}


@pytest.fixture(scope="module")
def sound() -> torch.Tensor:
    return torch.from_numpy(np.stack([render(random_piece(seed), 3.0)[0, : 512 * 200] for seed in (1, 2)]))


def stringing_vocoder() -> Vocoder:
    torch.manual_seed(0)
    vocoder = Vocoder.from_config(CONFIG)
    string_samples(vocoder.head, CONFIG["upsample_rates"], CONFIG["upsample_kernel_sizes"])
    return vocoder


def samples_of(coefficients: torch.Tensor, transform: LappedTransform) -> torch.Tensor:
    blocks = F.conv1d(coefficients, transform.samples_kernel(), padding=1)
    return blocks.transpose(1, 2).flatten(1)


def test_the_lapped_transform_can_be_undone(sound: torch.Tensor) -> None:
    transform = LappedTransform(256)
    again = samples_of(transform(sound), transform)
    assert torch.allclose(again[:, 256:-256], sound[:, 256:-256], atol=1e-5)


def test_half_the_rate_keeps_what_is_low() -> None:
    time = torch.arange(8192) / 44100
    low, high = (torch.sin(2 * torch.pi * 44100 / 8192 * line * time)[None] for line in (200, 3000))
    halved = at_half_rate(low + high)
    assert torch.allclose(halved, low[:, ::2], atol=1e-3)


@torch.no_grad()
def test_the_head_strings_samples_together(sound: torch.Tensor) -> None:
    head = stringing_vocoder().head
    quiet = 0.5 * sound
    samples = at_half_rate(quiet.atanh()).unflatten(1, (-1, 256)).transpose(1, 2)
    head.conv_pre = torch.nn.Identity()  # type: ignore[assignment]
    made = head(torch.cat([samples, -samples], dim=1))[:, 0]
    error = (made - quiet)[:, 512:-512].square().sum() / quiet[:, 512:-512].square().sum()
    assert error < 0.01


@torch.no_grad()
def test_what_was_learned_of_frames_is_folded_into_the_head(sound: torch.Tensor) -> None:
    vocoder = stringing_vocoder()
    task = FrameTraining(vocoder, LogMel.from_config(CONFIG), sound)
    features = torch.randn(2, 32, 40)
    wanted = samples_of(task.read(features) * task.scale, task.transform)
    task.fold()
    channels = vocoder.head.conv_pre(features)
    assert torch.allclose(channels[:, :256], -channels[:, 256:], atol=1e-5)
    assert torch.allclose(channels[:, :256].transpose(1, 2).flatten(1)[:, 512:-512], wanted[:, 512:-512], atol=1e-4)


def test_rates_must_leave_room_for_the_samples() -> None:
    head = Vocoder.from_config(CONFIG).head
    with pytest.raises(ValueError, match="cannot be spread"):
        string_samples(head, [1, 1, 1, 1], CONFIG["upsample_kernel_sizes"])
    with pytest.raises(ValueError, match="upsample_initial_channel must be hop_length 512"):
        FrameTraining(Vocoder.from_config(VOCODER), LogMel.from_config(VOCODER), torch.zeros(1, 51200))


def test_both_parts_learn(sound: torch.Tensor) -> None:
    vocoder, log_mel = stringing_vocoder(), LogMel.from_config(CONFIG)
    torch.manual_seed(0)
    other = Vocoder.from_config(VOCODER)
    batch = torch.stack([sound, sound], dim=1)[..., : 512 * 64]
    for task in (FrameTraining(vocoder, log_mel, sound, noise=0.1), VocoderTraining(other, log_mel, phase_weight=1.0)):
        optimization = Optimization(task, OptimizationConfig(steps=12, learning_rate=2e-3, warmup_steps=3))
        losses = []
        for step in range(12):
            loss = task(batch, torch.Generator().manual_seed(step))["loss"]
            loss.backward()
            optimization.step(step)
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.9 * losses[0], losses
