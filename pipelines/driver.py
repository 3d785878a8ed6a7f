"""`Driver`: one run's making of what is missing; it starts the stages, counts and commits what comes out of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from acestep.result import ModelInfo
from pipelines import execution
from pipelines.catalog import Catalog, failed_table
from pipelines.census import BucketState, take_census
from pipelines.committer import Committer
from pipelines.config import RunConfig
from pipelines.cutting import Cutting, lost_songs
from pipelines.errors import Stop, StoppedError, StorageError, UnusableInputError
from pipelines.progress import Counts, Progress
from pipelines.schema import unpack
from pipelines.storage import Storage
from pipelines.summary import Summary

logger = logging.getLogger(__name__)


class Driver:
    """Makes what is missing of a plan and writes into `summary` what became of it."""

    def __init__(self, config: RunConfig, storage: Storage, model: ModelInfo, plan: str, summary: Summary):
        self._config = config
        self._storage = storage
        self._model = model
        self._summary = summary
        self._cutting = Cutting(plan, summary.run, config.batch.frame_budget, config.batch.max_batch_size)
        self._catalog = Catalog(storage)
        self._committer = Committer(
            self._catalog,
            summary.run,
            every_songs=config.commit.every_songs,
            every_seconds=config.commit.every_seconds,
        )
        self._engines: dict[str, float] = {}

    def make(self, states: Sequence[BucketState]) -> None:
        """Make what is missing in these buckets; ends early with a signal or when storage keeps failing."""
        import ray

        started = time.perf_counter()
        connected = execution.connect(self._config)
        try:
            num_actors = execution.count_actors(self._config, local=connected and not _is_cluster(self._config))
            self._summary.times.start = time.perf_counter() - started
            counts = Counts(sum(state.missing for state in states), sum(state.missing_seconds for state in states))
            progress = Progress(counts, self._storage, self._summary.run, self._committer.commit_if_due)
            state = "failed"
            try:
                with stop_signals(self._summary):
                    self._execute([each.bucket for each in states], num_actors, progress)
                state = "finished" if self._summary.stopped is None else "stopped"
            finally:
                progress.close(state)
        finally:
            if connected:
                ray.shutdown()

    def _execute(self, buckets: Sequence[int], num_actors: int, progress: Progress) -> None:
        from ray.data.exceptions import ExecutionTimeoutError
        from ray.exceptions import RayError

        started = time.perf_counter()
        try:
            self._stream(self._cutting, buckets, num_actors, progress)
            self._committer.finish()
            self._again_alone(buckets, num_actors, progress)
        except KeyboardInterrupt:
            number = self._summary.signal = self._summary.signal or signal.SIGINT
            self._summary.stopped = signal.Signals(number).name
        except StoppedError as error:
            if error.error_class == "input":
                raise UnusableInputError(str(error)) from None
            if error.error_class == "internal":
                raise
            self._summary.stopped = str(error)
        except StorageError as error:
            self._summary.stopped = str(error)
        except (RayError, ExecutionTimeoutError) as error:
            logger.error("Ray gave up", exc_info=True)
            self._summary.stopped = f"Ray gave up: {str(error).strip().splitlines()[-1]}"
        finally:
            self._finish()
            self._summary.engines = num_actors
            self._summary.times.load = max(self._engines.values(), default=0.0)
            self._summary.times.execution = time.perf_counter() - started

    def _stream(self, cutting: Cutting, buckets: Sequence[int], num_actors: int, progress: Progress) -> None:
        stream = execution.songs_stream(self._storage, self._config, self._model, cutting, buckets, num_actors)
        with closing(stream):
            for rows in stream:
                for row in rows:
                    if row["stop"]:
                        raise StoppedError(Stop.of(row["stop"]))
                    self._engines[row["actor"]] = row["load_seconds"]
                    self._count(row, progress)
                    self._committer.take(
                        row["bucket"], row["batch"], row["size"], song=row["song"], failed=row["failed"]
                    )

    def _again_alone(self, buckets: Sequence[int], num_actors: int, progress: Progress) -> None:
        """Songs whose process died on every attempt, one by one; what still kills it is a failure."""
        for last in (False, True):
            states = take_census(self._storage, self._cutting.plan, buckets, run=self._summary.run)
            lost = [state.bucket for state in states if state.missing]
            if not lost:
                return
            if not last:
                count = sum(state.missing for state in states)
                logger.warning("the process died on batches with %d songs; trying these one by one", count)
                alone = dataclasses.replace(self._cutting, alone=True)
                self._stream(alone, lost, num_actors, progress)
                self._committer.finish()
        message = f"the process that made or encoded this song died, {execution.ATTEMPTS} times with this song alone"
        for bucket in lost:
            table = lost_songs(bucket, self._storage, self._cutting)
            attempts, run = 2 * execution.ATTEMPTS, self._summary.run
            failed = failed_table(table, "device", message, attempts=attempts, batch="", run=run)
            self._catalog.add_failed(bucket, f"{run}-lost", failed)
            for id, seconds in zip(table.column("id").to_pylist(), table.column("duration").to_pylist(), strict=True):
                self._summary.failed.add("device", repr(id), message)
                progress.add(made=False, seconds=seconds)

    def _count(self, row: dict[str, Any], progress: Progress) -> None:
        summary, times = self._summary, self._summary.times
        if row["song"]:
            song = unpack(row["song"]).to_pylist()[0]
            summary.made += 1
            summary.audio_seconds += song["duration"]
            summary.bytes_written += song["bytes"]
            times.generate += song["generate_seconds"]
            times.encode += song["encode_seconds"]
            times.upload += song["upload_seconds"]
            progress.add(made=True, seconds=song["requested_duration"])
        else:
            failed = unpack(row["failed"]).to_pylist()[0]
            summary.failed.add(failed["error_class"], repr(failed["id"]), failed["message"])
            progress.add(made=False, seconds=json.loads(failed["request"])["duration"])

    def _finish(self) -> None:
        """What a stopped run still commits: whole batches, so that the next one makes the same engine calls."""
        try:
            self._committer.commit()
        except StorageError as error:
            self._summary.stopped = self._summary.stopped or str(error)


def _is_cluster(config: RunConfig) -> bool:
    return (config.ray.address or os.environ.get("RAY_ADDRESS") or "local") != "local"


@contextmanager
def stop_signals(summary: Summary) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a run with what is finished committed; Ray's own handlers would not."""

    def stop(number: int, frame: Any) -> None:
        summary.signal = number
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # As nohup has it.
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
