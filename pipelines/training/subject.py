"""`Subject`: what is trained: a task made of the networks of a checkpoint, and how it becomes a checkpoint again."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from acestep.checkpoint import Checkpoint, Part
from acestep.device import parse_dtype
from acestep.errors import CheckpointError
from acestep.loading import load_part
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.repa import RepaHeads
from acestep.models.transformer import ACEStepTransformer
from acestep.models.vocoder import Vocoder
from acestep.synth import random_piece, render
from acestep.training.autoencoder import AutoencoderTraining
from acestep.training.export import write_checkpoint
from acestep.training.flow_matching import FlowMatchingTraining
from acestep.training.lora import LoRAConfig, add_lora, load_lora_for_training, save_lora
from acestep.training.teachers import heads_for
from acestep.training.vocoder import FrameTraining, VocoderTraining
from pipelines.errors import ConfigError
from pipelines.training.config import TrainingConfig

_EXAMPLES, _EXAMPLE_SECONDS = 24, 6.0
"""Pieces that tell how loud each band is."""


class Subject(ABC):
    """A task to train, on the CPU."""

    task: nn.Module
    name = "checkpoint"
    """Of what is written in the end."""

    @abstractmethod
    def export(self, averaged: Mapping[str, Tensor], folder: Path) -> None:
        """Write what was trained into an empty folder; `averaged` are weights by their names in the task."""


class PartSubject(Subject):
    """Whole networks of the checkpoint.

    Args:
        networks: what is trained, each with where its tensors stand in the task.
    """

    def __init__(
        self,
        task: nn.Module,
        checkpoint: Checkpoint,
        networks: Mapping[Part, tuple[nn.Module, str]],
        dtype: torch.dtype | None,
    ):
        self.task = task
        self._checkpoint, self._networks, self._dtype = checkpoint, networks, dtype

    def export(self, averaged: Mapping[str, Tensor], folder: Path) -> None:
        parts: dict[Part, dict[str, Tensor]] = {}
        for part, (network, prefix) in self._networks.items():
            trained = {name.removeprefix(prefix): value for name, value in averaged.items() if name.startswith(prefix)}
            parts[part] = {name: trained.get(name, value) for name, value in network.state_dict().items()}
        configs: dict[Part, dict[str, Any]] = {}
        if "transformer" in parts and self._checkpoint.random_weights:
            configs["transformer"] = {"random_weights": False}
        write_checkpoint(self._checkpoint, folder, parts, self._dtype, configs)


class FrameSubject(PartSubject):
    """The vocoder's backbone, to begin with."""

    def __init__(self, task: FrameTraining, checkpoint: Checkpoint, dtype: torch.dtype | None):
        super().__init__(task, checkpoint, {"vocoder": (task.vocoder, "vocoder.")}, dtype)

    def export(self, averaged: Mapping[str, Tensor], folder: Path) -> None:
        task = copy.deepcopy(cast("FrameTraining", self.task)).cpu()
        task.load_state_dict(averaged, strict=False)
        task.fold()
        vocoder = {f"vocoder.{name}": value for name, value in task.vocoder.state_dict().items()}
        super().export(vocoder, folder)


class LoRASubject(Subject):
    """An adapter for the transformer."""

    name = "lora"

    def __init__(self, task: nn.Module, transformer: ACEStepTransformer, config: LoRAConfig):
        self.task = task
        self._transformer, self._config = transformer, config

    def export(self, averaged: Mapping[str, Tensor], folder: Path) -> None:
        prefix = "transformer."
        save_lora(
            self._transformer,
            self._config,
            folder,
            {name.removeprefix(prefix): value for name, value in averaged.items() if name.startswith(prefix)},
        )


def open_subject(config: TrainingConfig, checkpoint: Checkpoint, target_dims: list[int]) -> Subject:
    """Load the networks that the config wants trained, ready for it: weights in float32, no dropout.

    Args:
        target_dims: numbers a frame of each audio encoder's features in the data.

    Raises:
        CheckpointError: when a network or an adapter cannot be loaded.
        ConfigError: for options that do not fit the checkpoint.
    """
    dtype = parse_dtype(config.saving.export_dtype) if config.saving.export_dtype else None
    if config.part == "transformer":
        return _open_transformer(config, checkpoint, target_dims, dtype)
    if config.part == "lora":
        return _open_lora(config, checkpoint)
    network = _load(checkpoint, config.part).requires_grad_(True)
    log_mel = LogMel.from_config(checkpoint.config("vocoder"))
    codec, task = config.codec, cast("nn.Module", None)
    if config.part == "autoencoder":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        task = AutoencoderTraining(cast("MusicAutoencoder", network), log_mel, codec.latent_noise, codec.latent_pull)
    else:
        vocoder = cast("Vocoder", network)
        if codec.frames:
            return FrameSubject(_frame_training(vocoder, log_mel, config), checkpoint, dtype)
        task = VocoderTraining(vocoder, log_mel, codec.mel_weight, codec.phase_weight)
    return PartSubject(task, checkpoint, {config.part: (network, f"{config.part}.")}, dtype)


def _frame_training(vocoder: Vocoder, log_mel: LogMel, config: TrainingConfig) -> FrameTraining:
    examples = torch.from_numpy(
        np.stack([render(random_piece(seed), _EXAMPLE_SECONDS)[0] for seed in range(_EXAMPLES)])
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            task = FrameTraining(vocoder, log_mel, examples, config.codec.mel_noise)
        except ValueError as error:
            raise ConfigError(f"codec.frames: {error}") from error
    vocoder.head.requires_grad_(False)  # it is set when the training is over
    return task


def _open_transformer(
    config: TrainingConfig, checkpoint: Checkpoint, target_dims: list[int], dtype: torch.dtype | None
) -> Subject:
    transformer = cast("ACEStepTransformer", _load(checkpoint, "transformer").requires_grad_(True))
    transformer.gradient_checkpointing = config.gradient_checkpointing
    encoder = cast("PromptEncoder", _load(checkpoint, "text_encoder").requires_grad_(config.train_prompt_encoder))
    repa = _heads(config, transformer, target_dims)
    task = FlowMatchingTraining(transformer, encoder, config.flow_matching, repa)
    networks: dict[Part, tuple[nn.Module, str]] = {"transformer": (transformer, "transformer.")}
    if config.train_prompt_encoder:
        networks["text_encoder"] = (encoder.model, "prompt_encoder.model.")
    return PartSubject(task, checkpoint, networks, dtype)


def _open_lora(config: TrainingConfig, checkpoint: Checkpoint) -> Subject:
    transformer = cast("ACEStepTransformer", _load(checkpoint, "transformer"))
    transformer.gradient_checkpointing = config.gradient_checkpointing
    try:
        if config.start.lora:
            lora = load_lora_for_training(transformer, config.start.lora)
        else:
            lora = config.lora
            add_lora(transformer, lora, torch.Generator().manual_seed(config.seed))
    except CheckpointError:
        raise
    except ValueError as error:
        raise ConfigError(f"lora.{error}") from error
    encoder = cast("PromptEncoder", _load(checkpoint, "text_encoder"))
    return LoRASubject(FlowMatchingTraining(transformer, encoder, config.flow_matching), transformer, lora)


def _heads(config: TrainingConfig, transformer: ACEStepTransformer, dims: list[int]) -> RepaHeads | None:
    if not config.repa.enabled:
        return None
    if not dims:
        raise ConfigError("repa.enabled: the data holds no features of audio encoders; `acestep prepare` makes them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return heads_for(transformer, dims, config.repa.depth)
        except ValueError as error:
            raise ConfigError(f"repa.{error}") from error


def _load(checkpoint: Checkpoint, part: Part) -> nn.Module:
    return load_part(checkpoint, part, dtype=torch.float32)
