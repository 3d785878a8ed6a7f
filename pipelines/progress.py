"""Progress for a person (one bar), for a log (a line every so often), and for other programs (`progress.json`)."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from tqdm import tqdm

from pipelines import layout
from pipelines.errors import StorageError
from pipelines.padding import Padding
from pipelines.quantities import duration_text
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0
FILE_SECONDS = 15.0
TICK_SECONDS = 0.5
NOW_SECONDS = 60.0
"""The span over which the speed of the moment is told."""


@dataclass(slots=True)
class Counts:
    """What a run is to make and what it has made so far.

    Attributes:
        seconds_to_make, audio_seconds: of audio, asked for and made.
        price_per_hour: of all engines together; None: not known.
    """

    songs_to_make: int
    seconds_to_make: float
    songs_planned: int = 0
    songs_already: int = 0
    engines: int = 0
    price_per_hour: float | None = None
    made: int = 0
    audio_seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    rerolls: int = 0
    quarantined: int = 0
    switches: int = 0
    padding: Padding = field(default_factory=Padding)

    @property
    def failed(self) -> int:
        """Songs that could not be made."""
        return self.failures.total()

    @property
    def over(self) -> int:
        """Songs that need no more work."""
        return self.made + self.failed


class Progress:
    """Shows `counts` while a run goes on, from a thread of its own.

    Args:
        on_tick: called by that thread about twice a second.
    """

    def __init__(self, counts: Counts, storage: Storage, run: str, on_tick: Callable[[], None]):
        self.counts = counts
        self._storage = storage
        self._run = run
        self._on_tick = on_tick
        self._started = time.monotonic()
        self._started_at = _now()
        self._seconds_over = 0.0
        self._recent: deque[tuple[float, float]] = deque([(self._started, 0.0)])
        """Moments, and seconds of audio made until then."""
        self._end = threading.Event()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=counts.songs_to_make, unit="song", dynamic_ncols=True, leave=False)
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()

    def made(self, asked: float, made: float) -> None:
        """Count a song as made, with the seconds that were asked for and that it has."""
        self._seconds_over += asked
        self.counts.made += 1
        self.counts.audio_seconds += made

    def failed(self, error_class: str, seconds: float) -> None:
        """Count a song as failed."""
        self._seconds_over += seconds
        self.counts.failures[error_class] += 1

    def close(self, state: str) -> None:
        """Stop showing; leave `state` in progress.json."""
        self._end.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()
        self._write(state)

    def line(self) -> str:
        """Where the run stands, in a few words."""
        counts = self.counts
        failed = f", {counts.failed:,} failed" if counts.failed else ""
        left = self._seconds_left()
        if not counts.over:
            return f"{counts.songs_to_make:,} songs to make; loading the model, then the first batch"
        return (
            f"{counts.made:,} of {counts.songs_to_make:,} songs{failed}, {self._speed():.1f} s of audio a second "
            f"({self._speed_now():.1f} now), {'time left unknown' if left is None else duration_text(left) + ' left'}"
        )

    def _watch(self) -> None:
        last_line = last_file = time.monotonic()
        while not self._end.wait(TICK_SECONDS):
            self._on_tick()
            now = time.monotonic()
            self._recent.append((now, self.counts.audio_seconds))
            while len(self._recent) > 2 and now - self._recent[1][0] > NOW_SECONDS:
                self._recent.popleft()
            if self._bar is not None:
                self._bar.n = self.counts.over
                self._bar.set_postfix_str(f"{self._speed():.1f} s of audio/s, {self.counts.failed} failed")
            elif now - last_line >= LOG_SECONDS:
                logger.info(self.line())
                last_line = now
            if now - last_file >= FILE_SECONDS:
                self._write("running")
                last_file = now

    def _speed(self) -> float:
        return self.counts.audio_seconds / max(time.monotonic() - self._started, 1e-9)

    def _speed_now(self) -> float:
        (begin, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end - begin) if end > begin else 0.0

    def _seconds_left(self) -> float | None:
        if not self._seconds_over:
            return None
        elapsed = time.monotonic() - self._started
        return max(0.0, (self.counts.seconds_to_make / self._seconds_over - 1) * elapsed)

    def _write(self, state: str) -> None:
        counts, left = self.counts, self._seconds_left()
        price = counts.price_per_hour
        facts = {
            "state": state,
            "run": self._run,
            "songs_planned": counts.songs_planned,
            "songs_already": counts.songs_already,
            "songs_to_make": counts.songs_to_make,
            "songs_made": counts.made,
            "songs_failed": counts.failed,
            "failures": dict(counts.failures),
            "rerolls": counts.rerolls,
            "quarantined": counts.quarantined,
            "lora_switches": counts.switches,
            "padding": round(counts.padding.share, 4),
            "audio_seconds": round(counts.audio_seconds, 3),
            "audio_seconds_left": round(max(0.0, counts.seconds_to_make - self._seconds_over), 3),
            "real_time_factor": round(self._speed(), 3),
            "real_time_factor_now": round(self._speed_now(), 3),
            "engines": counts.engines,
            "seconds_left": None if left is None else round(left),
            "cost_left": None if left is None or price is None else round(left / 3600 * price, 2),
            "started_at": self._started_at,
            "updated_at": _now(),
        }
        try:
            self._storage.put(layout.PROGRESS, json.dumps(facts, indent=2).encode())
        except StorageError as error:  # Worth no job.
            logger.warning("%s", error)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
