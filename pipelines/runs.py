"""What each run did, kept in `runs/` for those who look at the catalog later."""

from __future__ import annotations

import dataclasses
import json
import logging

from pipelines import layout
from pipelines.errors import StorageError
from pipelines.storage import Storage
from pipelines.summary import Summary

logger = logging.getLogger(__name__)


def write_run(storage: Storage, summary: Summary, state: str) -> None:
    """Write down what a run did until now; a store that does not take it ends no run."""
    facts = {
        "run": summary.run,
        "state": state,
        "started_at": summary.started_at,
        "seconds": round(summary.times.execution, 3),
        "planned": summary.planned,
        "already": summary.already,
        "made": summary.made,
        "failed": dict(summary.failed.counts),
        "rerolls": summary.rerolls,
        "quarantined": summary.quarantined,
        "audio_seconds": round(summary.audio_seconds, 3),
        "bytes": summary.bytes_written,
        "engines": summary.engines,
        "device": summary.device,
        "lora_switches": summary.switches,
        "padding": round(summary.padding.share, 4),
        "stopped": summary.stopped,
        "times": {name: round(value, 3) for name, value in dataclasses.asdict(summary.times).items()},
    }
    try:
        storage.put(layout.run_key(summary.run), json.dumps(facts, indent=2).encode())
    except StorageError as error:
        logger.warning("%s", error)
