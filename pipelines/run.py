"""`run_job`: a manifest in, a catalog of songs out; run again, it goes on where it was."""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import time
from datetime import datetime, timezone

from acestep.result import ModelInfo
from pipelines.census import take_census
from pipelines.config import RunConfig
from pipelines.driver import Driver
from pipelines.engines import describe_model
from pipelines.errors import OutputError, UnusableInputError
from pipelines.kept import KeptLatents
from pipelines.manifest import Manifest
from pipelines.plan import PlanRecord, make_plan, read_rejects
from pipelines.progress import duration_text
from pipelines.resolution import Resolution
from pipelines.storage import Storage
from pipelines.summary import EXAMPLES, Summary

logger = logging.getLogger(__name__)

SHOWN_REJECTS = 20
"""Refused rows that are logged; all of them are in `plan/rejects.parquet`."""


def run_job(config: RunConfig, manifest: str, output: str) -> Summary:
    """Make every song of a manifest that is not in the output yet.

    Args:
        manifest: a file, folder or glob of Parquet, JSONL or CSV; a path or an fsspec URL.
        output: a folder; a path or an fsspec URL.

    Returns:
        What was done; a song that failed is told there and in `failed/`, and ends nothing.

    Raises:
        UnusableInputError: for a config, manifest or output that cannot be used; nothing has been written then.
        CheckpointError: for weights that cannot be used.
    """
    started = time.perf_counter()
    config = _with_absolute_paths(config)
    storage = _open_output(config, output)
    source = Manifest(manifest, config.storage.storage_options)
    model = describe_model(config)
    if model.random_weights:
        logger.warning("checkpoint %r has random weights: what it makes is noise, not music", model.name)
    storage.probe()
    plan = _plan(config, source, storage, model)
    summary = Summary(storage.url, _run_name(), plan.planned, rejected=plan.rejected)
    summary.random_weights = model.random_weights
    _tell_rejects(storage, plan, summary)
    states = take_census(storage, plan.plan, range(plan.num_buckets))
    missing = [state for state in states if state.missing]
    summary.already = plan.planned - sum(state.missing for state in missing)
    summary.times.plan = time.perf_counter() - started
    logger.info(
        "%d songs planned, %d there already, %d to make: %s of audio",
        *(plan.planned, summary.already, plan.planned - summary.already),
        duration_text(sum(state.missing_seconds for state in missing)),
    )
    if missing:
        Driver(config, storage, model, plan.plan, summary).make(missing)
    summary.times.total = time.perf_counter() - started
    return summary


def _open_output(config: RunConfig, output: str) -> Storage:
    try:
        storage = Storage(output, config.storage.storage_options, attempts=config.storage.attempts)
    except UnusableInputError as error:
        raise OutputError(f"output {error}") from error
    if output.startswith("memory:"):
        raise OutputError(
            f"output {output}: a process's own memory cannot be written by others; use a folder or a store"
        )
    return storage


def _plan(config: RunConfig, source: Manifest, storage: Storage, model: ModelInfo) -> PlanRecord:
    resolution = Resolution(config.defaults, config.seed, model.fingerprint, config.rendition, KeptLatents(storage))
    about = {"model": dataclasses.asdict(model), "config": config.shown()}
    return make_plan(source, storage, resolution, bucket_rows=config.plan.bucket_rows, about=about)


def _tell_rejects(storage: Storage, plan: PlanRecord, summary: Summary) -> None:
    if not plan.rejected:
        return
    rejects = read_rejects(storage).slice(0, SHOWN_REJECTS).to_pylist()
    logger.warning("%d of %d rows of the manifest cannot be used:", plan.rejected, plan.rows)
    for row in rejects:
        id = "" if row["id"] is None else f" (id {row['id']!r})"
        logger.warning("  %s row %d%s: %s", row["file"], row["row"], id, row["message"])
    if plan.rejected > len(rejects):
        logger.warning("  ... and %d more, in %s/plan/rejects.parquet", plan.rejected - len(rejects), storage.url)
    for row in rejects[:EXAMPLES]:
        summary.failed.add("input", f"{row['file']} row {row['row']}", row["message"])
    summary.failed.counts["input"] = plan.rejected


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The workers' current folder is not ours."""
    model = config.model
    paths = {
        name: os.path.abspath(os.path.expanduser(value))
        for name, value in (("checkpoint", model.checkpoint), ("lyric_vocab", model.lyric_vocab))
        if value and value != "tiny" and os.path.exists(os.path.expanduser(value))
    }
    return config.model_copy(update={"model": model.model_copy(update=paths)})


def _run_name() -> str:
    """Sorts by time; no two are equal."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
