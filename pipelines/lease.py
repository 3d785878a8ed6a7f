"""`Lease`: one writer at a time on an output, told by an object that its holder writes again every few seconds.

Conditional writes are not used, for some servers ignore them. Who wants the lease writes a claim, waits, and reads it
back: of two claims the later one stands, and everybody sees the same one. A holder that finds a claim over its own
lease writes its lease again, so that one who was slow, or whose clock is wrong, is refused and not let in.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from types import TracebackType

from acestep.errors import ACEStepError
from pipelines import layout
from pipelines.errors import OutputError, StorageError
from pipelines.holder import Holder
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0
"""How long a claim must stand, where nobody else can have thought the place to be free for longer."""
_OLD = 4
"""A lease that is so many times its own patience old, by the clock, is not watched for a change first."""
_RESCUE = 2.5
"""Heartbeats that a claim must stand where a holder may live after all."""


class LeaseLostError(ACEStepError):
    """Somebody else works on this output now, or nobody could be told any longer that this process lives."""

    error_class = "storage"


class Lease:
    """The right to write to an output; a context manager, or `acquire` and `release`.

    Args:
        run: who holds it, for others to read: a run's name, or what else is done.
        heartbeat_seconds: how often the holder says that it lives.
        stale_seconds: a holder that said nothing for so long is dead; it knows that by itself, and stops.
        settle_seconds: how long a claim must stand before it counts.
        on_lost: called once, by a thread of the lease, when it is lost.
    """

    def __init__(
        self,
        storage: Storage,
        run: str,
        *,
        heartbeat_seconds: float = 5.0,
        stale_seconds: float = 30.0,
        settle_seconds: float = SETTLE_SECONDS,
        on_lost: Callable[[], None] | None = None,
    ):
        # A heartbeat that fails is tried again at the next one; the pauses of retries would make it late.
        self._storage = Storage(storage.url, storage.options, attempts=1)
        self._patient = storage
        self._settle = settle_seconds
        self._on_lost = on_lost
        self._mine = Holder.here(run, heartbeat_seconds, stale_seconds)
        self._last_beat = 0.0
        self._lost: str | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def lost(self) -> str | None:
        """Why this lease does not count any longer; None while it does."""
        silent = time.monotonic() - self._last_beat
        if self._thread and not self._lost and silent >= self._mine.stale_seconds:
            return f"the lease of {self._storage.url} could not be renewed for {silent:.0f} s"
        return self._lost

    def check(self) -> None:
        """Do nothing while the lease is held.

        Raises:
            LeaseLostError: when it is lost; whoever works under it must stop.
        """
        if reason := self.lost:
            raise LeaseLostError(reason)

    def acquire(self) -> None:
        """Take the lease, waiting if need be until it is sure that an earlier holder is dead.

        Raises:
            OutputError: when somebody else holds it and lives.
            StorageError: when the output cannot be read or written.
        """
        assert self._thread is None, "a lease is acquired once"
        self._mine = replace(self._mine, token=secrets.token_hex(16), beat=0)
        while True:
            looked = time.monotonic()
            found = read_lease(self._patient)
            if found is None or found.is_gone():
                settle = self._settle
            elif found.age() > _OLD * found.stale_seconds:
                settle = _RESCUE * found.heartbeat_seconds  # The clocks may differ: it can come back in that time.
            elif self._watch(found):
                settle = self._settle
                looked = time.monotonic()
                if (now := read_lease(self._patient)) is None or not now.same_beat(found):
                    continue
            else:
                continue
            if found is not None:
                logger.warning("taking over %s from %s, which is dead", self._storage.url, found.name)
            if self._claim(looked, settle):
                break
        self._end.clear()
        self._lost = None
        self._beat(self._patient)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lease back; nothing happens when it is not held, or not any longer."""
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        self._thread = None
        try:
            if (found := read_lease(self._storage)) and found.token == self._mine.token:
                self._storage.delete([layout.LEASE])
        except StorageError as error:  # It becomes stale.
            logger.warning("%s", error)

    def _watch(self, found: Holder) -> bool:
        """Whether a lease stays as it is for as long as its holder may be silent; False when it is given back.

        Raises:
            OutputError: when it does not.
        """
        patience = found.stale_seconds
        logger.warning("%s: %s may be at work; waiting up to %.0f s", self._storage.url, found.name, patience)
        started = time.monotonic()
        while (waited := time.monotonic() - started) < patience:
            time.sleep(min(patience / 20, found.heartbeat_seconds / 2, 1.0))
            now = read_lease(self._patient)
            if now is None:
                return False
            if not now.same_beat(found):
                self._refuse(now, seconds=min(max(now.age(), 0.0), waited))
        return True

    def _claim(self, looked: float, settle: float) -> bool:
        """Write a claim and see whether it stands; False when it has vanished, so that the place is free again.

        Raises:
            OutputError: when somebody else's stands there.
        """
        self._put(self._patient)
        if time.monotonic() - looked > settle / 2:  # Somebody may have come and settled in between.
            settle = max(settle, _RESCUE * self._mine.heartbeat_seconds)
        time.sleep(settle)
        now = read_lease(self._patient)
        if now is not None and now.token != self._mine.token:
            self._refuse(now, seconds=max(now.age(), 0.0))
        return now is not None

    def _refuse(self, holder: Holder, seconds: float) -> None:
        raise OutputError(
            f"output {self._storage.url} is in use by {holder.name}, which was alive {seconds:.0f} s ago; "
            "only one can write there at a time"
        )

    def _keep(self) -> None:
        while not self._end.wait(self._mine.heartbeat_seconds):
            try:
                found = read_lease(self._storage)
                if found is None or found.token == self._mine.token or found.is_claim:
                    self._beat(self._storage)
                else:
                    self._lost = f"{found.name} has taken over {self._storage.url}"
            except StorageError as error:
                logger.warning("the lease could not be renewed: %s", error)
            if self.lost:
                self._lost = self.lost
                logger.error("%s", self._lost)
                if self._on_lost:
                    self._on_lost()
                return

    def _beat(self, storage: Storage) -> None:
        self._mine = replace(self._mine, beat=self._mine.beat + 1)
        self._put(storage)

    def _put(self, storage: Storage) -> None:
        started = time.monotonic()
        self._mine = replace(self._mine, time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
        storage.put(layout.LEASE, self._mine.text().encode())
        self._last_beat = started


def read_lease(storage: Storage) -> Holder | None:
    """Who holds the lease of an output, dead or alive; None when it is free."""
    try:
        return Holder.parse(storage.get(layout.LEASE))
    except FileNotFoundError:
        return None
