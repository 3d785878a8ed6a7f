"""`Workers`: this machine's cores, for work in many equal pieces; or this process alone, for work that is small."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, TypeVar

from acestep.errors import ACEStepError

Task = TypeVar("Task")
Answer = TypeVar("Answer")

MOST = 8
"""Processes; one that hands out work keeps no more of them busy."""
_AHEAD = 2
"""Tasks for each process that are handed out before the first answer is there."""


class Workers:
    """A number of processes while it is entered; with one, everything happens here."""

    def __init__(self, count: int):
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count > 1:
            # Not forked: this process may have threads, of storage and of Ray.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Task], Answer], tasks: Iterable[Task]) -> Iterator[Answer]:
        """The answers in the order of the tasks, of which only a few are taken ahead.

        Raises:
            ACEStepError: when a process died.
        """
        if self._pool is None:
            yield from map(function, tasks)
            return
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(function, task))
                if len(waiting) >= _AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ACEStepError(
                "a process that judged the manifest died: out of memory, or a script that starts a job without "
                "`if __name__ == '__main__':`"
            ) from error


def cores() -> int:
    """Cores that this process may use, at most `MOST`."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST)


def _begin() -> None:
    """A worker leaves signals from the keyboard to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
