"""The trainer: stopped anywhere it goes on as if it had not been; it learns; blocks computed twice change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.repa import RepaHeads
from acestep.tiny import AUTOENCODER, VOCODER
from acestep.training.ahead import Ahead
from acestep.training.audio_crops import SynthCrops
from acestep.training.autoencoder import AutoencoderTraining
from acestep.training.flow_matching import FlowMatchingConfig, FlowMatchingTraining, LatentBatch
from acestep.training.optimization import OptimizationConfig
from acestep.training.trainer import Trainer
from tests.small_training import make_batch, make_prompt_encoder, make_transformer


def songs(step: int, rank: int, world_size: int) -> LatentBatch:
    return make_batch(seed=step * world_size + rank)


def flow_trainer(**options: Any) -> Trainer:
    task = FlowMatchingTraining(make_transformer(), make_prompt_encoder(), FlowMatchingConfig())
    values = {"steps": 8, "warmup_steps": 3, "learning_rate": 1e-3} | options.pop("optimization", {})
    return Trainer(task, songs, OptimizationConfig(**values), seed=3, **options)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    weights = {name: parameter.detach().clone() for name, parameter in trainer.optimization.parameters.items()}
    return weights | {f"average {name}": value for name, value in trainer.optimization.averaged().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_stopped_and_resumed_it_has_the_same_weights(tmp_path: Path, stop: int) -> None:
    straight = flow_trainer()
    losses = [metrics["loss"] for metrics in straight.run()]
    before, path = flow_trainer(), tmp_path / "state.pt"
    first = [metrics["loss"] for metrics in before.run(until=stop)]
    before.save(path)
    torch.manual_seed(stop)  # What else draws numbers must not matter.
    after = flow_trainer()
    assert after.resume(path)
    assert after.step == stop
    assert first + [metrics["loss"] for metrics in after.run()] == losses
    assert same(weights_of(after), weights_of(straight))


def test_without_a_state_it_begins(tmp_path: Path) -> None:
    assert not flow_trainer().resume(tmp_path / "state.pt")


def test_a_state_of_another_network_or_seed_is_refused(tmp_path: Path) -> None:
    trainer = flow_trainer()
    trainer.save(tmp_path / "state.pt")
    other = FlowMatchingTraining(make_transformer(num_layers=3), make_prompt_encoder(), FlowMatchingConfig())
    with pytest.raises(ValueError, match="of another network"):
        Trainer(other, songs, trainer.config, seed=3).resume(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="seed is 4, the training began with 3"):
        Trainer(trainer.task, songs, trainer.config, seed=4).resume(tmp_path / "state.pt")


def test_workers_see_different_batches_and_noise() -> None:
    losses = [[metrics["loss"] for metrics in flow_trainer(rank=rank, world_size=2).run(until=2)] for rank in range(2)]
    assert losses[0][0] != losses[1][0]


def test_what_is_not_finite_changes_nothing_and_ten_of_it_end_the_training() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, batch: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * float("nan")).sum()}

    trainer = Trainer(Broken(), lambda *place: torch.zeros(1), OptimizationConfig(steps=100))
    with pytest.raises(FloatingPointError, match="ten losses in a row"):
        list(trainer.run())
    assert trainer.step == 10
    assert torch.equal(trainer.task.weight, torch.ones(2))  # type: ignore[arg-type]


def test_batches_made_ahead_are_the_same() -> None:
    source = Ahead(songs, 2)
    asked = [0, 1, 2, 5, 6, 3]  # As after a resume: steps may be left out, and come again.
    for step in asked:
        assert torch.equal(source(step, 0, 1).latents, songs(step, 0, 1).latents)
    source.close()

    def broken(step: int, rank: int, world_size: int) -> Any:
        raise OSError(f"step {step}")

    failing = Ahead(broken, 1)
    with pytest.raises(OSError, match="step 4"):
        failing(4, 0, 1)
    failing.close()


@pytest.mark.parametrize("repa", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(repa: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        transformer = make_transformer()
        transformer.gradient_checkpointing = checkpointing
        torch.manual_seed(0)
        heads = RepaHeads(32, [6], [1]) if repa else None
        task = FlowMatchingTraining(transformer, make_prompt_encoder(), FlowMatchingConfig(), heads)
        batch = make_batch()
        if repa:
            generator = torch.Generator().manual_seed(0)
            targets = [[torch.randn(7, 6, generator=generator) for _ in range(len(batch.latents))]]
            batch = LatentBatch(**{name: getattr(batch, name) for name in batch.__slots__} | {"targets": targets})
        losses = task(batch, torch.Generator().manual_seed(1))
        losses["loss"].backward()
        named = [*task.transformer.named_parameters(), *(heads.named_parameters() if heads else ())]
        gradients.append({name: parameter.grad for name, parameter in named})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for checkpointing in (False, True):
        transformer = make_transformer(num_layers=6)
        transformer.gradient_checkpointing = checkpointing
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        task = FlowMatchingTraining(transformer, make_prompt_encoder(), FlowMatchingConfig())
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            task(make_batch(), torch.Generator().manual_seed(1))
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]


def test_an_autoencoder_learns_within_a_minute() -> None:
    torch.manual_seed(0)
    task = AutoencoderTraining(MusicAutoencoder.from_config(AUTOENCODER), LogMel.from_config(VOCODER))
    config = OptimizationConfig(steps=30, learning_rate=3e-3, warmup_steps=5, average=0.9)
    trainer = Trainer(task, SynthCrops(4, pieces_per_batch=2, crops_per_piece=2), config)
    errors = [metrics["mel_error"] for metrics in trainer.run()]
    assert sum(errors[-5:]) < 0.6 * sum(errors[:5])
