"""`Ahead`: the next batches are made while a step is taken."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from acestep.training.trainer import Batches


class Ahead:
    """The batches of another source, some of them made in a thread before they are asked for."""

    def __init__(self, batches: Batches, count: int):
        self._batches, self._count = batches, count
        self._waiting: dict[tuple[int, int, int], Future[Any]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def __call__(self, step: int, rank: int = 0, world_size: int = 1) -> Any:
        """The batch of a step; raises what making it raised."""
        ahead = [(step + more, rank, world_size) for more in range(self._count + 1)]
        for key in ahead:
            if key not in self._waiting:
                self._waiting[key] = self._pool.submit(self._batches, *key)
        batch = self._waiting.pop(ahead[0]).result()
        self._waiting = {key: self._waiting[key] for key in ahead[1:]}
        return batch

    def close(self) -> None:
        """Make no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
