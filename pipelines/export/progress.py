"""How far an export is: a bar for a person, a line every so often for a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from pipelines.export.rendering import Song
from pipelines.quantities import duration_text

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0


class ExportProgress:
    """Counts the songs that go by.

    Args:
        songs: to be exported by this run.
        shards: the same.
    """

    def __init__(self, songs: int, shards: int):
        self.songs = songs
        self.shards = shards
        self.done_songs = 0
        self.done_shards = 0
        self.bytes = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=songs, unit="song", dynamic_ncols=True, leave=False)

    def watch(self, songs: Iterable[Song]) -> Iterator[Song]:
        """The same songs, counted."""
        for song in songs:
            yield song
            self.done_songs += 1
            self.bytes += sum(len(file.data) for file in song.files)
            self._show()

    def shard_done(self, songs: int) -> None:
        """Count a shard that is where it belongs; `songs` is all of it, read or not."""
        self.done_shards += 1
        self.done_songs = max(self.done_songs, songs)
        self._show()

    def line(self) -> str:
        """Where the export stands, in a few words."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        left = (self.songs / self.done_songs - 1) * seconds if self.done_songs else None
        return (
            f"{self.done_songs:,} of {self.songs:,} songs, {self.done_shards:,} of {self.shards:,} shards, "
            f"{self.done_songs / seconds:.1f} songs/s, {self.bytes / seconds / 1e6:.1f} MB/s, "
            f"{'time left unknown' if left is None else duration_text(left) + ' left'}"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self.done_songs - self._bar.n)
            rate = self.bytes / max(now - self._started, 1e-9) / 1e6
            self._bar.set_postfix_str(f"{rate:.1f} MB/s, {self.done_shards} of {self.shards} shards", refresh=False)
        elif now - self._last_line >= LOG_SECONDS:
            logger.info(self.line())
            self._last_line = now
