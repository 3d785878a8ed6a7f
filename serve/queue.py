"""`Queue`: songs that wait for an engine, and which of them go together next. Knows neither Ray nor HTTP.

The next batch begins with the song whose response ratio is highest, (waited + expected) / expected: short songs need
not sit behind long ones, and a long one's ratio grows until it is first. What waited longer than anybody should
goes before that, oldest first. The rest of the batch is filled with songs that may share a pass with the first one,
most alike in length, for a pass costs as many frames as its longest song for each of its songs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from acestep.request import GenerationRequest
from serve.settings import QueueSection

LEAST_ALIKE = 0.5
"""A song shorter than this share of the first would pay for more padding than music, and waits for its like."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One song that is wanted.

    Attributes:
        id: names the song among all, as its request does.
        arrived: seconds, on the clock that `Queue.take` is asked by.
        attempts: how often an engine took it.
    """

    id: str
    request: GenerationRequest
    arrived: float
    attempts: int = 0
    frames: int = 0
    key: tuple = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.frames = self.request.num_frames
        self.key = self.request.batch_key()


class Queue:
    """Tickets by arrival."""

    def __init__(self, section: QueueSection, *, frame_budget: int, max_batch_size: int):
        self.frames = 0
        """Latent frames that wait."""
        self.frames_per_second = 0.0
        """What one engine makes, as measured lately; 0 while nothing is known."""
        self._section = section
        self._frame_budget = frame_budget
        self._max_batch_size = max_batch_size
        self._tickets: dict[str, Ticket] = {}
        self._kept_frames = self._kept_songs = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, id: str) -> bool:
        return id in self._tickets

    def has_room_for(self, requests: Iterable[GenerationRequest]) -> bool:
        """Whether these may wait, too. An empty queue takes anything: no song is too long for ever."""
        if not self._tickets and not self._kept_songs:
            return True
        asked = list(requests)
        frames = self.frames + self._kept_frames + sum(request.num_frames for request in asked)
        songs = len(self) + self._kept_songs + len(asked)
        return frames <= self._section.max_frames and songs <= self._section.max_songs

    @contextmanager
    def keeping_room_for(self, requests: Sequence[GenerationRequest]) -> Iterator[None]:
        """Within it, nobody else gets the room of these: they are being written down before they wait."""
        songs, frames = len(requests), sum(request.num_frames for request in requests)
        self._kept_songs += songs
        self._kept_frames += frames
        try:
            yield
        finally:
            self._kept_songs -= songs
            self._kept_frames -= frames

    def add(self, ticket: Ticket) -> None:
        """Let it wait; one that comes back keeps the place of its arrival."""
        assert ticket.id not in self._tickets
        self._tickets[ticket.id] = ticket
        self.frames += ticket.frames

    def remove(self, id: str) -> Ticket | None:
        """Take it out, if it is there."""
        ticket = self._tickets.pop(id, None)
        if ticket is not None:
            self.frames -= ticket.frames
        return ticket

    def position(self, id: str) -> int | None:
        """1 for the one that waits for longest; None for one that does not wait."""
        if id not in self._tickets:
            return None
        arrived = self._tickets[id].arrived
        return 1 + sum(other.arrived < arrived for other in self._tickets.values())

    def expected_wait(self, frames_before: int, engines: int) -> float | None:
        """Seconds until so many frames are made; None while nothing is known of the speed."""
        if not self.frames_per_second or not engines:
            return None
        return frames_before / (self.frames_per_second * engines)

    def frames_before(self, id: str) -> int:
        """Frames of what came before it."""
        arrived = self._tickets[id].arrived
        return sum(other.frames for other in self._tickets.values() if other.arrived < arrived)

    def take(self, now: float) -> list[Ticket]:
        """The next batch, longest song first; empty when nobody waits."""
        if not self._tickets:
            return []
        first = self._first(now)
        longest = first.frames
        batch = [first]
        budget, alike = self._budget(), [each for each in self._tickets.values() if each.key == first.key]
        # The longer ones would make every pass of the first dearer; they come when they are first themselves.
        alike.sort(key=lambda each: (each.frames > longest, abs(each.frames - longest), each.arrived))
        for ticket in alike:
            if ticket is first:
                continue
            if ticket.frames < LEAST_ALIKE * first.frames:
                continue
            height = max(longest, ticket.frames)
            if len(batch) >= self._max_batch_size:
                break
            if height * (len(batch) + 1) > budget or (height > longest and height > 1.25 * first.frames):
                continue
            longest = height
            batch.append(ticket)
        for ticket in batch:
            self.remove(ticket.id)
        return sorted(batch, key=lambda each: -each.frames)

    def _first(self, now: float) -> Ticket:
        oldest = min(self._tickets.values(), key=lambda each: each.arrived)
        if now - oldest.arrived >= self._section.max_wait_seconds:
            return oldest
        speed = self.frames_per_second or 100.0
        return max(self._tickets.values(), key=lambda each: (now - each.arrived) * speed / each.frames)

    def _budget(self) -> int:
        target = self._section.latency_target_seconds
        if target is None or not self.frames_per_second:
            return self._frame_budget
        return min(self._frame_budget, int(target * self.frames_per_second))
