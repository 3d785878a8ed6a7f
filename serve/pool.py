"""`Pool`: which engines there are, what each works on, and which of them have died."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from serve.queue import Ticket


@dataclass(slots=True, eq=False)
class Batch:
    """What one engine works on in one go.

    Attributes:
        offline: the idle-time work that it is, None for songs that somebody waits for.
    """

    engine: str
    tickets: dict[str, Ticket]
    heard: float
    offline: str | None
    id: str

    @property
    def frames(self) -> int:
        """Latent frames of what is left in it."""
        return sum(ticket.frames for ticket in self.tickets.values())


class Pool:
    """Engines ask for work and say now and again that they live; who was silent for too long is dead."""

    def __init__(self, timeout_seconds: float):
        self._timeout = timeout_seconds
        self._heard: dict[str, float] = {}
        self.batches: dict[str, Batch] = {}

    @property
    def engines(self) -> int:
        """How many are there."""
        return len(self._heard)

    @property
    def frames(self) -> int:
        """Latent frames being made for somebody who waits."""
        return sum(batch.frames for batch in self.batches.values() if batch.offline is None)

    def hear(self, engine: str, now: float, batches: Iterable[str] = ()) -> None:
        """An engine lives, and so do its batches."""
        self._heard[engine] = now
        for id in batches:
            if id in self.batches:
                self.batches[id].heard = now

    def begin(
        self, engine: str, tickets: list[Ticket], now: float, *, offline: str | None = None, id: str | None = None
    ) -> Batch:
        """An engine takes a batch, or goes on with `id`, which it took from a pool before this one."""
        self.hear(engine, now)
        batch = Batch(engine, {ticket.id: ticket for ticket in tickets}, now, offline, id or uuid.uuid4().hex)
        self.batches[batch.id] = batch
        return batch

    def end(self, id: str) -> Batch | None:
        """A batch is over."""
        return self.batches.pop(id, None)

    def leave(self, engine: str) -> list[Batch]:
        """An engine is gone; what it leaves behind."""
        self._heard.pop(engine, None)
        return self._taken_away(batch for batch in self.batches.values() if batch.engine == engine)

    def bury(self, now: float) -> list[Batch]:
        """Batches of engines that were silent for too long."""
        for engine in [engine for engine, heard in self._heard.items() if now - heard > self._timeout]:
            del self._heard[engine]
        return self._taken_away(batch for batch in self.batches.values() if now - batch.heard > self._timeout)

    def _taken_away(self, batches: Iterable[Batch]) -> list[Batch]:
        found = list(batches)
        for batch in found:
            del self.batches[batch.id]
        return found
