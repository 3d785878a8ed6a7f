"""`Uploads`: audio that clients brought, in the server's store until it expires.

uploads/<id>.<ext>   as it came; the id is a hash of the content
uploads/<id>.json    what is known of it; written after the audio, deleted after it
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import soundfile

from acestep.errors import InvalidRequestError
from acestep.problems import Problem
from pipelines.storage import Storage
from serve.errors import TooLargeError

FOLDER = "uploads"
ID = re.compile(r"upload-[0-9a-f]{32}")

_RATES = (8_000, 192_000)
_RATE_STEP = 25
"""Hz: such rates share a factor with the model's 44,100 Hz that is large enough to resample."""
_UNKNOWN = 1 << 62
"""Samples that libsndfile gives for a stream of unknown length: it could not be read as a whole."""
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Upload:
    """What is known of an upload.

    Attributes:
        duration: seconds.
        sample_rate: Hz.
        expires_at: Unix time in seconds.
        format: wav, flac, mp3, ogg, opus, ...: the extension of its object.
    """

    id: str
    bytes: int
    duration: float
    sample_rate: int
    channels: int
    expires_at: float
    format: str

    @property
    def key(self) -> str:
        """The object of its audio."""
        return f"{FOLDER}/{self.id}.{self.format}"

    def body(self) -> dict[str, Any]:
        """As the API shows it."""
        return {"object": "upload", **asdict(self)}


class Uploads:
    """Keeps uploads; for the one event loop that it lives in.

    Args:
        max_bytes, max_seconds: of one upload.
        expire_seconds: how long it is kept, counted from when it last came.
        clock: Unix time.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        max_bytes: int,
        max_seconds: float,
        expire_seconds: float,
        clock: Callable[[], float] = time.time,
    ):
        self._storage = storage
        self._max_bytes, self._max_seconds, self._expire_seconds = max_bytes, max_seconds, expire_seconds
        self._clock = clock
        self._expiry: dict[str, float] = {}
        """When to look at an upload again, so that a sweep need not read every record each time."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put(self, data: bytes, field: str = "file") -> Upload:
        """Check and keep audio; the same content has the same id, and is kept for longer when it comes again.

        Args:
            field: what the client calls it, for messages.

        Raises:
            InvalidRequestError: for what cannot be a source.
            TooLargeError: for more bytes than are taken.
            StorageError: when it cannot be written.
        """
        self.check_size(len(data), field)
        facts = await asyncio.to_thread(_facts, data, field, self._max_seconds)
        id = f"upload-{(await asyncio.to_thread(hashlib.sha256, data)).hexdigest()[:32]}"
        async with self._lock(id):
            upload = Upload(id=id, bytes=len(data), expires_at=self._clock() + self._expire_seconds, **facts)
            if not await asyncio.to_thread(self._storage.exists, upload.key):
                await asyncio.to_thread(self._storage.put, upload.key, data)
            await asyncio.to_thread(self._storage.put, _record_key(id), json.dumps(asdict(upload)).encode())
            self._expiry[id] = upload.expires_at
        return upload

    def check_size(self, size: int, field: str) -> None:
        """Refuse, before anything is decoded, more bytes than are taken.

        Raises:
            TooLargeError: for more.
        """
        if size > self._max_bytes:
            raise TooLargeError(f"{field}: the largest file has {self._max_bytes:,} bytes", param=field)

    async def find(self, id: str) -> Upload | None:
        """An upload that is there and has not expired, or None."""
        upload = await asyncio.to_thread(self._read, id) if ID.fullmatch(id) else None
        if upload is None or upload.expires_at <= self._clock():
            return None
        return upload if await asyncio.to_thread(self._storage.exists, upload.key) else None

    async def sweep(self, keep: Collection[str] = ()) -> int:
        """Delete what has expired, but for the keys in `keep`; returns how many uploads."""
        by_id: dict[str, list[str]] = {}
        for key in await asyncio.to_thread(self._storage.keys, FOLDER):
            by_id.setdefault(key.rpartition("/")[2].partition(".")[0], []).append(key)
        self._expiry = {id: expires_at for id, expires_at in self._expiry.items() if id in by_id}
        deleted = 0
        for id, keys in by_id.items():
            if self._expiry.get(id, 0) <= self._clock() and not set(keys).intersection(keep):
                async with self._lock(id):
                    deleted += await self._delete_expired(id, keys)
        return deleted

    async def _delete_expired(self, id: str, keys: list[str]) -> bool:
        upload = await asyncio.to_thread(self._read, id)
        # Audio without a record is an upload under way, or one that was cut off: it is given as long as any other.
        default = self._expiry.get(id, self._clock() + self._expire_seconds)
        self._expiry[id] = upload.expires_at if upload is not None else default
        if self._expiry[id] > self._clock():
            return False
        await asyncio.to_thread(self._storage.delete, sorted(keys, key=_record_key(id).__eq__))
        del self._expiry[id]
        return True

    def _read(self, id: str) -> Upload | None:
        try:
            return Upload(**json.loads(self._storage.get(_record_key(id))))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _lock(self, id: str) -> asyncio.Lock:
        return self._locks.setdefault(id, asyncio.Lock())


def _record_key(id: str) -> str:
    return f"{FOLDER}/{id}.json"


def _facts(data: bytes, field: str, max_seconds: float) -> dict[str, Any]:
    """Length, rate, channels and format of audio that can be a source."""

    def refused(value: object, allowed: str) -> InvalidRequestError:
        return InvalidRequestError([Problem(field, value, allowed)])

    longest = f"the longest source is {max_seconds:g} s"
    not_finite = 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = file.samplerate, file.channels
            if channels > 2:
                raise refused(f"{channels} channels", "1 or 2 can be used")
            if not _RATES[0] <= rate <= _RATES[1] or rate % _RATE_STEP:
                allowed = f"{_RATES[0]:,} to {_RATES[1]:,} Hz, in steps of {_RATE_STEP}, can be used"
                raise refused(f"{rate} Hz", allowed)
            if file.frames >= _UNKNOWN:
                raise refused(f"{len(data):,} bytes", "its header must say how long it is; write the file anew")
            if file.frames / rate > max_seconds:
                raise refused(f"{file.frames / rate:.1f} s", longest)
            samples = 0
            # The header may be wrong, by accident or not: it only says what need not be tried.
            while samples <= max_seconds * rate and len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                samples += len(block)
                not_finite += block.size - int(np.isfinite(block).sum())
            kind = "opus" if file.subtype == "OPUS" else {"WAVEX": "wav"}.get(file.format, file.format.lower())
    except (soundfile.SoundFileError, RuntimeError) as error:
        allowed = "it cannot be read as audio; wav, flac, mp3, ogg, opus and others that libsndfile knows can be used"
        raise refused(f"{len(data):,} bytes", allowed) from error
    if not samples:
        raise refused("0 s", "there are no samples in it")
    if samples > max_seconds * rate:
        raise refused(f"{samples / rate:.1f} s or more", longest)
    if not_finite:
        raise refused(f"{not_finite:,} samples", "every sample must be a finite number")
    return {"duration": samples / rate, "sample_rate": rate, "channels": channels, "format": kind}
