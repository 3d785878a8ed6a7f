"""Where the files of prepared training data and of a training lie in their output."""

from __future__ import annotations

DATA_RECORD = "prepare.json"
SONGS = "songs"
REJECTS = "rejects"
PLAN_REJECTS = f"{REJECTS}/plan.parquet"
"""Songs that were listed but could not even be planned."""


def plan_key(shard: int) -> str:
    """The listed songs of a shard."""
    return f"plan/{shard:06d}.parquet"


def songs_key(shard: int) -> str:
    """The rows to learn from."""
    return f"{SONGS}/{shard:06d}.parquet"


def rejects_key(shard: int) -> str:
    """The songs of a shard that could not be used, and why."""
    return f"{REJECTS}/{shard:06d}.parquet"


TRAINING_RECORD = "training.json"
"""The config of the last start."""
TRAINING_PROGRESS = "progress.json"
METRICS = "metrics.jsonl"
STATES = "states"
EVENTS = "tensorboard"


def state_key(step: int) -> str:
    """What a training goes on from after so many steps."""
    return f"{STATES}/state-{step:08d}.pt"


def state_step(key: str) -> int:
    """The step of a state."""
    return int(key.rpartition("-")[2].removesuffix(".pt"))


def export_key(name: str, step: int | None) -> str:
    """The folder of what was trained: after some steps, or in the end (None)."""
    return name if step is None else f"{name}-{step:08d}"
