"""The one exception tree of the library: catch `ACEStepError` to catch all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acestep.problems import Problem


class ACEStepError(Exception):
    """Base of every error that this library raises on purpose."""

    error_class = "internal"
    """One of input, out_of_memory, quality, storage, timeout, device, internal: the catalog's `error_class`; or
    cancelled, which no batch job is."""


class InvalidRequestError(ACEStepError, ValueError):
    """A request that cannot be made; `problems` holds every reason, not only the first."""

    error_class = "input"

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple]:  # Ray sends exceptions between processes.
        return type(self), (self.problems,)


class CheckpointError(ACEStepError, ValueError):
    """A checkpoint that cannot be found, reached or loaded."""

    error_class = "input"


class AudioFormatError(ACEStepError, ValueError):
    """An audio format, or a setting of it, that cannot be written."""

    error_class = "input"


class InvalidAudioError(ACEStepError):
    """Generated audio that must not be delivered (not finite, wrong length)."""

    error_class = "quality"


class GenerationError(ACEStepError):
    """A request that the engine could not make, raised where there is one caller to tell."""

    def __init__(self, message: str, error_class: str = "internal"):
        super().__init__(message)
        self.error_class = error_class

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (str(self), self.error_class)


class OutOfMemoryError(ACEStepError):
    """A single request that does not fit on the device."""

    error_class = "out_of_memory"


class DeviceError(ACEStepError):
    """The device is broken for this process: end the process, nothing on it can be trusted."""

    error_class = "device"


class BatchTimeoutError(ACEStepError):
    """A batch that took much longer than such batches do."""

    error_class = "timeout"


class CancelledError(ACEStepError):
    """Somebody wants it no more: the caller's callback asked to stop between two steps, or everybody left a batch."""

    error_class = "cancelled"
