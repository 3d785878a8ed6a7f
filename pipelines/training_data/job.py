"""`prepare_data`: music in, Parquet files of latents and tokens out; run again, it goes on where it was.

One streaming Ray Data execution: numbers of shards go to a pool of encoders, which write the files (`ShardMaker`).
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from acestep.checkpoint import TINY
from acestep.errors import ACEStepError
from pipelines.config_file import absolute
from pipelines.errors import Stop, StoppedError
from pipelines.quantities import duration_text
from pipelines.shown_progress import ShownProgress
from pipelines.storage import Storage
from pipelines.training_data.config import PrepareConfig
from pipelines.training_data.layout import REJECTS, SONGS
from pipelines.training_data.plan import current_plan

if TYPE_CHECKING:
    from ray.data import DataContext

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a shard is tried when the process that works on it dies."""


@dataclass(slots=True)
class PrepareSummary:
    """What a preparation did."""

    output: str
    shards: int
    shards_before: int
    songs: int = 0
    """Of the source, gone through by this run."""
    rows: int = 0
    rejected: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)
    """Why shards were not made."""

    @property
    def exit_code(self) -> int:
        """0: all is there; 3: some songs could not be used; 4: some shards were not made."""
        return 4 if self.failures else 3 if self.rejected else 0

    def text(self) -> str:
        """For people."""
        before = f" ({self.shards_before:,} of them before)" if self.shards_before else ""
        lines = [
            f"{self.shards - len(self.failures):,} of {self.shards:,} shards are in {self.output}/{SONGS}{before}",
            f"{self.rows:,} rows made of {self.songs:,} songs, {duration_text(self.audio_seconds)} of audio, in "
            f"{duration_text(self.seconds)}",
        ]
        if self.rejected:
            lines.append(f"{self.rejected:,} songs could not be used; why: {self.output}/{REJECTS}")
        lines += [f"shard {shard} was not made: {why}; start again" for shard, why in list(self.failures.items())[:5]]
        return "\n".join(lines)


def prepare_data(
    config: PrepareConfig, output: str, source: str | None = None, *, local: bool = False
) -> PrepareSummary:
    """Make the shards that the output does not hold yet.

    Args:
        output: a folder; a path or an fsspec URL.
        source: a manifest (Parquet, JSONL, CSV), or a folder of audio; None: pieces of the synthesiser.
        local: in this process, without Ray.

    Raises:
        UnusableInputError: for a config, source or output that cannot be used.
        CheckpointError: for an encoder that cannot be used.
    """
    started = time.perf_counter()
    config = _with_absolute_paths(config)
    options = config.storage.storage_options
    storage = Storage(output, options, attempts=config.storage.attempts)
    storage.probe()
    plan = current_plan(config, source, storage)
    missing = plan.missing(storage)
    summary = PrepareSummary(storage.url, len(plan.sizes), len(plan.sizes) - len(missing), rejected=plan.rejected)
    songs = sum(plan.sizes[shard] for shard in missing)
    logger.info(
        "%d songs in %d shards, of which %d are there; %d could not be planned",
        *(sum(plan.sizes), len(plan.sizes), summary.shards_before, plan.rejected),
    )
    if missing:
        words = _made_here(config, storage, missing) if local else _made_by_ray(config, storage, missing)
        _follow(words, songs, summary)
        died = "the process that made it died"
        summary.failures = {shard: summary.failures.get(shard, died) for shard in plan.missing(storage)}
    summary.seconds = time.perf_counter() - started
    return summary


def _with_absolute_paths(config: PrepareConfig) -> PrepareConfig:
    """The workers' current folder is not ours."""
    model = config.model
    names = [name for name in ("checkpoint", "lyric_vocab") if getattr(model, name) not in (None, TINY)]
    paths = {name: absolute(getattr(model, name)) for name in names}
    teachers = [absolute(name) for name in config.teachers]
    return config.model_copy(update={"model": model.model_copy(update=paths), "teachers": teachers})


def _follow(words: Iterator[dict[str, Any]], songs: int, summary: PrepareSummary) -> None:
    """Show how far it is, and count."""
    progress = ShownProgress(songs, "songs")
    latest: dict[int, dict[str, Any]] = {}
    nothing = dict.fromkeys(("done", "rows", "rejects", "audio_seconds"), 0)
    try:
        for made in words:
            if made["error"]:
                summary.failures[made["shard"]] = made["error"]
                continue
            before, latest[made["shard"]] = latest.get(made["shard"], nothing), made
            summary.songs += made["done"] - before["done"]
            summary.rows += made["rows"] - before["rows"]
            summary.rejected += made["rejects"] - before["rejects"]
            summary.audio_seconds += made["audio_seconds"] - before["audio_seconds"]
            seconds = duration_text(summary.audio_seconds)
            progress.show(summary.songs, f"{seconds} of audio, {summary.rejected:,} rejected")
    finally:
        progress.close()


def _made_here(config: PrepareConfig, storage: Storage, shards: list[int]) -> Iterator[dict[str, Any]]:
    from pipelines.training_data.shards import ShardMaker

    maker = ShardMaker(config, storage, config.storage.storage_options)
    for shard in shards:
        yield from maker.make(shard)


def _made_by_ray(config: PrepareConfig, storage: Storage, shards: list[int]) -> Iterator[dict[str, Any]]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    from pipelines.execution import connect_to
    from pipelines.training_data.shards import ShardMaker

    resources = config.resources
    needed = math.ceil((resources.num_actors or 1) * resources.num_cpus) + 1
    connected = connect_to(config.ray.address, config.ray.runtime_env, needed)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    gpus: dict[str, Any] = {"num_gpus": resources.num_gpus} if resources.num_gpus else {}
    try:
        with DataContext.current(_context(DataContext.get_current().copy(), config)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
            rows: Any = [{"shard": shard} for shard in shards]
            dataset = ray.data.from_items(rows, override_num_blocks=len(shards)).map_batches(
                ShardMaker,
                batch_size=1,
                batch_format="pyarrow",
                fn_constructor_kwargs={
                    "config": config,
                    "output": storage,
                    "source_options": config.storage.storage_options,
                },
                # No shard waits at one encoder while another has none.
                compute=ActorPoolStrategy(size=_num_actors(config, len(shards)), max_tasks_in_flight_per_actor=1),
                max_task_retries=ATTEMPTS - 1,
                num_cpus=resources.num_cpus,
                **gpus,
            )
        blocks: Any = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with closing(blocks):
            for block in blocks:
                yield from block.to_pylist()
    except ray.exceptions.RayError as error:  # As when an encoder cannot be loaded there.
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, ACEStepError) else StoppedError(Stop("internal", str(error))) from error
    finally:
        if connected:
            ray.shutdown()


def _num_actors(config: PrepareConfig, shards: int) -> int:
    import ray

    resources = config.resources
    if resources.num_actors:
        return min(resources.num_actors, shards)
    if not resources.num_gpus:
        return 1
    return max(1, min(shards, math.floor(ray.cluster_resources().get("GPU", 0) / resources.num_gpus)))


def _context(context: DataContext, config: PrepareConfig) -> DataContext:
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # Each word about a shard comes at once.
    # A shard whose process died too often is dropped, not the job; the files tell afterwards what is missing.
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = ATTEMPTS
    context.execution_no_progress_timeout_s = config.ray.no_progress_seconds
    return context
