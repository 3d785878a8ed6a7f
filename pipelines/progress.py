"""Progress for a person (one bar), for a log (a line every so often), and for other programs (`progress.json`)."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from tqdm import tqdm

from pipelines import layout
from pipelines.errors import StorageError
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0
FILE_SECONDS = 30.0
TICK_SECONDS = 0.5


@dataclass(slots=True)
class Counts:
    """What a run is to make and what it has made so far."""

    songs_to_make: int
    seconds_to_make: float
    """Of audio."""
    made: int = 0
    failed: int = 0
    audio_seconds: float = 0.0

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
        self._counts = counts
        self._storage = storage
        self._run = run
        self._on_tick = on_tick
        self._started = time.monotonic()
        self._started_at = _now()
        self._seconds_over = 0.0
        self._end = threading.Event()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=counts.songs_to_make, unit="song", dynamic_ncols=True, leave=False)
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()

    def add(self, *, made: bool, seconds: float) -> None:
        """Count a song as made or failed; `seconds` is what was asked for."""
        self._seconds_over += seconds
        if made:
            self._counts.made += 1
            self._counts.audio_seconds += seconds
        else:
            self._counts.failed += 1

    def close(self, state: str) -> None:
        """Stop showing; leave `state` in progress.json."""
        self._end.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()
        self._write(state)

    def line(self) -> str:
        """Where the run stands, in a few words."""
        counts = self._counts
        failed = f", {counts.failed:,} failed" if counts.failed else ""
        left = self._seconds_left()
        if not counts.made and not counts.failed:
            return f"{counts.songs_to_make:,} songs to make; loading the model, then the first batch"
        return (
            f"{counts.made:,} of {counts.songs_to_make:,} songs{failed}, {self._speed():.1f} s of audio a second, "
            f"{'time left unknown' if left is None else duration_text(left) + ' left'}"
        )

    def _watch(self) -> None:
        last_line = last_file = time.monotonic()
        while not self._end.wait(TICK_SECONDS):
            self._on_tick()
            now = time.monotonic()
            if self._bar is not None:
                self._bar.n = self._counts.over
                self._bar.set_postfix_str(f"{self._speed():.1f} s of audio/s, {self._counts.failed} failed")
            elif now - last_line >= LOG_SECONDS:
                logger.info(self.line())
                last_line = now
            if now - last_file >= FILE_SECONDS:
                self._write("running")
                last_file = now

    def _speed(self) -> float:
        return self._counts.audio_seconds / max(time.monotonic() - self._started, 1e-9)

    def _seconds_left(self) -> float | None:
        if not self._seconds_over:
            return None
        elapsed = time.monotonic() - self._started
        return max(0.0, (self._counts.seconds_to_make / self._seconds_over - 1) * elapsed)

    def _write(self, state: str) -> None:
        counts, left = self._counts, self._seconds_left()
        facts = {
            "state": state,
            "run": self._run,
            "songs_to_make": counts.songs_to_make,
            "songs_made": counts.made,
            "songs_failed": counts.failed,
            "audio_seconds": round(counts.audio_seconds, 3),
            "audio_seconds_per_second": round(self._speed(), 3),
            "seconds_left": None if left is None else round(left),
            "started_at": self._started_at,
            "updated_at": _now(),
        }
        try:
            self._storage.put(layout.PROGRESS, json.dumps(facts, indent=2).encode())
        except StorageError as error:  # Worth no job.
            logger.warning("%s", error)


def duration_text(seconds: float) -> str:
    """Seconds as people say them: `2 h 05 min`, `3 min 20 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
