"""The engine of a server: the batch pipeline's `EngineActor`, told what a `ServeConfig` says."""

from __future__ import annotations

import os

from pipelines.actors import EngineActor
from serve.settings import ServeConfig


def engine_actor(config: ServeConfig, fingerprint: str | None = None) -> EngineActor:
    """Load and warm up; a broken device ends the process.

    Raises:
        CheckpointError: when the weights cannot be found or loaded.
    """
    model, threads = config.model, config.resources.cpu_threads
    if config.device == "cpu" and threads is None:
        threads = max(1, (os.cpu_count() or 1) // config.scaling.max_engines)
    return EngineActor(
        engine=config.engine,
        checkpoint=model.checkpoint,
        fingerprint=fingerprint,
        threads=threads,
        warm_up=model.warm_up,
        device=config.device,
        dtype=config.dtype,
        lyric_vocab=model.lyric_vocab,
        storage_options=model.storage_options or None,
        cpu_offload=model.cpu_offload,
        torch_compile=model.torch_compile,
        frame_budget=config.batch.frame_budget,
        max_batch_size=config.batch.max_batch_size,
    )
