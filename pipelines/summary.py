"""`Summary`: what a run did, what failed and why, and where the time went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone

from pipelines.padding import Padding
from pipelines.quantities import duration_text

EXAMPLES = 3
"""Shown of each class of failure."""


@dataclass(slots=True)
class Failures:
    """Counts of failures by class, with the first few of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, error_class: str, name: str, message: str, count: int = 1) -> None:
        """Count one more."""
        self.counts[error_class] += count
        examples = self.examples.setdefault(error_class, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{name}: {message}")

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts.total()


@dataclass(slots=True)
class Times:
    """Where the time went, in seconds; stages overlap, so they do not add up to the whole."""

    plan: float = 0.0
    start: float = 0.0
    """Connecting to Ray or starting it."""
    execution: float = 0.0
    """From the first stage's start to the last song's row."""
    load: float = 0.0
    """The slowest engine's loading and warming up."""
    generate: float = 0.0
    """In engines, all together."""
    wait: float = 0.0
    """Of engines between two batches, all together."""
    encode: float = 0.0
    upload: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class Summary:
    """What a run did.

    Attributes:
        planned: songs in the plan.
        already: songs of the plan that existed before.
        made: songs made by this run.
        rejected: rows of the manifest that were refused.
        failed: refused rows and songs of the plan that could not be made.
        failed_before: songs that failed in an earlier run; they are tried again only when asked for.
        rerolls: how often a song was made again because it failed the quality gate.
        quarantined: songs that failed it to the end.
        audio_seconds: of the songs made.
        engines: processes that generated.
        switches: changes of adapter in them.
        padding: of the batches that they made.
        stopped: why the run ended early, if it did.
        signal: the signal that ended it, if one did.
    """

    output: str
    run: str
    planned: int = 0
    already: int = 0
    made: int = 0
    rejected: int = 0
    failed: Failures = field(default_factory=Failures)
    failed_before: int = 0
    rerolls: int = 0
    quarantined: int = 0
    audio_seconds: float = 0.0
    bytes_written: int = 0
    engines: int = 0
    switches: int = 0
    padding: Padding = field(default_factory=Padding)
    device: str = ""
    started_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    random_weights: bool = False
    times: Times = field(default_factory=Times)
    stopped: str | None = None
    signal: int | None = None

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio for each second of the execution."""
        return self.audio_seconds / self.times.execution if self.times.execution else 0.0

    @property
    def exit_code(self) -> int:
        """0 when all songs of the manifest exist, 3 when some failed; 4 when the run stopped early, 128 and the signal
        when one ended it."""
        if self.signal is not None:
            return 128 + self.signal
        if self.stopped:
            return 4
        return 3 if self.failed.total or self.failed_before else 0

    def text(self) -> str:
        """For a person, a few lines."""
        times = self.times
        noise = " (random weights: noise, not music)" if self.random_weights else ""
        already = f" ({self.already:,} were there already)" if self.already else ""
        songs = "song" if self.made == 1 else "songs"
        audio = f"{duration_text(self.audio_seconds)} of audio{noise}"
        lines = [f"{self.made:,} {songs} made{already}, {audio}, in {self.output}"]
        if self.made:
            lines.append(
                f"{self.real_time_factor:.1f} times real time with {self.engines} "
                f"engine{'s' if self.engines != 1 else ''}; {self.bytes_written / 1e6:,.1f} MB written"
                + (f"; {self.padding.share:.1%} of the frames computed was padding" if self.padding.padded else "")
            )
        warm = times.generate + times.wait
        busy = times.generate / warm if warm else 0.0
        spent = f"time {duration_text(times.total)}: plan {duration_text(times.plan)}"
        if times.execution:
            spent += (
                f", Ray {duration_text(times.start)}, songs {duration_text(times.execution)} "
                f"(engines loaded in {duration_text(times.load)}, "
                f"then busy {duration_text(times.generate)} or {busy:.0%}; encoding {duration_text(times.encode)}, "
                f"uploads {duration_text(times.upload)}, both beside it)"
            )
        lines.append(spent)
        if self.rerolls or self.quarantined:
            gate = f"quality gate: {self.rerolls:,} made again with another seed, {self.quarantined:,} given up"
            lines.append(gate + (f" and kept in {self.output}/quarantine/" if self.quarantined else ""))
        if self.failed_before:
            lines.append(f"{self.failed_before:,} failed before: `acestep retry {self.output}` tries them again")
        if self.stopped:
            lines.append(f"stopped early: {self.stopped}; the same command again goes on from here")
        if self.failed.total:
            lines.append(f"{self.failed.total:,} failed:")
        for error_class, count in self.failed.counts.most_common():
            lines.append(f"  {error_class}: {count:,}")
            lines += [f"    {example}" for example in self.failed.examples[error_class]]
            if count > len(self.failed.examples[error_class]):
                lines.append(f"    ... the rest is in {self.output}/failed/")
        return "\n".join(lines)
