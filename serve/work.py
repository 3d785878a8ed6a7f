"""What gateway and engines tell each other: plain data that travels between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from acestep.audio_format import AudioFormat
from acestep.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Order:
    """One song that an engine is to make.

    Attributes:
        source: key of its source in the store, None for none.
        folder: of the store, for its audio; None: the bytes are wanted, and nothing is kept.
        index: its number there.
    """

    request: GenerationRequest
    format: AudioFormat
    source: str | None = None
    folder: str | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """A batch for an engine: orders to be delivered one by one, or requests whose waveforms somebody waits for."""

    batch: str
    orders: list[Order] = field(default_factory=list)
    offline: list[GenerationRequest] | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one order.

    Attributes:
        made: what the job's record says of it.
        error: `(error_class, message)` where it failed.
    """

    id: str
    made: dict[str, Any] | None = None
    error: tuple[str, str] | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How far an engine is.

    Attributes:
        batches: all that it has in its hands, with the ids of the songs: those being made and those being delivered.
        batch, step, steps: of the one that is in the engine.
    """

    engine: str
    batches: dict[str, list[str]]
    batch: str | None = None
    step: int = 0
    steps: int = 0
