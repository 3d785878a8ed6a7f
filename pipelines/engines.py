"""Which engine a config names, and what its model is called, found without loading anything heavy.

An engine is a class with `load(checkpoint, **options) -> engine`; the engine has `model`, `warm_up()` and
`generate(requests) -> outcomes` in the same order, as `acestep.engine.Engine` does. `engine: <scheme>://<name>` is an
engine that is running somewhere: the entry point `<scheme>` of the group `acestep.engines`, called with the name, gives
an object with the same `load` and `describe`. It runs on Ray, and needs no checkpoint of the job.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from acestep.result import ModelInfo
from pipelines.engine_config import DEFAULT_ENGINE, EngineConfig
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from acestep.checkpoint import Checkpoint

GROUP = "acestep.engines"


def engine_class(path: str) -> Any:
    """The class at an import path such as `acestep.engine:Engine`, or what a scheme such as `serve://name` stands for.

    Raises:
        ConfigError: when there is none.
    """
    if "://" in path:
        return _running_engine(path)
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"engine: {path!r} is not allowed; it cannot be imported ({error})") from error


def _running_engine(path: str) -> Any:
    scheme, _, name = path.partition("://")
    points = {point.name: point for point in entry_points(group=GROUP)}
    if scheme not in points:
        known = ", ".join(f"{each}://" for each in sorted(points)) or "none"
        raise ConfigError(f"engine: {path!r} is not allowed; installed schemes: {known}")
    try:
        return points[scheme].load()(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"engine: {path!r} is not allowed; it cannot be imported ({error})") from error


def describe_model(config: EngineConfig) -> ModelInfo:
    """What the songs of a config will say of their model.

    An engine that needs no checkpoint of ours says so itself, with a class method
    `describe(checkpoint, *, dtype, lyric_vocab, storage_options) -> ModelInfo`.

    Raises:
        CheckpointError: when the weights cannot be found, reached or read.
    """
    model = config.model
    options: dict[str, Any] = {"storage_options": model.storage_options or None, "lyric_vocab": model.lyric_vocab}
    if "://" in config.engine:
        _connect(config)
    if config.engine != DEFAULT_ENGINE:
        describe = getattr(engine_class(config.engine), "describe", None)
        if describe:
            return describe(model.checkpoint, dtype=config.dtype, **options)
    checkpoint = _checkpoint(config)
    return ModelInfo(checkpoint.name, checkpoint.fingerprint(config.dtype), config.dtype, checkpoint.random_weights)


def tokenizers_of(config: EngineConfig) -> tuple[str | None, str | None]:
    """Paths of the prompt tokenizer and of the lyric vocabulary; None where the engine does not say which it has.

    Raises:
        CheckpointError: when they cannot be found, reached or read.
    """
    if config.engine != DEFAULT_ENGINE:
        return None, None
    checkpoint = _checkpoint(config)
    return str(checkpoint.folder("text_encoder") / "tokenizer.json"), str(checkpoint.lyric_vocab)


def _connect(config: EngineConfig) -> None:
    """Stay on the Ray where the engine is running: the one that the config names, or else this machine's."""
    from pipelines.execution import connect

    shared: Any = config
    if not (config.ray.address or os.environ.get("RAY_ADDRESS")):
        shared = config.model_copy(update={"ray": config.ray.model_copy(update={"address": "auto"})})
    connect(shared)


def _checkpoint(config: EngineConfig) -> Checkpoint:
    from acestep.checkpoint import Checkpoint

    model = config.model
    return Checkpoint.open(
        model.checkpoint, storage_options=model.storage_options or None, lyric_vocab=model.lyric_vocab
    )
