"""`Job`: what one client asked for in one go, and what became of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from acestep.audio_format import AudioFormat
from acestep.request import GenerationRequest
from serve.errors import DeadlineError, InternalError, ServiceError, UnprocessableError

FINAL = ("completed", "failed", "cancelled")
STATUSES = ("queued", "in_progress", *FINAL)

_CODES: dict[str, tuple[type[ServiceError], str]] = {
    "input": (UnprocessableError, "invalid_value"),
    "timeout": (DeadlineError, "batch_timeout"),
}


def new_id(now: float) -> str:
    """Names a job; ids sort by the time of the request."""
    stamp = datetime.fromtimestamp(now, timezone.utc).strftime("%Y%m%dT%H%M%S%f")
    return f"job-{stamp}-{secrets.token_hex(4)}"


@dataclass(slots=True)
class Song:
    """One song of a job.

    Attributes:
        request: its id names the song among all: `<job>/<index>`.
        source: key of its source in the store.
        made: `{seed, duration, sample_rate, bytes, sha256, format, warnings, ...}`, once it is there.
        data: the file, where the caller waits for the bytes themselves.
    """

    request: GenerationRequest
    source: str | None = None
    status: str = "queued"
    step: int = 0
    steps: int = 0
    attempts: int = 0
    made: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    data: bytes | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status in FINAL

    def fail(self, error_class: str, message: str) -> None:
        """What became of it is an error, told as the API tells errors."""
        kind, code = _CODES.get(error_class, (InternalError, error_class))
        self.status, self.error = "failed", kind(message, code=code).body()["error"]


@dataclass(slots=True, eq=False)
class Job:
    """See the module.

    Attributes:
        owner: name of the API key that it was asked with; None without keys.
        kept: whether its record and audio are in the store; not those of callers who take the bytes with them.
        parameters: what the answer repeats: the request, resolved.
        callers: how many wait for it on the line, and one more where somebody will come back for it.
    """

    owner: str | None
    model: str
    format: AudioFormat
    songs: list[Song]
    parameters: dict[str, Any]
    kept: bool = True
    id: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    callers: int = 0
    version: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def status(self) -> str:
        """One of `STATUSES`; failed as soon as all is over and one song failed."""
        found = {song.status for song in self.songs}
        if all(song.is_over for song in self.songs):
            return next(status for status in ("failed", "cancelled", "completed") if status in found)
        return "queued" if found == {"queued"} else "in_progress"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will become of any of its songs."""
        return all(song.is_over for song in self.songs)

    @property
    def progress(self) -> float:
        """0 to 1, by the steps that are done."""
        done = sum(1.0 if song.made else song.step / max(song.steps, 1) for song in self.songs)
        return round(done / len(self.songs), 4)

    def touch(self) -> None:
        """Tell everybody who waits that something has changed."""
        self.version += 1
        if self.is_over and self.completed_at is None:
            self.completed_at = time.time()
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, seen: int) -> int:
        """Wait until there is a version newer than `seen`; returns it."""
        while self.version <= seen:
            await self._changed.wait()
        return self.version

    async def end(self) -> None:
        """Wait until all is over."""
        while not self.is_over:
            await self._changed.wait()

    def shown(self) -> dict[str, Any]:
        """As the API shows it, but for what only the queue knows."""
        errors = [song.error for song in self.songs if song.error]
        took = self.completed_at - self.started_at if self.completed_at and self.started_at else None
        return {
            "id": self.id,
            "object": "audio.job",
            "status": self.status,
            "progress": self.progress,
            "step": max(song.step for song in self.songs),
            "steps": max(song.steps for song in self.songs),
            "queue_position": None,
            "expected_wait_seconds": None,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "completed_at": self.completed_at,
            "expires_at": self.expires_at,
            "model": self.model,
            "n": len(self.songs),
            "parameters": self.parameters,
            "response_format": self.format.format,
            "data": self.data(),
            "error": errors[0] if errors else None,
            "attempts": max(song.attempts for song in self.songs),
            "inference_time_s": None if took is None else round(took, 3),
        }

    def data(self) -> list[dict[str, Any]]:
        """What was made, one entry for each song that is there."""
        return [
            {"index": index, "url": f"/v1/audio/jobs/{self.id}/content?index={index}"}
            | {name: value for name, value in song.made.items() if name not in ("key", "latents")}
            for index, song in enumerate(self.songs)
            if song.made
        ]

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON, for the store."""
        songs = [
            {
                "request": song.request.model_dump(mode="json", exclude_none=True),
                **{name: getattr(song, name) for name in ("source", "status", "attempts", "made", "error")},
            }
            for song in self.songs
        ]
        names = ("id", "owner", "model", "parameters", "created_at", "started_at", "completed_at", "expires_at")
        return {name: getattr(self, name) for name in names} | {"format": self.format.model_dump(), "songs": songs}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Job:
        """The job that a record tells of; what was being made waits again."""
        songs = [Song(**song | {"request": GenerationRequest.parse(song["request"])}) for song in record["songs"]]
        for song in songs:
            if song.status == "in_progress":
                song.status = "queued"
        facts = record | {"format": AudioFormat.model_validate(record["format"]), "songs": songs}
        return cls(**facts)
