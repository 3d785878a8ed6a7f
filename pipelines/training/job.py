"""`run_training`: a checkpoint and data in, a trained checkpoint out; run again, it goes on from its newest state.

Workers are processes of Ray Train; when one dies, all start again from the newest state in the output.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import threading
from typing import Any

from acestep.checkpoint import TINY
from acestep.errors import ACEStepError
from pipelines.config_file import absolute
from pipelines.errors import StorageError
from pipelines.shown_progress import ShownProgress
from pipelines.storage import Storage
from pipelines.training.batches import find_files, song_files
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import Worker, open_checkpoint, train
from pipelines.training.metrics import read_progress
from pipelines.training.states import TrainingStates
from pipelines.training_data.items import AUDIO
from pipelines.training_data.layout import TRAINING_RECORD, export_key

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
_NOISE = "Failed to query Ray Train Controller|constructor arguments in the object store"
"""What Ray Train says every second where there is no dashboard, and once in any case; of no use to anybody."""


class TrainingError(ACEStepError):
    """A training that ended before its last step."""


def run_training(config: TrainingConfig, output: str, *, local: bool = False, device: str = "cpu") -> str:
    """Train, and say where what was trained lies.

    Args:
        output: a folder; a path or an fsspec URL: states, metrics and the trained checkpoint or adapter.
        local: in this process, without Ray, on `device`.

    Raises:
        UnusableInputError: for a config, data or output that cannot be used.
        CheckpointError: for a checkpoint that cannot be used.
        TrainingError: when it ended early.
    """
    config = _with_absolute_paths(config)
    storage = Storage(output, config.storage.storage_options, attempts=config.storage.attempts)
    open_checkpoint(config)
    _require_data(config)
    storage.probe()
    _tell_changes(config, storage)
    steps, states = config.optimization.steps, TrainingStates(storage, config.saving.keep).keys()
    done = int(states[-1].rpartition("-")[2].removesuffix(".pt")) if states else 0
    progress = ShownProgress(steps, "steps", done)
    try:
        if local:
            train(config, storage, Worker(device=device), progress.show)
        else:
            _train_with_ray(config, storage, progress)
    except FloatingPointError as error:
        raise TrainingError(f"{error}; a lower optimization.learning_rate may help") from error
    finally:
        progress.close()
    return f"{storage.url}/{export_key('lora' if config.part == 'lora' else 'checkpoint', None)}"


def _with_absolute_paths(config: TrainingConfig) -> TrainingConfig:
    """The workers' current folder is not ours."""
    start, data = config.start, config.data
    names = [name for name in ("lyric_vocab", "lora") if getattr(start, name)]
    names += [] if start.checkpoint == TINY else ["checkpoint"]
    paths = {name: absolute(getattr(start, name)) for name in names}
    places = {name: [_absolute_place(place) for place in getattr(data, name)] for name in ("songs", "audio")}
    return config.model_copy(update={"start": start.model_copy(update=paths), "data": data.model_copy(update=places)})


def _absolute_place(place: str) -> str:
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def _require_data(config: TrainingConfig) -> None:
    """What workers would only find out later."""
    if config.part in ("transformer", "lora"):
        song_files(config)
    elif config.data.audio:
        find_files(config.data.audio, AUDIO, config.storage.storage_options, "data.audio")


def _tell_changes(config: TrainingConfig, storage: Storage) -> None:
    """A training may go on with other settings, but not unnoticed."""
    try:
        before = json.loads(storage.get(TRAINING_RECORD))
    except FileNotFoundError:
        return
    now = json.loads(json.dumps(config.shown()))
    for section, values in now.items():
        earlier = before.get(section)
        if isinstance(values, dict) and isinstance(earlier, dict):
            changes = {f"{section}.{name}": (earlier.get(name), values[name]) for name in values}
        else:
            changes = {section: (earlier, values)}
        for name, (was, is_now) in changes.items():
            if was != is_now:
                logger.warning("%s was %s when this training was last started, and is %s", name, was, is_now)


def _train_with_ray(config: TrainingConfig, storage: Storage, progress: ShownProgress) -> None:
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _NOISE)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from pipelines.execution import connect_to

    workers = config.workers
    needed = math.ceil(workers.count * workers.num_cpus)
    connected = connect_to(config.ray.address, config.ray.runtime_env, needed)
    try:
        with tempfile.TemporaryDirectory(prefix="acestep-train-") as folder, _Watch(storage, progress):
            trainer = TorchTrainer(
                _work,
                train_loop_config={"config": config.model_dump(), "storage": storage},
                scaling_config=ScalingConfig(
                    num_workers=workers.count,
                    use_gpu=workers.use_gpu,
                    resources_per_worker={"CPU": workers.num_cpus} | ({"GPU": 1} if workers.use_gpu else {}),
                ),
                # Of states and metrics Ray knows nothing; here it keeps its own notes.
                run_config=RunConfig(
                    name="training",
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=workers.max_failures),
                ),
            )
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise TrainingError(f"the training ended early: {error}; start it again to go on") from error
    finally:
        if connected:
            ray.shutdown()


def _work(settings: dict[str, Any]) -> None:
    """In each worker's process."""
    import ray.train
    from ray.train.torch import get_device
    from torch.nn.parallel import DistributedDataParallel

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()

    def wrap(module: Any) -> Any:
        return DistributedDataParallel(
            module, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
        )

    worker = Worker(rank, world_size, str(device), wrap if world_size > 1 else None)
    train(TrainingConfig.model_validate(settings["config"]), settings["storage"], worker)


class _Watch:
    """Shows what the first worker writes down of itself, while entered."""

    def __init__(self, storage: Storage, progress: ShownProgress):
        self._storage, self._progress = storage, progress
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            try:
                said = read_progress(self._storage)
            except (StorageError, ValueError) as error:
                logger.warning("%s", error)
                continue
            if said is not None:
                self._progress.show(said["step"], said["words"])
