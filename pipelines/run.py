"""`run_job`: a manifest in, a catalog out; run again, it goes on where it was. `retry_job`: failures once more."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.config import RunConfig
from pipelines.driver import Driver
from pipelines.estimate import estimate_of
from pipelines.preparation import Prepared, prepare, reopen
from pipelines.pruning import prune
from pipelines.quantities import duration_text
from pipelines.rejects import preflight_table
from pipelines.summary import EXAMPLES, Summary

logger = logging.getLogger(__name__)


def run_job(
    config: RunConfig, manifest: str, output: str, *, dry_run: bool = False, prune_rest: bool = False
) -> Summary:
    """Make every song of a manifest that is not in the output yet.

    Args:
        manifest: a file, folder or glob of Parquet, JSONL or CSV; a path or an fsspec URL.
        output: a folder; a path or an fsspec URL.
        dry_run: stop after the plan and its estimate.
        prune_rest: in the end, remove songs that are not in the plan.

    Returns:
        What was done; a song that failed is told there and in `failed/`, and ends nothing.

    Raises:
        UnusableInputError: for a config, manifest or output that cannot be used; nothing has been written then.
        CheckpointError: for weights that cannot be used.
        BudgetError: for a job that is estimated to cost more than it may; the plan is written, nothing is made.
    """
    started = time.perf_counter()
    with prepare(config, manifest, output) as prepared:
        return _make(prepared, started, dry_run=dry_run, prune_rest=prune_rest)


def retry_job(
    config: RunConfig, output: str, *, error_class: str | None = None, ids: Sequence[str] | None = None
) -> Summary:
    """Try songs of a catalog again that failed: all, of one class, or by id.

    Raises:
        OutputError: where there is no catalog, or the config is for another model.
    """
    started = time.perf_counter()
    with reopen(config, output) as prepared:
        catalog = Catalog(prepared.storage)
        for bucket, keys in catalog.select_failures(error_class=error_class, ids=ids).items():
            logger.info("%d failures of bucket %d are tried again", len(keys), bucket)
            catalog.retry(bucket, keys, prepared.run)
        prepared.count_again()
        return _make(prepared, started)


def _make(prepared: Prepared, started: float, *, dry_run: bool = False, prune_rest: bool = False) -> Summary:
    plan, storage = prepared.plan, prepared.storage
    summary = Summary(storage.url, prepared.run, plan.planned, rejected=plan.rejected)
    summary.random_weights = prepared.model.random_weights
    summary.failed_before = prepared.failed
    summary.already = plan.planned - prepared.to_make - prepared.failed
    _tell_preflight(prepared, summary)
    summary.times.plan = time.perf_counter() - started
    logger.info(
        "%d songs planned, %d there already, %d to make: %s of audio",
        *(plan.planned, summary.already, prepared.to_make),
        duration_text(sum(state.missing_seconds for state in prepared.states)),
    )
    if prepared.changed:
        logger.warning("%d of these are there already, made by another model or with other settings", prepared.changed)
    if prepared.failed:
        logger.warning("%d songs failed before and are not tried again; `acestep retry` does", prepared.failed)
    if prepared.to_make:
        estimate = estimate_of(prepared)
        logger.info("estimate:\n%s", estimate.text())
        estimate.refuse_over(prepared.config.budget)
        if not dry_run:
            Driver(prepared, summary).make()
    if prune_rest and not dry_run and summary.stopped is None:
        logger.info("%s", prune(storage, plan, check=prepared.lease.check).text())
    summary.times.total = time.perf_counter() - started
    return summary


def _tell_preflight(prepared: Prepared, summary: Summary) -> None:
    """What was found in the manifest's rows, as a table; refused rows are failures of the run."""
    plan = prepared.plan
    if not plan.rules:
        return
    logger.warning(
        "preflight: %d of %d rows of the manifest cannot be used, %d have warnings\n%s",
        *(plan.rejected, plan.rows, plan.warned, preflight_table(plan.rules, plan.examples)),
    )
    if plan.rejected:
        logger.warning("all refused rows, with every reason: %s/%s", summary.output, layout.REJECTS)
        errors = [each for each in plan.examples if each["severity"] == "error"]
        for each in errors[:EXAMPLES]:
            where = f"{each['file']} row {each['row']}"
            summary.failed.add("input", where, f"{each['field']}: {each['value']} is not allowed; {each['allowed']}")
        summary.failed.counts["input"] = plan.rejected
