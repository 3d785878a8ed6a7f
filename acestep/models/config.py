"""Read a network's settings out of a published `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

Config = TypeVar("Config")


def read_config(kind: type[Config], config: Mapping[str, Any]) -> Config:
    """Fill the dataclass `kind` from the keys of its own names; other keys (`_class_name` and the like) are ignored.

    Raises:
        ValueError: naming every key that is missing.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if missing := [name for name in names if name not in config]:
        raise ValueError(f"{kind.__name__}: the config lacks {', '.join(missing)}")
    return kind(**{name: config[name] for name in names})
