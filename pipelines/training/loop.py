"""`train`: what each worker of a training does, from the checkpoint to the checkpoint. Knows nothing of Ray."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from acestep.checkpoint import Checkpoint
from acestep.training.ahead import Ahead
from acestep.training.trainer import Trainer
from pipelines.storage import Storage
from pipelines.training.batches import open_batches, target_dims
from pipelines.training.config import TrainingConfig
from pipelines.training.metrics import MetricsRecorder
from pipelines.training.states import TrainingStates
from pipelines.training.subject import Subject, open_subject
from pipelines.training_data.layout import TRAINING_RECORD, export_key

logger = logging.getLogger(__name__)

Show = Callable[[int, str], None]
"""Called with the steps done and a few words."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One of those that train together."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    wrap: Callable[[nn.Module], nn.Module] | None = None
    """Makes the task work with the others."""


def open_checkpoint(config: TrainingConfig) -> Checkpoint:
    """The checkpoint to begin with.

    Raises:
        CheckpointError: when it cannot be found.
    """
    start = config.start
    return Checkpoint.open(
        start.checkpoint, storage_options=start.storage_options or None, lyric_vocab=start.lyric_vocab
    )


def train(config: TrainingConfig, output: Storage, worker: Worker, show: Show | None = None) -> None:
    """Take the steps that are missing, from the newest state in the output; the first worker writes.

    Raises:
        UnusableInputError: for options that fit neither checkpoint nor data, or an output of another training.
        CheckpointError: for weights that cannot be loaded.
        FloatingPointError: when the loss is not finite any more.
    """
    if config.workers.threads:
        torch.set_num_threads(config.workers.threads)
    subject = open_subject(config, open_checkpoint(config), target_dims(config))
    with ExitStack() as stack:
        batches = open_batches(config)
        if config.data.ahead:
            batches = ahead = Ahead(batches, config.data.ahead)
            stack.callback(ahead.close)
        trainer = Trainer(
            subject.task,
            batches,
            config.optimization,
            seed=config.seed,
            rank=worker.rank,
            world_size=worker.world_size,
            device=worker.device,
            autocast=config.autocast,
            wrap=worker.wrap,
        )
        states = TrainingStates(output, config.saving.keep)
        states.resume(trainer)
        _require_same_step(trainer)
        if worker.rank:
            for _ in trainer.run():
                pass
        else:
            _run_and_write(config, output, subject, trainer, states, show or (lambda step, words: None))
        _wait_for_each_other(worker)


def _run_and_write(
    config: TrainingConfig, output: Storage, subject: Subject, trainer: Trainer, states: TrainingStates, show: Show
) -> None:
    saving, steps = config.saving, config.optimization.steps
    output.put(TRAINING_RECORD, json.dumps(config.shown(), indent=1).encode())
    recorder = MetricsRecorder(
        output,
        step=trainer.step,
        steps=steps,
        every_steps=saving.log_every_steps,
        songs=config.data.batch_size * trainer.world_size,
    )
    for metrics in trainer.run():
        recorder.add(trainer.step, metrics)
        show(trainer.step, recorder.words())
        if trainer.step % saving.every_steps == 0 or trainer.step == steps:
            recorder.write()  # First: rows of steps that are taken again are dropped, missing ones stay missing.
            states.save(trainer)
        if saving.export_every_steps and trainer.step % saving.export_every_steps == 0 and trainer.step < steps:
            _export(output, subject, trainer, export_key(subject.name, trainer.step))
    _export(output, subject, trainer, export_key(subject.name, None))
    recorder.close()


def _export(output: Storage, subject: Subject, trainer: Trainer, key: str) -> None:
    """Write what was trained, averaged, into a folder of the output, whole."""
    with tempfile.TemporaryDirectory(prefix="acestep-export-") as temporary:
        folder = Path(output.url, f".{uuid.uuid4().hex}.tmp") if output.is_local else Path(temporary, "export")
        folder.mkdir()
        try:
            subject.export(trainer.optimization.averaged(), folder)
            if output.is_local:
                target = Path(output.url, key)
                shutil.rmtree(target, ignore_errors=True)
                folder.rename(target)
            else:
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    with output.whole_file(f"{key}/{path.relative_to(folder).as_posix()}") as file:
                        shutil.move(path, file)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    logger.info("written after step %d: %s/%s", trainer.step, output.url, key)


def _require_same_step(trainer: Trainer) -> None:
    """Workers that went on from different states would average gradients of different weights."""
    if trainer.world_size > 1:
        steps: list[int] = [0] * trainer.world_size
        torch.distributed.all_gather_object(steps, trainer.step)
        if len(set(steps)) > 1:
            raise RuntimeError(f"workers found states of different steps: {steps}")


def _wait_for_each_other(worker: Worker) -> None:
    """None leaves while the first one writes."""
    if worker.world_size > 1:
        torch.distributed.barrier()
