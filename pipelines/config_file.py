"""`FileConfig`: a config that comes from a YAML file and `--set a.b=c`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from typing_extensions import Self

from acestep.problems import problems_of
from pipelines.errors import ConfigError
from pipelines.sections import Section


class FileConfig(Section):
    """Base of what a job can be told, whatever its options."""

    @classmethod
    def load(
        cls,
        path: str | Path | Mapping[str, Any] | None = None,
        overrides: Sequence[str] = (),
        *,
        name: str = "of the catalog",
    ) -> Self:
        """Read a YAML file (or its content; none: the defaults) and apply `a.b=c` overrides, values as in YAML.

        Raises:
            ConfigError: with every problem.
        """
        if isinstance(path, Mapping):
            values, path = copy.deepcopy(dict(path)), name
        else:
            values = _read_yaml(Path(path)) if path else {}
        for override in overrides:
            _apply(values, override)
        where = f"the config {path}" if path else "the config"
        return cls.parse(values, f"{where} with --set" if overrides else where)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "the config") -> Self:
        """A config from nested plain values.

        Raises:
            ConfigError: with every problem.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError.of(where, problems_of(error, cls)) from None


def absolute(path: str) -> str:
    """An absolute path where there is such a file or folder, anything else as it is; for workers elsewhere."""
    full = os.path.abspath(os.path.expanduser(path))
    return full if os.path.exists(full) else path


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config {path} is not YAML: {error}") from error
    if not isinstance(values or {}, dict):
        raise ConfigError(f"the config {path} holds {type(values).__name__}, not names and values")
    return values or {}


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {override!r} is not allowed; it must be like batch.max_batch_size=4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error
    *sections, last = name.strip().split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {section} is {inner!r} and has no parts")
        values = inner
    values[last] = value
