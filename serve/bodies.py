"""Reading what clients send: JSON or forms, never more of it than is allowed."""

from __future__ import annotations

import json
import re
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from serve.errors import MalformedError, TooLargeError

_FORM = ("multipart/form-data", "application/x-www-form-urlencoded")
_MAX_FIELDS = 100
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FORM_OVERHEAD = 1 << 16
"""Bytes between the parts of a form."""
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
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_refused_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedError(f"the body is not JSON: {reason[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise MalformedError(f"the body must be a JSON object, not {type(value).__name__}", code="invalid_json")
    if _is_deeper(value, _DEEPEST):
        raise MalformedError("the body is nested too deeply", code="invalid_json")
    if _SURROGATE.search(data):
        _check_text(json.dumps(value, ensure_ascii=False), "invalid_json")
    return value


async def read_fields(request: Request, max_bytes: int, max_file_bytes: int) -> tuple[dict[str, Any], bytes | None]:
    """Fields of a JSON body or a form, and the audio that came as the form's file `source` or `file`.

    Raises:
        MalformedError, TooLargeError: as `read_json`.
    """
    if not request.headers.get("content-type", "").strip().lower().startswith(_FORM):
        return await read_json(request, max_bytes), None
    request = _limited(request, max_bytes + max_file_bytes + _FORM_OVERHEAD)
    values: dict[str, Any] = {}
    audio = None
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=max_bytes) as form:
            for name, value in form.multi_items():
                _check_text(name, "invalid_form")
                if name.startswith("{"):  # What curl says of it if it is told nothing else.
                    raise MalformedError(
                        "the form looks like JSON: send Content-Type: application/json", code="invalid_form"
                    )
                if isinstance(value, str):
                    if name in values:
                        raise MalformedError(f"the field {name[:60]!r} is there twice", code="invalid_form")
                    _check_text(value, "invalid_form")
                    values[name] = value or None
                    continue
                if not value.filename and not value.size:
                    continue  # What browsers send for a file that nobody chose.
                if name not in ("source", "file"):
                    raise MalformedError(f"{name[:60]!r} cannot be a file; source can", code="invalid_form")
                if (value.size or 0) > max_file_bytes:
                    raise TooLargeError(f"audio may have {max_file_bytes:,} bytes", param=name)
                audio = await value.read()
    except HTTPException as error:
        raise MalformedError(f"the form cannot be read: {error.detail}", code="invalid_form") from None
    except (FormParserError, UnicodeError) as error:
        raise MalformedError(f"the form cannot be read: {type(error).__name__}", code="invalid_form") from None
    if audio is not None and values.get("source") is not None:
        raise MalformedError("source is there twice: as text and as a file", param="source", code="invalid_form")
    return values, audio


async def _read(request: Request, max_bytes: int) -> bytes:
    return await _limited(request, max_bytes).body()


def _limited(request: Request, max_bytes: int) -> Request:
    """The same request, whose body raises `TooLargeError` as soon as it has more bytes, whatever its header says."""
    longer = f"a body may have {max_bytes:,} bytes; send longer audio to /v1/audio/uploads"
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > max_bytes:
        raise TooLargeError(longer)
    seen = 0

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise TooLargeError(longer)
        return message

    return Request(request.scope, receive)


def _check_text(text: str, code: str) -> None:
    """Halves of characters beyond the 16-bit ones can neither be stored nor answered."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedError("the body has halves of characters (lone surrogates) in it", code=code) from None


def _refused_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether it has more levels; it looks no further down than that."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)
