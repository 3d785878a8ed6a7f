"""Audio in answers: in any format, whole or the range that a player asks for."""

from __future__ import annotations

import asyncio
import io
import re

import soundfile
from starlette.requests import Request
from starlette.responses import Response

from acestep.audio_format import KINDS, AudioFormat
from serve.errors import ServiceError, UnprocessableError

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


class RangeError(ServiceError):
    """416: a range that begins behind the end of a file of `size` bytes."""

    status, type, code = 416, "invalid_request_error", "range_not_satisfiable"

    def __init__(self, size: int):
        super().__init__(f"the file has {size:,} bytes", param="Range")
        self.size = size

    def headers(self) -> dict[str, str]:
        """With the size that the client may ask within."""
        return {**super().headers(), "Content-Range": f"bytes */{self.size}"}


async def converted(data: bytes, stored: str, wanted: str | None) -> tuple[bytes, AudioFormat]:
    """A file in the format that is asked for, and that format.

    Raises:
        UnprocessableError: for a format that there is not.
    """
    if wanted is None or wanted == stored:
        return data, AudioFormat.parse(format=stored)
    if wanted not in KINDS:
        raise UnprocessableError(f"format: {wanted[:20]!r} is not allowed; allowed: {', '.join(KINDS)}", param="format")
    return await asyncio.to_thread(_convert, data, wanted), AudioFormat.parse(format=wanted)


def ranged(request: Request, data: bytes, media_type: str, headers: dict[str, str]) -> Response:
    """The bytes that a `Range` header names, or all: players need it to seek.

    Raises:
        RangeError: when there are none of them.
    """
    headers = headers | {"Accept-Ranges": "bytes"}
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or match[1] == match[2] == "":
        return Response(data, media_type=media_type, headers=headers)
    size = len(data)
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or size), size - 1)
    else:
        start, end = max(0, size - int(match[2])), size - 1
    if start > end:
        raise RangeError(size)
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Response(data[start : end + 1], 206, media_type=media_type, headers=headers)


def _convert(data: bytes, wanted: str) -> bytes:
    from acestep.audio import encode_audio

    with soundfile.SoundFile(io.BytesIO(data)) as file:
        tags = {name: value for name, value in file.copy_metadata().items() if name in ("title", "artist", "comment")}
        samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    return encode_audio(samples.T, rate, AudioFormat.parse(format=wanted), tags)
