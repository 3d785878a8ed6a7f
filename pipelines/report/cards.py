"""`Card`: one song on the page: what it is, what was measured, how to hear it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.report.charts import Tick
from pipelines.report.pictures import LOW_HZ, mel
from pipelines.report.players import Excerpt, Player
from pipelines.report.survey import AUTO, INSTRUMENTAL
from pipelines.report.troubles import evidence_of, measures_of, request_of

LONGEST_LYRICS = 4000
"""Characters shown."""

_LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "pl": "Polish", "tr": "Turkish", "ru": "Russian", "cs": "Czech", "nl": "Dutch", "ar": "Arabic", "zh": "Chinese",
    "ja": "Japanese", "hu": "Hungarian", "ko": "Korean", "hi": "Hindi",
}  # fmt: skip

_PITCHES = ((100, "100 Hz"), (1000, "1 kHz"), (2000, "2 kHz"), (5000, "5 kHz"), (10_000, "10 kHz"))
_SECONDS = (1, 2, 5, 10, 15, 30, 60)


@dataclass(frozen=True, slots=True)
class Card:
    """What the page shows of a song."""

    anchor: str
    id: str
    player: Player
    why: str = ""
    prompt: str = ""
    message: str = ""
    lyrics: str = ""
    path: str = ""
    bitrate: int = 0
    facts: list[tuple[str, str]] = field(default_factory=list)
    measures: list[tuple[str, str]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def times(self) -> list[Tick]:
        """Marks below the pictures."""
        seconds = self.player.seconds
        step = next((each for each in _SECONDS if seconds / each <= 6), 60)
        count = int(seconds / step)
        marks = [Tick(100 * step * place / seconds, clock(step * place)) for place in range(count + 1)]
        return [mark for mark in marks if mark.place <= 97]

    @property
    def pitches(self) -> list[Tick]:
        """Marks beside the spectrogram, in percent of its height."""
        low, high = mel(LOW_HZ), mel(self.player.highest_hz)
        places = [(float(100 * (mel(hz) - low) / (high - low)), text) for hz, text in _PITCHES]
        return [Tick(place, text) for place, text in places if place <= 96]

    @property
    def start(self) -> str:
        """Of the excerpt."""
        return clock(self.player.start)

    @property
    def length(self) -> str:
        """Of the song."""
        return clock(self.player.seconds)


def language_name(code: str) -> str:
    """`German (de)`; what is no code of the model's languages stays as it is."""
    return f"{_LANGUAGES[code]} ({code})" if code in _LANGUAGES else code


def song_card(anchor: str, row: Mapping[str, Any], why: str, player: Player, excerpt: Excerpt) -> Card:
    """A finished song, from its row of the catalog."""
    facts = [("Length", f"{row['duration']:.1f} s" if row.get("duration") is not None else "")]
    facts += _settings(row)
    if row.get("lufs") is not None:
        facts.append(("Loudness", f"{row['lufs']:.1f} LUFS"))
    if row.get("score") is not None:
        facts.append((f"Score ({row.get('scorer') or 'unnamed'})", f"{row['score']:.4g}{_others(row)}"))
    if (row.get("attempt") or 1) > 1:
        facts.append(("Made", f"{row['attempt']} times"))
    if row.get("generate_seconds") and row.get("duration"):
        speed = row["duration"] / row["generate_seconds"]
        facts.append(("Times real time", f"{speed:.3g}, in a batch of {row.get('batch_size') or 1}"))
    return Card(
        anchor=anchor,
        id=row.get("id") or "",
        player=player,
        why=why,
        prompt=row.get("prompt") or "",
        lyrics=(row.get("lyrics") or "")[:LONGEST_LYRICS],
        path=row.get("path") or "",
        bitrate=excerpt.bitrate_kbps,
        facts=[fact for fact in facts if fact[1]],
        measures=_measured(measures_of(row.get("quality"))),
    )


def quarantine_card(anchor: str, row: Mapping[str, Any], player: Player, excerpt: Excerpt) -> Card:
    """A song that failed the quality gate, from its row of the failures."""
    request, evidence = request_of(row), evidence_of(row)
    facts = [("Length", f"{player.seconds:.1f} s")] if player.seconds else []
    attempts = [
        {
            "attempt": str(each.get("attempt", "")),
            "seed": str(each.get("seed", "")),
            "problems": "; ".join(map(str, each.get("problems") or [])),
        }
        for each in evidence
    ]
    measures = evidence[-1].get("quality") if evidence else None
    return Card(
        anchor=anchor,
        id=row.get("id") or "",
        player=player,
        prompt=str(request.get("prompt") or ""),
        message=row.get("message") or "",
        lyrics=str(request.get("lyrics") or "")[:LONGEST_LYRICS],
        path=row.get("path") or "",
        bitrate=excerpt.bitrate_kbps,
        facts=[fact for fact in facts + _settings(request) if fact[1]],
        measures=_measured(measures if isinstance(measures, dict) else {}),
        attempts=attempts,
    )


def clock(seconds: float) -> str:
    """Seconds as a player shows them: `1:05`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _settings(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    language = row.get("language") or ""
    if not row.get("lyrics"):
        language = INSTRUMENTAL
    settings = [("Language", "" if language == AUTO else language_name(language))]
    settings.append(("Seed", str(row["seed"]) if row.get("seed") is not None else ""))
    steps, scale = row.get("num_inference_steps"), row.get("guidance_scale")
    if steps is not None and scale is not None:
        settings.append(("Steps, guidance", f"{steps}, {scale:g}"))
    settings.append(("Adapter", row.get("lora") or ""))
    task = row.get("task")
    settings.append(("Task", "" if task in (None, "text2music") else str(task)))
    return settings


def _others(row: Mapping[str, Any]) -> str:
    """The scores of the candidates that were not kept."""
    try:
        candidates = json.loads(row.get("candidates") or "[]")
        scores = [each["score"] for each in candidates if each.get("score") is not None]
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""
    shown = ", ".join(f"{score:.3g}" for score in sorted(scores, reverse=True)[:8])
    return f" (not kept: {shown})" if shown else ""


def _measured(measures: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = []
    for name, value in measures.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        if isinstance(value, (str, int, bool)):
            shown.append((str(name).replace("_", " "), str(value)))
    return shown
