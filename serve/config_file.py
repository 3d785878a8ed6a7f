"""A server's config from the file that `serve deploy` reads too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from pipelines.errors import ConfigError
from serve.settings import ServeConfig


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> ServeConfig:
    """Read `configs/serve.yaml`, or a file that holds the options alone, and apply `a.b=c`.

    On one machine the GPU is used if there is one and the config says nothing of it.

    Raises:
        ConfigError: with every problem.
    """
    if path is None:
        config = ServeConfig.load(None, overrides)
    else:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"the config {path} cannot be read: {error}") from error
        applications = values.get("applications") if isinstance(values, dict) else None
        if isinstance(applications, list):
            values = next((each.get("args") or {} for each in applications if "serve.app:build" in str(each)), None)
        if not isinstance(values, dict):
            raise ConfigError(f"the config {path} holds no options of serve.app:build, but {values!r:.60}")
        if isinstance(values.get("model"), str):  # Its short form has no parts to change.
            values = values | {"model": {"checkpoint": values["model"]}}
        config = ServeConfig.load(values, overrides, name=str(path))
    if config.resources.num_gpus or config.model.device:
        return config
    from acestep.device import best_device

    device = best_device(None).type
    if device == "cpu":
        return config
    values = config.model_dump(exclude_unset=True)
    values["resources"] = {**values.get("resources", {}), "num_gpus": 1 if device == "cuda" else 0}
    values["model"] = {**values.get("model", {}), "device": device}
    return ServeConfig.parse(values)
