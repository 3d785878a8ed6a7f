"""`Estimate`: what a plan will take and cost, before anything is made, and how sure that is."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import layout
from pipelines.config import RunConfig
from pipelines.devices import UNKNOWN, local_gpus
from pipelines.errors import ConfigError, UnusableInputError
from pipelines.estimate_text import over_budget, text_of
from pipelines.planned_work import Cut, PlannedWork, work_left
from pipelines.preparation import Prepared
from pipelines.sections import BudgetSection
from pipelines.sizes import LATENT_BYTES, bytes_per_second, formats
from pipelines.speed import Range, Speed, SpeedKey, SpeedTable

ESTIMATE = f"{layout.PLAN}/estimate.json"

START_SECONDS, READY_FACTOR = 6.0, 2.0
"""For Ray and the first bucket, before engines load; with loading, give or take a factor of two."""
SHOWN_GPUS = (1, 8, 64)
"""What an estimate is for where nobody said how many GPUs there will be."""


class BudgetError(UnusableInputError):
    """A job that is estimated to take more than it may."""


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """The job on so many GPUs (without GPUs: engines on CPUs)."""

    gpus: float
    engines: int
    seconds: Range
    """From start to end."""
    gpu_hours: Range
    """That the GPUs are held: work, loading, and waiting for the last batch."""
    cost: Range | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is left of a plan, and what it takes; ranges hold the truth in four of five cases.

    Attributes:
        rows, refused: of the manifest.
        failed: songs whose failure stands; they are not made.
        gpu_hours: of work alone, on however many GPUs.
        bytes: by rendition, the chosen one first.
        encode_hours: of CPUs, beside the GPUs; None where nobody measured it.
    """

    rows: int
    refused: int
    planned: int
    failed: int
    to_make: int
    audio_seconds: float
    batches: int
    model: str
    speed: Speed
    on_gpus: bool
    advice: str
    gpu_hours: Range
    longest_batch: float
    runs: tuple[RunEstimate, ...]
    bytes: dict[str, Range]
    latent_bytes: float
    encode_hours: float | None
    price: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = dataclasses.asdict(dataclasses.replace(self, speed=dataclasses.replace(self.speed, files={})))
        del values["speed"]["files"]
        return values

    def text(self) -> str:
        """For a person, a few lines."""
        return text_of(self)

    def refuse_over(self, budget: BudgetSection) -> None:
        """Hold the estimate against a budget; where it is for several numbers of GPUs, one that fits is enough.

        Raises:
            BudgetError: when the middle of the estimate is over it.
        """
        unit = "GPU" if self.on_gpus else "engine"
        over = [over_budget(run, budget, unit) for run in self.runs]
        if self.to_make and over and all(over):
            reasons = "; ".join(dict.fromkeys(reason for each in over for reason in each))
            sure = "" if self.speed.is_measured else f"; the speed is {self.speed.basis}"
            raise BudgetError(f"{reasons}; nothing is made: raise the limit, or make fewer or shorter songs{sure}")


def estimate_of(prepared: Prepared, gpus: Sequence[float] = ()) -> Estimate:
    """The estimate of what is left of a prepared job; it is left in `plan/estimate.json`, too.

    Args:
        gpus: for how many GPUs; none: as many as the config says or this machine has.

    Raises:
        ConfigError: for a number of GPUs where the engines have none.
    """
    config, plan = prepared.config, prepared.plan
    if gpus and not config.resources.num_gpus:
        raise ConfigError("resources.num_gpus is 0: engines are on CPUs, as many as resources.num_actors says")
    cut = Cut(config.batch.frame_budget, config.batch.max_batch_size, config.best_of.candidates)
    work = work_left(prepared.storage, plan.plan, prepared.states, cut)
    device, advice = _device(config, prepared)
    speed = prepared.speeds.find(SpeedKey.of(config, prepared.model, device))
    if not speed.is_measured:
        advice = " ".join([*([advice] if advice else []), _how_to_measure(prepared)])
    counts = {"rows": plan.rows, "refused": plan.rejected, "planned": plan.planned, "failed": prepared.failed}
    estimate = estimate_work(config, work, speed, prepared.model.name, gpus, advice=advice, **counts)
    prepared.storage.put(ESTIMATE, json.dumps(estimate.as_dict(), indent=2).encode())
    return estimate


def estimate_work(
    config: RunConfig,
    work: PlannedWork,
    speed: Speed,
    model: str,
    gpus: Sequence[float] = (),
    *,
    rows: int,
    refused: int = 0,
    planned: int,
    failed: int = 0,
    advice: str = "",
) -> Estimate:
    """The estimate of some work at some speed; songs that fail the quality gate and are made again are not in it."""
    (busy, longest), share = speed.of_batches(work.batches), config.resources.num_gpus or 1.0
    audio = config.audio
    sizes = {
        each.rendition: Range.total(
            bytes_per_second(each, rate, speed.files).times(seconds) for rate, seconds in work.audio_seconds.items()
        )
        for each in formats(audio)
    }
    audio_seconds = sum(work.audio_seconds.values())
    files = speed.files.get(audio.rendition)
    encode_hours = None
    if files and files.audio_seconds:
        encode_hours = files.encode_seconds / files.audio_seconds * audio_seconds / 3600
    runs = [_run(config, speed, busy, longest, len(work.batches), number) for number in gpus or default_gpus(config)]
    return Estimate(
        **{"rows": rows, "refused": refused, "planned": planned, "failed": failed, "to_make": work.songs},
        audio_seconds=audio_seconds,
        batches=len(work.batches),
        model=model,
        speed=speed,
        on_gpus=bool(config.resources.num_gpus),
        advice=advice,
        gpu_hours=busy.times(share / 3600),
        longest_batch=longest,
        runs=tuple(runs),
        bytes=sizes,
        latent_bytes=LATENT_BYTES * audio_seconds if config.keep_latents else 0.0,
        encode_hours=encode_hours,
        price=config.budget.price_per_gpu_hour,
    )


def default_gpus(config: RunConfig) -> list[float]:
    """How many GPUs a job will have, as far as that is known here."""
    resources = config.resources
    engines = resources.max_actors or resources.num_actors
    if engines:
        return [engines * (resources.num_gpus or 1)]
    if not resources.num_gpus:
        return [1]
    local = len(local_gpus()) if not _on_cluster(config) else 0
    return [float(local)] if local >= resources.num_gpus else [float(number) for number in SHOWN_GPUS]


def _run(config: RunConfig, speed: Speed, busy: Range, longest: float, batches: int, gpus: float) -> RunEstimate:
    share = config.resources.num_gpus or 1.0
    engines = max(1, int(gpus / share + 1e-9))
    seconds = hours = Range(0.0, 0.0, 0.0)
    if batches:
        at_work = min(engines, batches)
        # No schedule that leaves no engine idle while a batch waits is longer than this.
        tail = (1 - 1 / at_work) * longest / max(busy.middle, 1e-9)
        ready = speed.load_seconds + START_SECONDS
        seconds = busy.times(1 / at_work + tail).plus(Range(ready / READY_FACTOR, ready, ready * READY_FACTOR))
        hours = seconds.times(engines * share / 3600)
    price = config.budget.price_per_gpu_hour
    return RunEstimate(gpus, engines, seconds, hours, None if price is None else hours.times(price))


def _device(config: RunConfig, prepared: Prepared) -> tuple[str, str]:
    """What the engines will run on, as far as that is known here, and how to say it better."""
    if config.device == "cpu":
        engines = config.resources.num_actors or 1
        threads = config.resources.cpu_threads or max(1, (os.cpu_count() or 1) // engines)
        return f"cpu x{threads}", ""
    if config.device == "mps":
        return "mps", ""
    speeds: SpeedTable = prepared.speeds
    if config.budget.device:
        return speeds.device_named(config.budget.device), ""
    if not _on_cluster(config) and (local := local_gpus()):
        return local[0], ""
    last = speeds.last_device(prepared.model)
    return (last, "") if last else (UNKNOWN, "Say which: --set 'budget.device=NVIDIA H100'.")


def _how_to_measure(prepared: Prepared) -> str:
    small = " As if this model were of the published size." if prepared.model.random_weights else ""
    return f"Make some hundred songs there first, and the catalog knows.{small}"


def _on_cluster(config: RunConfig) -> bool:
    return (config.ray.address or os.environ.get("RAY_ADDRESS") or "local") != "local"
