"""What the head of the page says of a catalog: figures, facts, and its runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from pipelines import layout
from pipelines.plan import PlanRecord
from pipelines.quantities import duration_text, size_text
from pipelines.report.survey import Survey, moment
from pipelines.report.troubles import Troubles
from pipelines.storage import Storage

MOST_RUNS = 50
"""Listed: the last ones."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number in large type."""

    name: str
    value: str
    more: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its rows tell of it, and its record where there is one. Times are seconds since 1970."""

    name: str
    start: float
    end: float
    songs: int
    audio_seconds: float
    record: Mapping[str, Any]

    @property
    def engine_hours(self) -> float | None:
        """How long engines were held, all together."""
        seconds, engines = self.record.get("seconds"), self.record.get("engines")
        return seconds * engines / 3600 if seconds and engines else None

    def cells(self) -> dict[str, str]:
        """As a row of a table."""
        record, seconds = self.record, self.record.get("seconds")
        failed, audio = record.get("failed"), record.get("audio_seconds", self.audio_seconds)
        if isinstance(failed, Mapping):
            failed = sum(failed.values())
        engines = [str(record[name]) for name in ("engines", "device") if record.get(name)]
        return {
            "name": self.name,
            "began": f"{moment(self.start):%d %b %Y %H:%M:%S}",
            "state": str(record.get("state") or ""),
            "songs": f"{record.get('made', self.songs):,}",
            "audio": duration_text(audio),
            "failed": "" if failed is None else f"{failed:,}",
            "rerolls": "" if record.get("rerolls") is None else f"{record['rerolls']:,}",
            "took": duration_text(seconds if seconds else self.end - self.start),
            "speed": f"{audio / seconds:.1f}" if seconds else "",
            "engines": " × ".join(engines),
        }


def runs_of(storage: Storage, survey: Survey) -> list[Run]:
    """Every run that made a song or left a record, in order."""
    records: dict[str, dict[str, Any]] = {}
    for key in storage.keys(layout.RUNS, ".json"):
        if key.count("/") == 1:
            try:
                record = json.loads(storage.get(key))
            except (ValueError, FileNotFoundError):
                continue
            if isinstance(record, dict):
                records[str(record.get("run") or key)] = record
    runs = []
    for name in records.keys() | survey.runs.keys():
        record, rows = records.get(name, {}), survey.runs.get(name)
        began = _seconds(record.get("started_at"))
        first = began if began is not None else rows.first if rows else None
        if first is None:
            continue
        start = min(first, rows.first) if rows else first
        end = rows.last if rows else start + float(record.get("seconds") or 0)
        songs, audio = (rows.songs, rows.audio_seconds) if rows else (0, 0.0)
        runs.append(Run(name, start, end, songs, audio, record))
    return sorted(runs, key=lambda run: (run.start, run.name))


def figures(survey: Survey, troubles: Troubles, record: PlanRecord | None, runs: Sequence[Run]) -> list[Figure]:
    """The large numbers."""
    planned = f"of {record.planned:,} planned" if record else ""
    shown = [
        Figure("Songs", f"{survey.songs:,}", planned),
        Figure("Audio", duration_text(survey.audio_seconds), size_text(survey.bytes) if survey.bytes else ""),
    ]
    if survey.engine_seconds:
        shown.append(Figure("Times real time", f"{survey.timed_seconds / survey.engine_seconds:.1f}", "of one engine"))
    failed = troubles.classes.total() - troubles.refused
    share = f"{failed / (failed + survey.songs):.1%} of those tried" if failed else ""
    shown.append(Figure("Failed", f"{failed:,}", share, "bad" if failed else ""))
    if troubles.quarantined:
        shown.append(Figure("In quarantine", f"{troubles.quarantined:,}", "failed the quality gate", "bad"))
    rejected = (record.rejected if record else None) or troubles.refused
    shown.append(Figure("Rows refused", f"{rejected:,}", "before anything was made" if rejected else ""))
    if survey.rerolled:
        shown.append(Figure("Made again", f"{survey.rerolled:,}", "and good then"))
    if cost := _cost(record, runs):
        shown.append(cost)
    return shown


def facts(survey: Survey, record: PlanRecord | None, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Names and values."""
    counts = survey.facts
    lines = [(name, _listed(counts.get(column))) for name, column in (
        ("Model", "model"), ("Fingerprint", "model_fingerprint"), ("Precision", "dtype"), ("Device", "device"),
        ("Format", "format"), ("Made by acestep", "version"))]  # fmt: skip
    if record:
        manifest = record.manifest if isinstance(record.manifest, dict) else {}
        lines.append(("Manifest", str(manifest.get("url") or "")))
        lines.append(("Planned", f"{_time_text(record.created_at)}: {record.planned:,} songs of {record.rows:,} rows"))
        if not survey.songs and isinstance(record.model, dict):
            lines[0] = ("Model", str(record.model.get("name") or ""))
    if survey.timeline.count:
        first, last = moment(survey.timeline.lowest), moment(survey.timeline.highest)
        end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%d %b %Y %H:%M}"
        lines.append(("First and last song", f"{first:%d %b %Y %H:%M}, {end} UTC"))
    if survey.songs:
        average = f"{survey.audio_seconds / survey.songs:.1f} s, {size_text(survey.bytes / survey.songs)}"
        lines.append(("A song on average", average))
    if runs:
        engines = [run.record["engines"] for run in runs if run.record.get("engines")]
        most = f", up to {max(engines)} engines" if engines else ""
        lines.append(("Runs", f"{len(runs)}{most}"))
    return [(name, value) for name, value in lines if value]


def noise_text(survey: Survey, record: PlanRecord | None) -> str:
    """What is to be said of random weights, if anything."""
    if survey.random_weights == survey.songs and survey.songs:
        return "The model was never trained: what you hear is noise, not music. It shows that the pipeline works."
    if survey.random_weights:
        return f"{survey.random_weights:,} of these songs come from a model that was never trained: noise, not music."
    return ""


def _cost(record: PlanRecord | None, runs: Sequence[Run]) -> Figure | None:
    budget = (record.config or {}).get("budget") if record else None
    price = budget.get("price_per_gpu_hour") if isinstance(budget, dict) else None
    hours = [run.engine_hours for run in runs]
    if not price or not any(hours):
        return None
    known = sum(each for each in hours if each)
    missing = "" if all(each is not None for each in hours) else ", of the runs with a record"
    return Figure("Cost", f"{price * known:,.2f}", f"{known:,.2f} engine hours at {price:g}{missing}")


def _listed(counts: Counter[str] | None) -> str:
    if not counts:
        return ""
    if len(counts) == 1:
        return next(iter(counts))
    shown = [f"{name} ({count:,})" for name, count in counts.most_common(4)]
    return ", ".join(shown) + (f" and {len(counts) - 4} more" if len(counts) > 4 else "")


def _seconds(text: Any) -> float | None:
    try:
        when = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return when.replace(tzinfo=when.tzinfo or timezone.utc).timestamp()


def _time_text(text: str) -> str:
    seconds = _seconds(text)
    return f"{moment(seconds):%d %b %Y %H:%M} UTC" if seconds is not None else text
