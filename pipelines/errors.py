"""What can be wrong with a job's input and output; part of the library's one tree, see `acestep.errors`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from acestep.errors import ACEStepError
from acestep.problems import Problem


class UnusableInputError(ACEStepError, ValueError):
    """A config, manifest or output that no job can work with: said before anything is made."""

    error_class = "input"


class ConfigError(UnusableInputError):
    """A config that cannot be used; the message holds every problem, not only the first."""

    @classmethod
    def of(cls, where: str, problems: Sequence[Problem]) -> ConfigError:
        """One error for all `problems` of the config called `where`."""
        return cls("\n".join([f"{where} cannot be used:", *(f"  {problem}" for problem in problems)]))


class ManifestError(UnusableInputError):
    """A manifest that is missing, unreadable, empty, or lacks a column that every song needs."""


class OutputError(UnusableInputError):
    """A place where nothing can be written."""


class StorageError(ACEStepError, OSError):
    """Storage that kept failing after every retry."""

    error_class = "storage"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the whole job cannot go on, as it travels through the stages to the driver."""

    error_class: str
    message: str

    def text(self) -> str:
        """For a column."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Stop:
        """From a column."""
        return cls(**json.loads(text))


class StoppedError(ACEStepError):
    """The job cannot go on; what it has made stays."""

    def __init__(self, stop: Stop):
        super().__init__(stop.message)
        self.error_class = stop.error_class
