"""What happens before the first song: inputs are opened and judged, the plan is written, what is there is counted.

`prepare` is for a manifest; `reopen` goes on with the plan that a catalog has. Both hold the catalog's lease while they
are entered, for a plan is written into it too.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone

from acestep.provenance import check_signing
from acestep.result import ModelInfo
from acestep.scoring import check_scorer
from pipelines.census import BucketState, take_census
from pipelines.config import RunConfig
from pipelines.engines import describe_model, tokenizers_of
from pipelines.errors import ConfigError, OutputError, UnusableInputError
from pipelines.kept import KeptLatents
from pipelines.lease import SETTLE_SECONDS, Lease
from pipelines.manifest import Manifest
from pipelines.plan import PlanRecord, make_plan
from pipelines.resolution import Resolution
from pipelines.speed import SpeedTable
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

_MANY_TIMES = 4
"""A bucket this much larger than a new catalog's is worth a word."""


@dataclass(slots=True)
class Prepared:
    """What a run begins with.

    Attributes:
        run: its name; it holds `lease`.
        states: every bucket of the plan against the catalog.
        speeds: what is known of how fast songs are made.
    """

    config: RunConfig
    storage: Storage
    run: str
    lease: Lease
    model: ModelInfo
    plan: PlanRecord
    states: list[BucketState]
    speeds: SpeedTable

    @property
    def missing(self) -> list[BucketState]:
        """The buckets with something to make."""
        return [state for state in self.states if state.missing]

    @property
    def to_make(self) -> int:
        """Songs that are neither there nor recorded as failed."""
        return sum(state.missing for state in self.states)

    @property
    def failed(self) -> int:
        """Songs that failed earlier."""
        return sum(state.failed for state in self.states)

    @property
    def changed(self) -> int:
        """Songs to make that exist already, made by another model or with other settings."""
        return sum(state.changed for state in self.states)

    def count_again(self) -> None:
        """Look at the catalog once more."""
        self.states = take_census(self.storage, self.plan.plan, range(self.plan.num_buckets), run=self.run)


@contextmanager
def prepare(config: RunConfig, manifest: str, output: str) -> Iterator[Prepared]:
    """The plan of a manifest and what of it is missing.

    Raises:
        UnusableInputError: for a config, manifest or output that cannot be used; nothing has been written then.
        CheckpointError: for weights that cannot be used.
    """
    config = _with_absolute_paths(config)
    storage = open_output(config, output)
    source = Manifest(_absolute(manifest), config.storage.storage_options)
    model = describe_model(config)
    _warn_of_noise(model)
    _check_plug_ins(config)
    storage.probe()
    made = storage.missing_folders()
    try:
        with _leased(config, storage) as (run, lease):
            plan = _current_plan(config, source, storage, model)
            yield _prepared(config, storage, run, lease, model, plan)
    except UnusableInputError:
        storage.remove_empty(made)
        raise


@contextmanager
def reopen(config: RunConfig, output: str) -> Iterator[Prepared]:
    """A catalog's own plan and what of it is missing.

    Raises:
        OutputError: where there is no catalog, or the config is for another model.
    """
    config = _with_absolute_paths(config)
    storage = open_output(config, output)
    plan = PlanRecord.read(storage)
    if plan is None:
        raise OutputError(f"output {storage.url}: there is no catalog; `acestep generate` makes one")
    model = describe_model(config)
    if model.fingerprint != plan.model["fingerprint"]:
        raise OutputError(
            f"output {storage.url}: its plan was made for the model {plan.model['name']} "
            f"({plan.model['fingerprint']}), the config names {model.name} ({model.fingerprint})"
        )
    _warn_of_noise(model)
    with _leased(config, storage) as (run, lease):
        yield _prepared(config, storage, run, lease, model, plan)


def open_output(config: RunConfig, output: str) -> Storage:
    """The storage of a catalog.

    Raises:
        OutputError: for a URL that cannot be a catalog's.
    """
    try:
        storage = Storage(output, config.storage.storage_options, attempts=config.storage.attempts)
    except UnusableInputError as error:
        raise OutputError(f"output {error}") from error
    if output.startswith("memory:"):
        raise OutputError(
            f"output {output}: a process's own memory cannot be written by others; use a folder or a store"
        )
    return storage


def config_of(storage: Storage, overrides: Sequence[str] = ()) -> RunConfig:
    """The config that a catalog was last made with, changed by `a.b=c` overrides; its secrets were not written down.

    Raises:
        OutputError: where there is no catalog.
    """
    plan = PlanRecord.read(storage)
    if plan is None:
        raise OutputError(f"output {storage.url}: there is no catalog; `acestep generate` makes one")
    return RunConfig.load(plan.config, overrides)


@contextmanager
def _leased(config: RunConfig, storage: Storage) -> Iterator[tuple[str, Lease]]:
    settings, run = config.lease, _run_name()
    lease = Lease(
        storage,
        run,
        heartbeat_seconds=settings.heartbeat_seconds,
        stale_seconds=settings.stale_seconds,
        settle_seconds=min(SETTLE_SECONDS, settings.heartbeat_seconds / 5),
    )
    with lease:
        yield run, lease


def _prepared(
    config: RunConfig, storage: Storage, run: str, lease: Lease, model: ModelInfo, plan: PlanRecord
) -> Prepared:
    prepared = Prepared(config, storage, run, lease, model, plan, [], SpeedTable.load(storage))
    prepared.count_again()
    return prepared


def _current_plan(config: RunConfig, source: Manifest, storage: Storage, model: ModelInfo) -> PlanRecord:
    """The plan of a manifest, and a word about what is different from the plan that was there."""
    before = PlanRecord.read(storage)
    plan = _plan(config, source, storage, model)
    if before is not None and before.plan != plan.plan:
        _tell_changes(before, plan)
    if plan.config != config.shown():  # An old plan goes on; what it does not depend on may have changed.
        plan = dataclasses.replace(plan, config=config.shown())
        plan.write(storage)
    if (songs := plan.planned // plan.num_buckets) > _MANY_TIMES * config.plan.bucket_rows:
        logger.warning(
            "this catalog was begun with %d buckets and now holds %d songs in each: restarts are slower and need more "
            "memory than in a new output",
            *(plan.num_buckets, songs),
        )
    return plan


def _plan(config: RunConfig, source: Manifest, storage: Storage, model: ModelInfo) -> PlanRecord:
    prompt_tokenizer, lyric_vocab = tokenizers_of(config)
    resolution = Resolution(
        config.defaults,
        config.seed,
        model.fingerprint,
        config.rendition,
        KeptLatents(storage),
        num_songs=config.num_songs,
        sweep=config.sweep,
        preflight=config.preflight,
        prompt_tokenizer=prompt_tokenizer,
        lyric_vocab=lyric_vocab,
    )
    about = {"model": dataclasses.asdict(model), "config": config.shown()}
    return make_plan(source, storage, resolution, bucket_rows=config.plan.bucket_rows, about=about)


def _tell_changes(before: PlanRecord, now: PlanRecord) -> None:
    """What is different from the plan that was there, where it makes songs anew."""
    if before.model["fingerprint"] != now.model["fingerprint"]:
        earlier, later = (
            f"{model['name']} in {model['dtype']} ({model['fingerprint']})" for model in (before.model, now.model)
        )
        logger.warning("the model was %s and is %s: every song is made anew", earlier, later)
    elif before.sound_version != now.sound_version:
        logger.warning("this version of the code makes other sounds than before: every song is made anew")
    for name in ("defaults", "audio", "loudness", "seed", "best_of", "sweep", "num_songs"):
        if (was := before.config.get(name)) != (is_now := now.config.get(name)):
            logger.warning("the config's %s was %s and is %s", name, was, is_now)
    if before.manifest["identity"] != now.manifest["identity"]:
        logger.info("the manifest is another one than before: only rows that changed are made")


def _check_plug_ins(config: RunConfig) -> None:
    """What engines and encoders would otherwise find out much later.

    Raises:
        ConfigError: for a scorer that there is not.
        ProvenanceError: for a certificate that cannot sign.
    """
    if config.best_of.candidates > 1:
        try:
            check_scorer(config.best_of.scorer, config.best_of.options)
        except ValueError as error:
            raise ConfigError(f"best_of.scorer: {error}") from error
    if config.provenance.mode == "c2pa":
        signing = config.provenance
        check_signing(signing.certificate, signing.private_key, signing.algorithm)


def _warn_of_noise(model: ModelInfo) -> None:
    if model.random_weights:
        logger.warning("checkpoint %r has random weights: what it makes is noise, not music", model.name)


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The workers' current folder is not ours."""
    model, provenance = config.model, config.provenance
    paths = {name: _absolute(value) for name in ("checkpoint", "lyric_vocab") if (value := getattr(model, name))}
    if paths.get("checkpoint") and model.checkpoint == "tiny":
        del paths["checkpoint"]
    names = ("certificate", "private_key")
    pems = {name: _absolute(value) for name in names if (value := getattr(provenance, name))}
    changes = {"model": model.model_copy(update=paths), "provenance": provenance.model_copy(update=pems)}
    return config.model_copy(update=changes)


def _absolute(path: str) -> str:
    """An absolute path where there is such a file; anything else as it is."""
    full = os.path.abspath(os.path.expanduser(path))
    return full if os.path.exists(full) else path


def _run_name() -> str:
    """Sorts by time; no two are equal."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
