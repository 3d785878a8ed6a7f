"""The optional packages that spell out lyrics: imported on first use, and missed by name."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

from acestep.errors import ACEStepError

INSTALL_HINT = 'pip install "acestep-ray[lyrics]"'


class MissingPackageError(ACEStepError, ImportError):
    """Lyrics in a language whose optional package is not installed."""

    error_class = "input"


def load(name: str, purpose: str) -> ModuleType:
    """Import the optional package `name`.

    Raises:
        MissingPackageError: naming `purpose` and the extra to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"{purpose} needs the package {name}, which cannot be imported ({error}): {INSTALL_HINT}"
        raise MissingPackageError(message) from error


@cache
def is_installed(name: str) -> bool:
    """Whether `name` can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None
