"""The job as one streaming Ray Data execution; every setting of Ray that it depends on stands here.

    buckets -> cut_bucket (tasks) -> one batch per block -> GenerateStage (warm pool) -> encode_songs (tasks) -> driver

The pool is never fused with the tasks before it (a repartition stands between) nor after it (Ray fuses only what comes
behind tasks), so that engines do nothing but generate while CPUs cut, encode and upload. One execution runs over all
buckets: an execution for each would load the weights again each time.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acestep.result import ModelInfo
from pipelines.config import RunConfig
from pipelines.cutting import Cutting, cut_bucket
from pipelines.draining import DrainSwitch
from pipelines.encoding import encode_songs, encoder_of
from pipelines.errors import ConfigError
from pipelines.generating import GenerateStage
from pipelines.speed import SpeedKey
from pipelines.storage import Storage

if TYPE_CHECKING:
    from ray.data import DataContext, Dataset

logger = logging.getLogger(__name__)

CUTTERS = 1
"""Buckets read at the same time: one cuts about a thousand batches a second, and batches with the same adapter stay
together."""
CALLS = 2
"""Batches that an engine's process works on: one in the engine, one on its way out."""
CUTTER_CPUS = 0.5
ATTEMPTS = 3
"""How often a batch or song is tried when the process that works on it dies."""
BLOCK_BYTES = 32 << 20
"""Songs gather to about so much before they go to an encoder: few enough for encoders to share a batch."""
RAY_DATA_SETTINGS = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # What a killed run had reserved stays so for this long (Ray: 180 s), and its successor has only the rest.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
}
"""Read by Ray where it is imported."""
LOCAL_CPUS = 4
"""What a small machine is said to have at least: stages that each wait for a CPU would block each other on fewer."""


def connect(config: RunConfig) -> bool:
    """Connect to the Ray that the config names, or start one on this machine; False if that was done before.

    Raises:
        ConfigError: when it cannot be reached.
    """
    resources = config.resources
    engines = max(resources.num_actors or 1, resources.max_actors or 1)
    needed = math.ceil(engines * resources.num_cpus + resources.encode_cpus + CUTTERS * CUTTER_CPUS)
    return connect_to(config.ray.address, config.ray.runtime_env, needed)


def connect_to(address: str | None, runtime_env: dict[str, Any] | None, needed: int) -> bool:
    """Connect to a Ray, or start one on this machine that is said to have at least `needed` CPUs.

    Returns:
        False if that was done before.

    Raises:
        ConfigError: when it cannot be reached.
    """
    import ray

    if ray.is_initialized():
        return False
    for name, value in RAY_DATA_SETTINGS.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    if runtime_env is not None:
        options["runtime_env"] = runtime_env
    if address and address != "local":
        try:
            _require_listener(address)
            ray.init(address, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"ray.address: {address!r} cannot be reached: {error}") from error
        return True
    num_cpus = max(LOCAL_CPUS, os.cpu_count() or 1, needed)
    ray.init("local", num_cpus=num_cpus, include_dashboard=False, **options)
    return True


def count_actors(config: RunConfig, *, local: bool) -> tuple[int, int]:
    """How many engines to start, and up to how many: what the config says, or as many as the GPUs there are allow.

    Raises:
        ConfigError: when this machine, started for the job, can hold none.
    """
    import ray

    resources = config.resources
    gpus = ray.cluster_resources().get("GPU", 0)
    fit = math.floor(gpus / resources.num_gpus) if resources.num_gpus else None
    wanted = resources.num_actors or max(1, fit or 1)
    if fit is not None and fit < wanted:
        what = f"{wanted} engines want {resources.num_gpus:g} GPUs each, and Ray has {gpus:g}"
        if local:
            raise ConfigError(f"resources.num_gpus: {what} on this machine; without GPUs set it to 0")
        logger.warning("%s; waiting for the cluster to grow", what)
    return wanted, max(wanted, resources.max_actors or wanted)


@dataclass(frozen=True, slots=True)
class Stages:
    """All that the stages of one execution depend on.

    Attributes:
        fewest, most: engines; the pool grows and shrinks between them with the backlog.
        isolated: a batch is tried for itself only: behind or beside another in a process, it would die with it.
    """

    config: RunConfig
    storage: Storage
    model: ModelInfo
    run: str
    cutting: Cutting
    fewest: int
    most: int
    switch: DrainSwitch
    isolated: bool = False


def songs_stream(stages: Stages, buckets: Sequence[int]) -> Generator[list[dict[str, Any]], None, None]:
    """Make what is missing of `buckets`; rows of `encoding.ENCODED` as they come, a few at a time."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray counts buckets here, not the batches that they become.
    warnings.filterwarnings("ignore", message="The (minimum|maximum) number of concurrent")
    with DataContext.current(_context(DataContext.get_current().copy(), stages.config)):
        dataset = songs_dataset(stages, buckets)
    blocks: Any = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with closing(blocks):  # Whoever stops early wants the stages to stop, too.
        for block in blocks:
            yield block.to_pylist()


def songs_dataset(stages: Stages, buckets: Sequence[int]) -> Dataset:
    """The stages, not yet running."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    config, calls = stages.config, 1 if stages.isolated else CALLS
    source: Dataset = ray.data.from_items([{"bucket": bucket} for bucket in buckets], override_num_blocks=len(buckets))
    batches = _map(
        source,
        cut_bucket,
        retries={"max_retries": ATTEMPTS - 1},
        fn_kwargs={"storage": stages.storage, "cutting": stages.cutting, "is_draining": stages.switch},
        compute=TaskPoolStrategy(size=CUTTERS),
        num_cpus=CUTTER_CPUS,
    ).repartition(target_num_rows_per_block=1, strict=True)
    recycled = config.resources.recycle_after_batches is not None
    songs = _map(
        batches,
        GenerateStage,
        # A process that is replaced on purpose takes a try from what waits for it.
        retries={"max_task_retries": ATTEMPTS - 1 + recycled},
        fn_constructor_kwargs=_stage_arguments(stages),
        compute=ActorPoolStrategy(
            min_size=stages.fewest,
            max_size=stages.most,
            initial_size=stages.fewest,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=calls > 1,
            max_tasks_in_flight_per_actor=1 if stages.isolated else None,
        ),
        **_engine_resources(config),
    )
    return _map(
        songs,
        encode_songs,
        retries={"max_retries": ATTEMPTS - 1},
        fn_kwargs={"encoder": encoder_of(config, stages.storage, stages.run)},
        num_cpus=config.resources.encode_cpus,
    )


def _require_listener(address: str) -> None:
    """Ray itself would go on trying for ten minutes, and then end the process."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _map(dataset: Dataset, function: Any, *, retries: dict[str, int], **options: Any) -> Dataset:
    """`map_batches` row by row, each tried a bounded number of times.

    Without a bound, a song that kills the process that works on it would do so for ever. The argument for that has no
    other name in Ray before 2.64.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        options |= {"batch_size": 1, "batch_format": "pyarrow"} | retries
        return dataset.map_batches(function, **options)


def _stage_arguments(stages: Stages) -> dict[str, Any]:
    config, settings = stages.config, stages.config.model
    threads = None
    if config.device == "cpu":
        threads = config.resources.cpu_threads or max(1, (os.cpu_count() or 1) // stages.most)
    return {
        "run": stages.run,
        "storage": stages.storage,
        "quality": config.quality,
        "best_of": config.best_of,
        "stopping": config.stopping,
        "speed_key": SpeedKey.of(config, stages.model, ""),
        "is_draining": stages.switch,
        "recycle_after": config.resources.recycle_after_batches,
        "engine": config.engine,
        "checkpoint": settings.checkpoint,
        "fingerprint": stages.model.fingerprint,
        "threads": threads,
        "warm_up": settings.warm_up,
        "device": config.device,
        "dtype": config.dtype,
        "lyric_vocab": settings.lyric_vocab,
        "storage_options": settings.storage_options or None,
        "keep_latents": config.keep_latents,
        "cpu_offload": settings.cpu_offload,
        "torch_compile": settings.torch_compile,
        "frame_budget": config.batch.frame_budget,
        "max_batch_size": config.batch.max_batch_size,
    }


def _engine_resources(config: RunConfig) -> dict[str, float]:
    resources = config.resources
    if not resources.num_gpus:
        return {"num_cpus": resources.num_cpus}
    if resources.num_cpus == 1:  # What Ray gives an actor with a GPU anyway; saying so earns a warning.
        return {"num_gpus": resources.num_gpus}
    return {"num_gpus": resources.num_gpus, "num_cpus": resources.num_cpus}


def _context(context: DataContext, config: RunConfig) -> DataContext:
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    # A batch whose process died too often is dropped, not the job; the catalog tells afterwards what is missing.
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = ATTEMPTS
    context.execution_no_progress_timeout_s = config.ray.no_progress_seconds
    return context
