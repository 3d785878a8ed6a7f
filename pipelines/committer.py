"""`Committer`: the one place that turns finished songs into rows of the catalog."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.catalog import Catalog
from pipelines.schema import unpack

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Rows:
    """Packed rows of one batch, or of all finished batches of one bucket."""

    songs: list[bytes] = field(default_factory=list)
    failed: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.songs) + len(self.failed)

    def add(self, other: _Rows) -> None:
        self.songs += other.songs
        self.failed += other.failed


class Committer:
    """Collects rows, holds back those of a batch until all of it is there, and writes them every so often.

    Rows come in on one thread; `commit_if_due` may be called on another.

    Args:
        run: the beginning of the names of this run's objects; no two runs have the same.
    """

    def __init__(self, catalog: Catalog, run: str, *, every_songs: int, every_seconds: float):
        self._catalog = catalog
        self._run = run
        self._every_songs = every_songs
        self._every_seconds = every_seconds
        self._open: dict[str, tuple[int, _Rows]] = {}
        self._ready: dict[int, _Rows] = defaultdict(_Rows)
        self._num_ready = 0
        self._last_commit = time.monotonic()
        self._commits = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._error: Exception | None = None
        self.committed: dict[int, int] = defaultdict(int)
        """Rows written so far, songs and failures, by bucket."""

    def take(
        self, bucket: int, batch: str, size: int, *, song: bytes | None = None, failed: bytes | None = None
    ) -> None:
        """Take the row of one song, one of `size` in its batch.

        Raises:
            StorageError: when an earlier commit could not be written.
        """
        with self._lock:
            if self._error:
                raise self._error
            _, rows = self._open.setdefault(batch, (bucket, _Rows()))
            rows.add(_Rows([song] if song else [], [failed] if failed else []))
            if len(rows) >= size:
                self._close(batch)

    def commit_if_due(self) -> None:
        """Commit when enough songs or seconds have gathered; what goes wrong is raised by the next `take`."""
        waited = time.monotonic() - self._last_commit
        if self._num_ready >= self._every_songs or (self._num_ready and waited >= self._every_seconds):
            try:
                self.commit()
            except Exception as error:
                self._error = error

    def commit(self) -> None:
        """Write all finished batches.

        Raises:
            StorageError: when that fails after every retry; the rows stay here.
        """
        with self._writing:
            with self._lock:
                ready, self._ready = self._ready, defaultdict(_Rows)
                self._num_ready = 0
            try:
                while ready:
                    bucket = next(iter(ready))
                    self._write(bucket, ready[bucket])
                    del ready[bucket]
            finally:
                with self._lock:
                    for bucket, rows in ready.items():
                        self._ready[bucket].add(rows)
                        self._num_ready += len(rows)
                self._last_commit = time.monotonic()

    def finish(self) -> None:
        """Write everything, also what came of batches that will not become whole: Ray has dropped the rest."""
        with self._lock:
            for batch in list(self._open):
                self._close(batch)
        self.commit()

    def _close(self, batch: str) -> None:
        bucket, rows = self._open.pop(batch)
        self._ready[bucket].add(rows)
        self._num_ready += len(rows)

    def _write(self, bucket: int, rows: _Rows) -> None:
        name = f"{self._run}-{self._commits:06d}"
        # Failures first: once the songs of a batch stand there, the batch is over.
        if rows.failed:
            self._catalog.add_failed(bucket, name, pa.concat_tables([unpack(row) for row in rows.failed]))
        if rows.songs:
            self._catalog.add_songs(bucket, name, pa.concat_tables([unpack(row) for row in rows.songs]))
        self._commits += 1
        self.committed[bucket] += len(rows)
        logger.debug("committed %d songs and %d failures of bucket %d", len(rows.songs), len(rows.failed), bucket)
