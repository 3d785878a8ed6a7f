"""`MetricsRecorder`: what a training measures, for people and programs: metrics.jsonl, TensorBoard, progress.json."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import tempfile
import time
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any

from acestep.training.trainer import Metrics
from pipelines.errors import StorageError
from pipelines.storage import Storage
from pipelines.training_data.layout import EVENTS, METRICS, TRAINING_PROGRESS

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 3.0
FILE_SECONDS = 30.0
SMOOTHED_STEPS = 100


class MetricsRecorder:
    """Takes the metrics of each step and writes their averages down.

    Args:
        step: done before; what was written of later ones is forgotten, for they are taken again.
        every_steps: that are averaged to a row.
        songs: of all workers together in a step.
    """

    def __init__(self, output: Storage, *, step: int, steps: int, every_steps: int, songs: int):
        self.output, self.steps, self.every_steps, self.songs = output, steps, every_steps, songs
        self.step = step
        self._rows = self._written_until(step)
        self._gathered: list[Metrics] = []
        self._recent: deque[Metrics] = deque(maxlen=SMOOTHED_STEPS)
        self._events = _Events(output, step)
        self._told = self._filed = time.monotonic()

    def add(self, step: int, metrics: Metrics) -> None:
        """The metrics of a step, which made `step` of them."""
        self.step = step
        self._gathered.append(metrics)
        self._recent.append(metrics)
        if step % self.every_steps == 0 or step == self.steps:
            means = {name: fmean(each[name] for each in self._gathered) for name in metrics}
            means["songs_per_second"] = self.songs / max(means["seconds"], 1e-9)
            shown = {name: value if math.isfinite(value) else None for name, value in means.items()}
            self._rows.append(json.dumps({"step": step} | shown))
            self._events.add(step, means)
            self._gathered = []
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._tell("running")
        if now - self._filed >= FILE_SECONDS:
            self.write()

    def words(self) -> str:
        """The newest steps, in a few words."""
        if not self._recent:
            return "loading"
        facts = self._facts()
        return (
            f"loss {facts['loss']:.4f}, learning rate {facts['learning_rate']:.2e}, "
            f"{facts['songs_per_second']:.3g} songs/s"
        )

    def write(self) -> None:
        """Bring files up to date; storage that fails costs no training."""
        self._filed = time.monotonic()
        try:
            self.output.put(METRICS, ("\n".join(self._rows) + "\n").encode() if self._rows else b"")
            self._events.write()
        except StorageError as error:
            logger.warning("%s", error)

    def close(self, state: str = "finished") -> None:
        """Write all, and `state` into progress.json."""
        self.write()
        self._events.close()
        self._tell(state)

    def _facts(self) -> dict[str, float]:
        recent = self._recent
        seconds = fmean(each["seconds"] for each in recent)
        facts = {"loss": fmean(each["loss"] for each in recent), "learning_rate": recent[-1]["learning_rate"]}
        return facts | {"songs_per_second": self.songs / max(seconds, 1e-9), "seconds_per_step": seconds}

    def _tell(self, state: str) -> None:
        facts = self._facts() if self._recent else {}
        shown = {name: value if math.isfinite(value) else None for name, value in facts.items()}
        left = facts.get("seconds_per_step", 0.0) * (self.steps - self.step)
        progress = {
            "state": state,
            "step": self.step,
            "steps": self.steps,
            "words": self.words(),
            **shown,
            "seconds_left": round(left),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        try:
            self.output.put(TRAINING_PROGRESS, json.dumps(progress, indent=1).encode())
        except StorageError as error:
            logger.warning("%s", error)

    def _written_until(self, step: int) -> list[str]:
        with suppress(FileNotFoundError):
            lines = self.output.get(METRICS).decode().splitlines() if step else []
            return [line for line in lines if json.loads(line)["step"] <= step]
        return []


class _Events:
    """TensorBoard's event files; nothing where it is not installed."""

    def __init__(self, output: Storage, step: int):
        self._output = output
        self._writer: Any = None
        self._folder = Path(output.url, EVENTS) if output.is_local else Path(tempfile.mkdtemp(prefix="acestep-events-"))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("tensorboard is not installed (extra: train); metrics are in %s only", METRICS)
            return
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else None)

    def add(self, step: int, means: Metrics) -> None:
        if self._writer is not None:
            for name, value in means.items():
                self._writer.add_scalar(name, value, step)

    def write(self) -> None:
        if self._writer is None:
            return
        self._writer.flush()
        if not self._output.is_local:
            for path in sorted(self._folder.iterdir()):
                self._output.put(f"{EVENTS}/{path.name}", path.read_bytes())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_progress(output: Storage) -> dict[str, Any] | None:
    """What a training last said of itself; None before it said anything."""
    try:
        return json.loads(output.get(TRAINING_PROGRESS))
    except FileNotFoundError:
        return None
