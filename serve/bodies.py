"""Reading what clients send: JSON or forms, never more of it than is allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from serve.errors import MalformedError, TooLargeError

_FORM = ("multipart/form-data", "application/x-www-form-urlencoded")
_MAX_FIELDS = 100
_DEEPEST = 8
"""Nesting of JSON; a request of ours has three levels."""


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The object in a JSON body.

    Raises:
        MalformedError: for anything else.
        TooLargeError: for a longer one, before all of it is read.
    """
    data = await _read(request, max_bytes)
    try:
        value = json.loads(data, parse_constant=_refused_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedError(f"the body is not JSON: {reason[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise MalformedError(f"the body must be a JSON object, not {type(value).__name__}", code="invalid_json")
    if _depth(value) > _DEEPEST:
        raise MalformedError("the body is nested too deeply", code="invalid_json")
    return value


async def read_fields(request: Request, max_bytes: int, max_file_bytes: int) -> tuple[dict[str, Any], bytes | None]:
    """Fields of a JSON body or a form, and the audio that came as the form's file `source` or `file`.

    Raises:
        MalformedError, TooLargeError: as `read_json`.
    """
    if not request.headers.get("content-type", "").startswith(_FORM):
        return await read_json(request, max_bytes), None
    _check_length(request, max_bytes + max_file_bytes)
    values: dict[str, Any] = {}
    audio = None
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=max_bytes) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    if name in values:
                        raise MalformedError(f"the field {name[:60]!r} is there twice", code="invalid_form")
                    values[name] = value or None
                    continue
                if name not in ("source", "file"):
                    raise MalformedError(f"{name[:60]!r} cannot be a file; source can", code="invalid_form")
                if (value.size or 0) > max_file_bytes:
                    raise TooLargeError(f"audio may have {max_file_bytes:,} bytes", param=name)
                audio = await value.read()
    except HTTPException as error:
        raise MalformedError(f"the form cannot be read: {error.detail}", code="invalid_form") from None
    return values, audio


async def _read(request: Request, max_bytes: int) -> bytes:
    _check_length(request, max_bytes)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_bytes:
            raise TooLargeError(f"a body may have {max_bytes:,} bytes; send longer audio to /v1/audio/uploads")
    return bytes(data)


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > max_bytes:
        raise TooLargeError(f"a body may have {max_bytes:,} bytes; this one has {int(length):,}")


def _refused_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _depth(value: Any) -> int:
    inner: Any = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0) if inner or isinstance(value, Mapping | list) else 0
