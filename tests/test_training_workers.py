"""Several workers without Ray: their gradients are averaged, the first one writes, a killed process changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from acestep.checkpoint import Checkpoint
from acestep.training.flow_matching import FlowMatchingConfig, FlowMatchingTraining, LatentBatch
from acestep.training.optimization import Optimization, OptimizationConfig
from acestep.training.trainer import Trainer
from pipelines.storage import Storage
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import Worker, train
from pipelines.training.states import TrainingStates
from tests.conftest import ROOT
from tests.small_training import make_batch, make_prompt_encoder, make_transformer

pytestmark = pytest.mark.slow

STEPS = OptimizationConfig(steps=3, warmup_steps=1, learning_rate=1e-3)
SETTINGS = ("part=autoencoder", "data.crop_frames=2", "data.batch_size=2", "saving.every_steps=2")


def songs(step: int, rank: int, world_size: int) -> LatentBatch:
    return make_batch(seed=step * world_size + rank)


def make_task() -> FlowMatchingTraining:
    return FlowMatchingTraining(make_transformer(), make_prompt_encoder(), FlowMatchingConfig())


def wrapped(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module, broadcast_buffers=False)


def work(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    trainer = Trainer(make_task(), songs, STEPS, rank=rank, world_size=2, wrap=wrapped)
    list(trainer.run())
    weights = {name: parameter.detach() for name, parameter in trainer.optimization.parameters.items()}
    torch.save(weights, f"{folder}/{rank}.pt")
    config = TrainingConfig.load(None, [*SETTINGS, "optimization.steps=2"])
    train(config, Storage(f"{folder}/out"), Worker(rank, 2, wrap=wrapped))
    torch.distributed.destroy_process_group()


def test_two_workers_average_their_gradients_and_write_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    task = make_task()
    optimization = Optimization(task, STEPS)
    for step in range(STEPS.steps):
        for rank in range(2):
            seed = np.random.SeedSequence([0, step, rank]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(seed[0] >> 1))
            (task(songs(step, rank, 2), generator)["loss"] / 2).backward()
        optimization.step(step)
    for name, parameter in optimization.parameters.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], parameter.detach(), rtol=1e-3, atol=1e-5)
    found = TrainingStates(Storage(str(tmp_path / "out")), 2).newest()
    assert found is not None and found[0] == 2
    assert Checkpoint.open(tmp_path / "out" / "checkpoint")


def test_a_killed_process_changes_nothing(tmp_path: Path) -> None:
    settings = [word for each in (*SETTINGS, "optimization.steps=30", "workers.threads=1") for word in ("--set", each)]

    def command(output: Path) -> subprocess.Popen[bytes]:
        words = ["-m", "jobs.train", "--local", "--device", "cpu", "--output", str(output), *settings]
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})

    killed = command(tmp_path / "killed")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("states/state-*.pt")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "checkpoint").exists()
    for output in (tmp_path / "killed", tmp_path / "straight"):
        assert command(output).wait() == 0
    name = "checkpoint/music_dcae_f8c8/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
