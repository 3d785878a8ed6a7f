"""Reading bodies: what is no JSON or form is said so, and nothing is read that is longer than it may be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.requests import Request

from serve.bodies import read_fields
from serve.errors import MalformedError, ServiceError, TooLargeError

BOUNDARY = "----form"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
URLENCODED = "application/x-www-form-urlencoded"


class Sent:
    """A request with its body in chunks; knows how many of them were asked for."""

    def __init__(self, chunks: Iterable[bytes], content_type: str, length: int | None = None):
        self.chunks, self.taken = list(chunks), 0
        headers = [(b"content-type", content_type.encode())]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        self.scope = {"type": "http", "method": "POST", "path": "/", "headers": headers, "app": None}

    async def receive(self) -> Any:
        self.taken += 1
        body = self.chunks[self.taken - 1] if self.taken <= len(self.chunks) else b""
        return {"type": "http.request", "body": body, "more_body": self.taken < len(self.chunks)}

    def read(self, max_bytes: int = 10_000, max_file_bytes: int = 100_000) -> tuple[dict[str, Any], bytes | None]:
        return asyncio.run(read_fields(Request(self.scope, self.receive), max_bytes, max_file_bytes))


def read(body: bytes, content_type: str = "application/json") -> tuple[dict[str, Any], bytes | None]:
    return Sent([body], content_type).read()


def refused(body: bytes, content_type: str = "application/json") -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read(body, content_type)
    json.dumps(caught.value.body(), ensure_ascii=False).encode()
    return caught.value


def form(*parts: tuple[str, str | bytes], end: bool = True) -> bytes:
    """Parts by name; bytes become files."""
    lines = b""
    for name, value in parts:
        file = '; filename="a.wav"' if isinstance(value, bytes) else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        lines += head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return lines + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


@pytest.mark.parametrize("kind", ["application/json", "", "text/plain", "application/json; charset=utf-8"])
def test_what_is_no_form_is_json(kind: str) -> None:
    assert read('{"prompt": "å", "n": 2}'.encode(), kind) == ({"prompt": "å", "n": 2}, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"\xff\xfe",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a": ' * 900 + b"1" + b"}" * 900,
        b'{"a": ' * 20 + b"1" + b"}" * 20,
        b'{"a": "\\ud800"}',
        b'{"\\uDFFF": 1}',
        '{"\ud800": 1}'.encode("utf-8", "surrogatepass"),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_object_of_json_is_said_so(body: bytes) -> None:
    error = Sent([body], "").read
    with pytest.raises(MalformedError) as caught:
        error(max_bytes=1_000_000)
    assert caught.value.code == "invalid_json" and len(caught.value.message) < 300


def test_whole_characters_of_two_halves_are_welcome() -> None:
    assert read(b'{"prompt": "\\ud83c\\udfb5 \\\\ud800"}')[0] == {"prompt": "🎵 \\ud800"}


def test_a_body_that_is_too_long_is_not_read() -> None:
    sent = Sent([b" " * 100] * 1000, "application/json", length=100_000)
    with pytest.raises(TooLargeError, match="10,000 bytes"):
        sent.read()
    assert sent.taken == 0


@pytest.mark.parametrize("length", [None, 5])
@pytest.mark.parametrize(("kind", "most"), [("application/json", 10_000), (URLENCODED, 180_000), (FORM, 180_000)])
def test_a_body_that_says_nothing_of_its_length_is_not_read_to_its_end(
    kind: str, most: int, length: int | None
) -> None:
    start = form(("source", b""), end=False)[:-2] if kind == FORM else b""
    sent = Sent([start, *[b"f=1&" * 250] * 1000], kind, length)
    with pytest.raises(TooLargeError if kind != URLENCODED else MalformedError):
        sent.read()
    assert sent.taken < most / 1000 + 10


def test_forms_have_fields_and_one_file() -> None:
    parts = [("prompt", "é"), ("seed", "7"), ("lyrics", ""), ("source", b"RIFF")]
    values, audio = read(form(*parts), FORM)
    assert values == {"prompt": "é", "seed": "7", "lyrics": None} and audio == b"RIFF"
    assert read(form(("file", b"x")), FORM) == ({}, b"x")
    assert read(b"prompt=a+b&seed=%37", URLENCODED) == ({"prompt": "a b", "seed": "7"}, None)
    upper = FORM.replace("multipart/form-data", "Multipart/Form-Data")
    assert read(form(("prompt", "x")), upper) == ({"prompt": "x"}, None)


def test_a_file_that_nobody_chose_is_none() -> None:
    empty = form(("prompt", "x"), ("source", b"")).replace(b'filename="a.wav"', b'filename=""')
    assert read(empty, FORM) == ({"prompt": "x"}, None)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(("a", "1"), ("a", "2")), FORM),
        (form(("other", b"x")), FORM),
        (form(("source", b"x"), ("file", b"y")), FORM),
        (form(("source", "upload:x"), ("source", b"y")), FORM),
        (form(("source", b"y"), ("source", "upload:x")), FORM),
        (form(*((f"f{number}", "1") for number in range(200))), FORM),
        (form(("a", "x" * 20_000)), FORM),
        (form(("a", "1")), "multipart/form-data"),
        (b"junk", FORM),
        (form(("a", "1")).replace(b'; name="a"', b""), FORM),
        (form(("a", "\\ud800")), FORM + "; charset=unicode_escape"),
        (b"&".join(b"f%d=1" % number for number in range(200)), URLENCODED),
        (b"a=1&a=2", URLENCODED),
    ],
)
def test_forms_that_cannot_be_read(body: bytes, content_type: str) -> None:
    error = refused(body, content_type)
    assert (error.status, error.code) == (400, "invalid_form") and len(error.message) < 200


def test_a_file_may_be_longer_than_fields() -> None:
    assert read(form(("source", b"x" * 50_000)), FORM)[1] == b"x" * 50_000
    assert refused(form(("source", b"x" * 100_001)), FORM).status == 413
