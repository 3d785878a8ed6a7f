"""`Driver`: one run's making of what is missing; it starts the stages, counts and commits what comes out of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from pipelines import execution, layout
from pipelines.catalog import Catalog, failed_table, keys_of
from pipelines.census import BucketState, take_census
from pipelines.committer import Committer
from pipelines.cutting import Cutting, batch_name, lost_songs
from pipelines.draining import DrainSwitch
from pipelines.errors import Stop, StoppedError, StorageError, UnusableInputError
from pipelines.execution import Stages
from pipelines.lease import LeaseLostError
from pipelines.metrics import Metrics
from pipelines.preparation import Prepared
from pipelines.progress import Counts, Progress
from pipelines.runs import write_run
from pipelines.schema import unpack
from pipelines.speed import SpeedKey
from pipelines.stopping import Stopping
from pipelines.summary import Summary
from pipelines.work import Work

logger = logging.getLogger(__name__)

SPEEDS_SECONDS = 60.0
"""How often the speeds that were measured are written down."""


class Driver:
    """Makes what is missing of a plan and writes into `summary` what became of it."""

    def __init__(self, prepared: Prepared, summary: Summary):
        self._prepared = prepared
        self._config = prepared.config
        self._storage = prepared.storage
        self._plan = prepared.plan.plan
        self._summary = summary
        self._catalog = Catalog(prepared.storage)
        commit = prepared.config.commit
        self._committer = Committer(
            self._catalog, summary.run, every_songs=commit.every_songs, every_seconds=commit.every_seconds
        )
        self._load_seconds: dict[str, float] = {}
        self._observed, self._speeds_saved = False, -SPEEDS_SECONDS
        self._stopping = Stopping(prepared.config.stopping.drain_seconds)
        self._unfinished = {state.bucket: state.missing for state in prepared.missing}

    def make(self) -> None:
        """Make what is missing; ends early with a signal, a lost lease, or when storage keeps failing."""
        import ray

        started = time.perf_counter()
        connected = execution.connect(self._config)
        try:
            fewest, most = execution.count_actors(self._config, local=connected and not _is_cluster(self._config))
            self._summary.times.start = time.perf_counter() - started
            self._summary.engines = most
            self._metrics = Metrics()
            stages = self._stages(fewest, most)
            progress = Progress(self._counts(most), self._storage, self._summary.run, self._tick)
            write_run(self._storage, self._summary, "running")
            state = "failed"
            try:
                self._stopping.drain = stages.switch.turn_on
                with self._stopping:
                    self._execute(stages, progress)
                state = "finished" if self._summary.stopped is None else "stopped"
            finally:
                progress.close(state)
                times = self._summary.times
                times.total = times.plan + times.start + times.execution
                write_run(self._storage, self._summary, state)
        finally:
            if connected:
                ray.shutdown()

    def _stages(self, fewest: int, most: int) -> Stages:
        config = self._config
        cutting = Cutting(self._plan, config.batch.frame_budget, config.batch.max_batch_size, config.best_of.candidates)
        switch = DrainSwitch()
        return Stages(config, self._storage, self._prepared.model, self._summary.run, cutting, fewest, most, switch)

    def _counts(self, engines: int) -> Counts:
        missing, price = self._prepared.missing, self._config.budget.price_per_gpu_hour
        gpus = engines * self._config.resources.num_gpus
        return Counts(
            sum(state.missing for state in missing),
            sum(state.missing_seconds for state in missing),
            songs_planned=self._summary.planned,
            songs_already=self._summary.already,
            engines=engines,
            padding=self._summary.padding,
            price_per_hour=None if price is None else price * (gpus or engines),
        )

    def _execute(self, stages: Stages, progress: Progress) -> None:
        from ray.data.exceptions import ExecutionTimeoutError
        from ray.exceptions import RayError

        summary, started = self._summary, time.perf_counter()
        try:
            self._stream(stages, list(self._unfinished), progress)
            if not self._stopping.asked:
                self._committer.finish()
                self._try_lost_ones_again(stages, progress)
        except KeyboardInterrupt:
            self._stopping.asked = self._stopping.asked or "interrupted"
        except StoppedError as error:
            if error.error_class == "input":
                raise UnusableInputError(str(error)) from None
            if error.error_class == "internal":
                raise
            summary.stopped = str(error)
        except (StorageError, LeaseLostError) as error:
            summary.stopped = str(error)
        except (RayError, ExecutionTimeoutError) as error:
            logger.error("Ray gave up", exc_info=True)
            summary.stopped = f"Ray gave up: {str(error).strip().splitlines()[-1]}"
        finally:
            if self._stopping.asked:
                summary.stopped, summary.signal = self._stopping.asked, self._stopping.signal
            self._finish()
            summary.times.load = max(self._load_seconds.values(), default=0.0)
            summary.times.execution = time.perf_counter() - started

    def _stream(self, stages: Stages, buckets: Sequence[int], progress: Progress) -> None:
        stream = execution.songs_stream(stages, buckets)
        with closing(stream):
            for rows in stream:
                self._prepared.lease.check()
                for row in rows:
                    if row["stop"]:
                        raise StoppedError(Stop.of(row["stop"]))
                    self._count(row, progress)
                    self._committer.take(
                        row["bucket"], row["batch"], row["size"], song=row["song"], failed=row["failed"]
                    )

    def _try_lost_ones_again(self, stages: Stages, progress: Progress) -> None:
        """Batches whose process died on every attempt, apart from others, then song by song.

        What died with another batch is made as it was planned; what still kills its process alone is a failure.
        """
        alone = dataclasses.replace(stages.cutting, alone=True)
        for cutting, how in ((stages.cutting, "batch by batch"), (alone, "one by one")):
            lost = self._lost()
            if not lost:
                return
            count = sum(state.missing for state in lost)
            logger.warning("processes died and took %d songs along; trying these %s", count, how)
            apart = dataclasses.replace(stages, cutting=cutting, isolated=True)
            self._stream(apart, [state.bucket for state in lost], progress)
            if self._stopping.asked:
                return
            self._committer.finish()
        for state in self._lost():
            self._give_up(state.bucket, progress)

    def _lost(self) -> list[BucketState]:
        states = take_census(self._storage, self._plan, list(self._unfinished))
        return [state for state in states if state.missing]

    def _give_up(self, bucket: int, progress: Progress) -> None:
        """Record what killed its process alone, with that process's last words where it had any."""
        run, table = self._summary.run, lost_songs(bucket, self._storage, self._plan)
        for position, key in enumerate(keys_of(table)):
            batch = batch_name(bucket, [key])
            error_class, message = self._last_words(batch)
            song = table.slice(position, 1)
            failed = failed_table(song, error_class, message, attempts=2 * execution.ATTEMPTS, batch=batch, run=run)
            self._catalog.add_failed(bucket, f"{run}-lost-{position:06d}", failed)
            self._summary.failed.add(error_class, repr(key[0]), message)
            self._metrics.failure(error_class)
            progress.failed(error_class, song.column("duration")[0].as_py())

    def _last_words(self, batch: str) -> tuple[str, str]:
        message = f"the process that made or encoded this song died, {execution.ATTEMPTS} times with this song alone"
        try:
            words = json.loads(self._storage.get(layout.last_words_key(self._summary.run, batch)))
        except (FileNotFoundError, StorageError, ValueError):
            return "device", message
        return words["error_class"], f"{message}: {words['message']}"

    def _count(self, row: dict[str, Any], progress: Progress) -> None:
        summary, counts, times = self._summary, progress.counts, self._summary.times
        if row["engine"]:
            engine = json.loads(row["engine"])
            summary.device = engine["device"]
            summary.switches += engine["switches"]
            counts.switches += engine["switches"]
            summary.padding.add(*engine["padding"])
            times.generate += engine["seconds"]
            times.wait += engine["waited"]
            self._metrics.batch(engine)
            self._observe(row["actor"], engine)
        if row["song"]:
            song = unpack(row["song"]).to_pylist()[0]
            summary.made += 1
            summary.audio_seconds += song["duration"]
            summary.bytes_written += song["bytes"]
            summary.rerolls += song["attempt"] - 1
            counts.rerolls += song["attempt"] - 1
            times.encode += song["encode_seconds"]
            times.upload += song["upload_seconds"]
            progress.made(song["requested_duration"], song["duration"])
            self._metrics.song(song)
            key = SpeedKey.of(self._config, self._prepared.model, song["device"])
            self._prepared.speeds.observe_file(
                key, self._config.audio.rendition, song["duration"], song["bytes"], song["encode_seconds"]
            )
        else:
            failed = unpack(row["failed"]).to_pylist()[0]
            gated = failed["error_class"] == "quality"
            summary.failed.add(failed["error_class"], repr(failed["id"]), failed["message"])
            summary.quarantined += gated
            counts.quarantined += gated
            summary.rerolls += (failed["attempts"] - 1) * gated
            counts.rerolls += (failed["attempts"] - 1) * gated
            progress.failed(failed["error_class"], json.loads(failed["request"])["duration"])
            self._metrics.failure(failed["error_class"], failed["attempts"])

    def _observe(self, actor: str, engine: dict[str, Any]) -> None:
        """What a batch took, for the next estimate."""
        key, speeds = SpeedKey.of(self._config, self._prepared.model, engine["device"]), self._prepared.speeds
        self._observed = True
        if engine["whole"]:
            speeds.observe(key, Work(*engine["work"]), engine["seconds"], engine["songs"])
        if actor not in self._load_seconds:
            self._load_seconds[actor] = engine["load_seconds"]
            speeds.observe_load(key, engine["load_seconds"])

    def _tick(self) -> None:
        """On the thread of the progress, about twice a second."""
        self._stopping.tick()
        self._committer.commit_if_due()
        self._save_speeds()
        over = [bucket for bucket, left in self._unfinished.items() if self._committer.committed[bucket] >= left > 0]
        if over:
            take_census(self._storage, self._plan, over, run=self._summary.run)  # Which marks what is finished.
            for bucket in over:
                self._unfinished[bucket] = 0

    def _save_speeds(self) -> None:
        """At the first batch, and then now and again: an engine that is started anew reads them."""
        if self._observed and time.monotonic() - self._speeds_saved > SPEEDS_SECONDS:
            self._speeds_saved, self._observed = time.monotonic(), False
            try:
                self._prepared.speeds.save(self._storage)
            except StorageError as error:
                logger.warning("%s", error)

    def _finish(self) -> None:
        """What a stopped run still commits: whole batches, so that the next one makes the same engine calls."""
        try:
            self._prepared.lease.check()
            self._committer.commit()
            self._prepared.speeds.save(self._storage)
            touched = [bucket for bucket, rows in self._committer.committed.items() if rows]
            take_census(self._storage, self._plan, touched, run=self._summary.run)
        except (StorageError, LeaseLostError) as error:
            self._summary.stopped = self._summary.stopped or str(error)


def _is_cluster(config: Any) -> bool:
    return (config.ray.address or os.environ.get("RAY_ADDRESS") or "local") != "local"
