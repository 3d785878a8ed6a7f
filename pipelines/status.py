"""Where the work on an output stands, read from its small objects alone: from any machine, while a run is at work."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines import layout
from pipelines.census import read_markers
from pipelines.errors import OutputError
from pipelines.holder import Holder
from pipelines.lease import read_lease
from pipelines.plan import PlanRecord
from pipelines.quantities import duration_text
from pipelines.storage import Storage

State = Literal["running", "silent", "died", "finished", "stopped", "failed", "planned"]
"""silent: the run has said nothing for a while; died: for so long that the next one takes its place."""

_RUNNING = ("running", "starting", "draining")


@dataclass(frozen=True, slots=True)
class Status:
    """One look at an output."""

    output: str
    state: State
    plan: PlanRecord
    progress: dict[str, Any] = field(default_factory=dict)
    """progress.json of the newest run; empty when there is none."""
    holder: Holder | None = None
    """Who holds the lease, dead or alive."""
    holder_silent_seconds: float | None = None
    runs: list[str] = field(default_factory=list)
    """Names of all runs, oldest first."""
    finished_buckets: int = 0
    finished_songs: int = 0
    """Made, in buckets of which nothing is left to do."""

    @property
    def is_running(self) -> bool:
        """Whether somebody is at work, as far as one can tell."""
        return self.state in ("running", "silent")

    @property
    def _is_new(self) -> bool:
        """Whether who is at work has not told its progress yet, so that there is only an earlier run's."""
        return self.is_running and self.holder is not None and self.holder.run != self.progress.get("run")

    @property
    def songs_made(self) -> int:
        """Songs of the plan that exist: what the newest run found there, and made."""
        made = self._number("songs_already") + self._number("songs_made")
        return int(min(max(made, self.finished_songs), self.plan.planned))

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        plan, holder = self.plan, self.holder
        return {
            "output": self.output,
            "state": self.state,
            "songs_planned": plan.planned,
            "songs_made": self.songs_made,
            "songs_rejected": plan.rejected,
            "buckets": plan.num_buckets,
            "buckets_finished": self.finished_buckets,
            "holder": {"run": holder.run, "host": holder.host, "pid": holder.pid} if holder else None,
            "holder_silent_seconds": self.holder_silent_seconds,
            "runs": self.runs,
            "progress": self.progress,
        }

    def text(self) -> str:
        """For a person, a few lines; what is not known is left out."""
        lines = [f"{self.output}: {self._state_text()}", f"songs     {self._songs_text()}"]
        lines += [f"{name:9} {value}" for name, value in self._facts() if value]
        return "\n".join(lines)

    def _state_text(self) -> str:
        holder, silent = self.holder, self.holder_silent_seconds
        who = f" ({holder.name})" if holder else ""
        texts = {
            "running": f"at work{who}",
            "silent": f"nothing heard for {duration_text(silent or 0)}{who}; it may be dead",
            "died": f"the run died{who}; the same command again goes on from here",
            "planned": "planned, nothing made yet",
        }
        return texts.get(self.state, self.state)

    def _songs_text(self) -> str:
        planned, made = self.plan.planned, self.songs_made
        share = f" ({made / planned:.1%})" if planned else ""
        failed = int(self._number("songs_failed"))
        return (
            f"{made:,} of {planned:,} made{share}"
            + (f", {failed:,} failed" if failed else "")
            + (f", {self.plan.rejected:,} rows refused" if self.plan.rejected else "")
        )

    def _facts(self) -> list[tuple[str, str]]:
        failures = self.progress.get("failures")
        classes = failures.items() if isinstance(failures, dict) else ()
        rerolls, quarantined = self._number("rerolls"), self._number("quarantined")
        gate = f"{rerolls:,.0f} rerolls, {quarantined:,.0f} in quarantine" if rerolls or quarantined else ""
        left = [duration_text(seconds)] if (seconds := self._known("seconds_left")) else []
        if cost := self._known("cost_left"):
            left.append(f"cost {cost:,.2f}")
        if seconds_left := self._known("audio_seconds_left"):
            left.append(f"{seconds_left / 3600:,.2f} h of audio")
        engines, switches = self._number("engines"), self._number("lora_switches")
        loaded = f"{engines:,.0f}" + (f", {switches:,.0f} switches of adapters" if switches else "")
        if padding := self._known("padding"):
            loaded += f", {padding:.1%} padding"
        facts = [
            ("failures", ", ".join(f"{name} {count:,}" for name, count in classes)),
            ("audio", self._audio_text()),
            ("speed", self._speed_text()),
            ("quality", gate),
            ("left", ", ".join(left)),
            ("engines", loaded if engines else ""),
        ]
        return [
            *([] if self._is_new else facts),
            ("buckets", f"{self.finished_buckets:,} of {self.plan.num_buckets:,} finished"),
            ("run", self._run_text()),
        ]

    def _audio_text(self) -> str:
        seconds = self._known("audio_seconds")
        return "" if seconds is None else f"{seconds / 3600:,.2f} h made by this run"

    def _speed_text(self) -> str:
        now, overall = self._known("real_time_factor_now"), self._known("real_time_factor")
        parts = [f"{now:,.1f} times real time now"] if now is not None else []
        return ", ".join(parts + ([f"{overall:,.1f} overall"] if overall is not None else []))

    def _run_text(self) -> str:
        latest = self.progress.get("run") or (self.holder.run if self.holder else None)
        facts = [latest]
        facts += [
            f"{name} {self.progress[f'{name}_at']}" for name in ("started", "updated") if f"{name}_at" in self.progress
        ]
        earlier = len([run for run in self.runs if run != latest])
        return ", ".join(filter(None, facts)) + (f"; {earlier} earlier" if earlier else "")

    def _number(self, name: str) -> float:
        return self._known(name) or 0

    def _known(self, name: str) -> float | None:
        value = self.progress.get(name)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def read_status(storage: Storage) -> Status:
    """Look once.

    Raises:
        OutputError: where there is no catalog.
        StorageError: when it cannot be read.
    """
    plan = PlanRecord.read(storage)
    if plan is None:
        raise OutputError(f"output {storage.url}: there is no catalog: no {layout.RUN}")
    holder = read_lease(storage)
    progress = _read_progress(storage)
    marked = read_markers(storage, plan.plan)
    silent = None if holder is None else max(0.0, holder.age())
    return Status(
        output=storage.url,
        state=_state(holder, silent, progress),
        plan=plan,
        progress=progress,
        holder=holder,
        holder_silent_seconds=silent,
        runs=_names_of_runs(storage),
        finished_buckets=len(marked),
        finished_songs=sum(state.made for state in marked),
    )


def _state(holder: Holder | None, silent: float | None, progress: dict[str, Any]) -> State:
    said = progress.get("state")
    if holder is not None:
        if holder.is_gone() or (silent or 0.0) > 4 * holder.stale_seconds:
            # Of maintenance that died there is nothing to say.
            return "died" if said in _RUNNING or not progress or holder.run != progress.get("run") else _ended(said)
        return "running" if (silent or 0.0) <= holder.stale_seconds else "silent"
    if said in _RUNNING:
        return "died"
    return _ended(said)


def _ended(said: Any) -> State:
    for state in ("finished", "stopped", "failed"):
        if said == state:
            return state
    return "planned"


def _read_progress(storage: Storage) -> dict[str, Any]:
    try:
        values = json.loads(storage.get(layout.PROGRESS))
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _names_of_runs(storage: Storage) -> list[str]:
    names = [key.split("/") for key in storage.keys(layout.RUNS, ".json")]
    return [parts[1].removesuffix(".json") for parts in names if len(parts) == 2]
