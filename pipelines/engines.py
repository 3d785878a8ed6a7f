"""Which engine a config names, and what its model is called, found without loading anything heavy.

An engine is a class with `load(checkpoint, **options) -> engine`; the engine has `model`, `warm_up()` and
`generate(requests) -> outcomes` in the same order, as `acestep.engine.Engine` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from acestep.result import ModelInfo
from pipelines.engine_config import DEFAULT_ENGINE, EngineConfig
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from acestep.checkpoint import Checkpoint


def engine_class(path: str) -> Any:
    """The class at an import path such as `acestep.engine:Engine`.

    Raises:
        ConfigError: when there is none.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
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


def _checkpoint(config: EngineConfig) -> Checkpoint:
    from acestep.checkpoint import Checkpoint

    model = config.model
    return Checkpoint.open(
        model.checkpoint, storage_options=model.storage_options or None, lyric_vocab=model.lyric_vocab
    )
