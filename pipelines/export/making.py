"""`make_shards`: songs are read or encoded ahead, over the borders of shards; one is put while the next is built."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from acestep.errors import OutOfMemoryError
from pipelines.errors import StorageError
from pipelines.export.columns import delivered
from pipelines.export.formats import Format
from pipelines.export.ordered import in_order
from pipelines.export.planning import Shard
from pipelines.export.progress import ExportProgress
from pipelines.export.record import ExportRecord, SplitRecord
from pipelines.export.rendering import COLUMNS, Renderer, Song, fetch, render, start_worker
from pipelines.export.selection import Selection
from pipelines.storage import Storage

RECORD_SECONDS = 5.0
"""How often finished shards are written down; those finished since are made again after a kill."""

_READERS = 16
_READ_AHEAD_BYTES = 256 << 20


def make_shards(
    todo: Sequence[tuple[Shard, str]],
    selection: Selection,
    format: Format,
    renderer: Renderer,
    record: ExportRecord,
    split: SplitRecord,
    destination: Storage,
    *,
    workers: int | None = None,
) -> None:
    """Make shards and put each at its key; `split.shards` gets the sizes.

    Args:
        workers: processes that encode, where anything is to be encoded; None: one for each core, on a GPU one.

    Raises:
        UnusableInputError: for a song that is not there or damaged.
        StorageError: when storage kept failing.
        OutOfMemoryError: when a process that encodes was killed.
    """
    progress = ExportProgress(sum(shard.songs for shard, _ in todo), len(todo))
    written = time.monotonic()

    def put(key: str, data: bytes, count: int) -> None:
        nonlocal written
        destination.put(key, data)
        split.shards[key] = len(data)
        progress.shard_done(count)
        if time.monotonic() - written >= RECORD_SECONDS:
            record.write(destination)
            written = time.monotonic()

    encodes = bool(format.needs_audio and renderer.options.renditions)
    workers = _workers(renderer, workers) if encodes else _READERS
    pool = _encoders(renderer, workers) if encodes else ThreadPoolExecutor(workers, thread_name_prefix="read")
    putter = ThreadPoolExecutor(1, thread_name_prefix="put")
    putting: Future[None] | None = None
    done = 0
    try:
        songs = progress.watch(_songs(pool, workers, todo, selection, renderer) if format.needs_audio else iter(()))
        for shard, key in todo:
            rows = delivered(selection.rows(shard.first, shard.songs), renderer.options)
            data = format.write(key, rows, islice(songs, shard.songs))
            done += shard.songs
            if putting is not None:
                putting.result()
            putting = putter.submit(put, key, data, done)
        if putting is not None:
            putting.result()
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "a process that encodes was killed, most likely for its memory; try again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        putter.shutdown()
        progress.close()
        with suppress(StorageError):  # What is being raised says more.
            record.write(destination)


def _workers(renderer: Renderer, workers: int | None) -> int:
    on_gpu = renderer.decoder is not None and renderer.decoder.device != "cpu"
    return workers or (1 if on_gpu else os.cpu_count() or 1)


def _encoders(renderer: Renderer, workers: int) -> Executor:
    # Not forked: threads of storage would be cut off in the middle.
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=start_worker, initargs=(renderer,))


def _songs(
    pool: Executor, workers: int, todo: Sequence[tuple[Shard, str]], selection: Selection, renderer: Renderer
) -> Iterator[Song]:
    """All songs of the shards, in order."""

    def rows() -> Iterator[dict[str, Any]]:
        for shard, _ in todo:
            yield from selection.rows(shard.first, shard.songs).select(COLUMNS).to_pylist()

    if isinstance(pool, ProcessPoolExecutor):
        return in_order(pool, render, rows(), most=2 * workers)
    copy = partial(fetch, renderer.storage)
    cost = lambda row: row["bytes"] or 0  # noqa: E731
    return in_order(pool, copy, rows(), most=2 * workers, cost=cost, budget=_READ_AHEAD_BYTES)
