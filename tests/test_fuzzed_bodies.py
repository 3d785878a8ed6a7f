"""A thousand bodies that nobody would send: each is answered, or refused in the one shape of errors; none is a 5xx."""

from __future__ import annotations

import json
import random
import string
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2

from acestep.request import GenerationRequest
from serve.wire import ALIASES
from tests.running_server import running_server
from tests.test_sources import sound

BODIES = 1000
ENDPOINTS = ("generations", "generate", "jobs", "jobs", "uploads")
ALLOWED = (200, 201, 202, 400, 404, 409, 413, 415, 422, 429)
WORKERS = 4

NAMES = (
    *GenerationRequest.model_fields,
    *ALIASES,
    *("n", "model", "response_format", "delivery", "stream_format", "items", "defaults", "speed", "negative_prompt"),
)
GOOD: dict[str, Any] = {
    "prompt": "song",
    "lyrics": "[verse]\nla",
    "language": "en",
    "duration": 1,
    "seed": 3,
    "num_inference_steps": 2,
    "guidance_scale": 7.5,
    "scheduler": "heun",
    "guidance": "cfg",
    "n": 2,
    "response_format": "wav",
    "delivery": "b64_json",
    "oss_steps": [2, 4],
    "use_erg_tag": False,
    "model": "stand-in",
    "sample_rate": 48_000,
}
CONTENT_TYPES = ("application/json",) * 6 + ("text/plain", "", "application/xml", "multipart/form-data", ";;")
STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1e308,
    -1e-320,
    2**63,
    2**64,
    -(2**200),
    10**3000,
    "",
    " ",
    "\0",
    "\x1b[31m",
    "é" * 5000,
    "a\u0301\u202e\ufeff\U0001f3b5",
    "../../etc/passwd",
    "file:///etc/passwd",
    "job:job-20200101T000000000000-00000000/99",
    "upload:upload-" + "0" * 32,
    "data:audio/wav;base64,AAAA",
    "http://127.0.0.1:1/x",
    "http://[::1",
    "1e5",
    "9" * 400,
    "NaN",
    "{}",
    "'; DROP TABLE songs; --",
    [],
    {},
    [[]],
    [None] * 9,
    {"": {}},
    {"prompt": "x"},
    [1, 2, 3],
    ["a", 1, None, {}],
)


class Sender:
    """Makes one request of each number, the same in every run."""

    def __init__(self, client: httpx2.Client):
        self._client = client

    def send(self, number: int) -> httpx2.Response:
        draw = random.Random(number)
        url = f"/v1/audio/{draw.choice(ENDPOINTS)}"
        headers = draw.choice([{}, {}, {"Accept": "audio/*"}, {"Idempotency-Key": draw.choice("abc") * 20}])
        if draw.random() < 0.2:
            return self._client.post(url, headers=headers, **self._form(draw))
        content, kind = self._json(draw)
        return self._client.post(url, content=content, headers=headers | {"Content-Type": kind})

    def _json(self, draw: random.Random) -> tuple[bytes, str]:
        kind = draw.choice(CONTENT_TYPES)
        if draw.random() < 0.15:
            return draw.choice(NO_JSON)(draw), kind
        text = json.dumps(self._body(draw), ensure_ascii=draw.random() < 0.5)
        if draw.random() < 0.1:  # One value that JSON's grammar has no name for, or a field twice.
            extra = draw.choice(['"seed": NaN', '"duration": -Infinity', '"prompt": "x", "prompt": 1', '"n": 1e999'])
            text = text.replace("{", "{" + extra + (", " if len(text) > 2 else ""), 1)
        return text.encode("utf-8", "surrogatepass"), kind

    def _body(self, draw: random.Random) -> Any:
        if draw.random() < 0.03:
            return draw.choice(STRANGE)
        body = {name: GOOD[name] for name in draw.sample(sorted(GOOD), draw.randint(0, 6))}
        if draw.random() < 0.8:
            body |= {"prompt": "song", "duration": 1}
        for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
            body[draw.choice(NAMES)] = self._value(draw)
        if draw.random() < 0.1:
            body[draw.choice(["", "promt", "\ud800", "é", "x" * 500, "__class__", "a.b"])] = self._value(draw)
        if draw.random() < 0.1:
            items = [body if draw.random() < 0.5 else self._value(draw) for _ in range(draw.randint(0, 4))]
            return {"items": items, "defaults": draw.choice([{}, {"duration": 1}, body, None, 3])}
        return body

    def _value(self, draw: random.Random) -> Any:
        if draw.random() < 0.1:
            return "".join(draw.choices(string.printable + "éß中🎵\ud800\u0000", k=draw.randint(1, 40)))
        return draw.choice(STRANGE)

    def _form(self, draw: random.Random) -> dict[str, Any]:
        fields: dict[str, str] = {}
        for name in draw.sample(NAMES, draw.randint(0, 4)):
            fields[name] = (
                str(draw.choice([GOOD.get(name, "x"), self._value(draw)])).encode("utf-8", "replace").decode()
            )
        if draw.random() < 0.7:
            fields |= {"prompt": "song", "duration": "1"}
        if draw.random() < 0.3:
            return {"data": fields}
        file = ("a.wav", draw.choice([b"", b"junk", SOUND, SOUND[:100], draw.randbytes(300)]))
        return {"data": fields, "files": {draw.choice(["source", "file", "other"]): file}}


SOUND = sound(0.2)
NO_JSON: tuple[Any, ...] = (
    lambda draw: b"",
    lambda draw: draw.randbytes(draw.randint(1, 200)),
    lambda draw: b"[" * draw.choice([10, 900, 50_000]),
    lambda draw: b'{"a":' * draw.choice([9, 500, 990, 5000]) + b"1",
    lambda draw: b'{"a":' * (deep := draw.choice([7, 9, 300, 990])) + b"1" + b"}" * deep,
    lambda draw: b'{"prompt": "x"',
    lambda draw: b"\xef\xbb\xbf{}",
    lambda draw: json.dumps({"prompt": "x"}).encode("utf-16"),
    lambda draw: b'{"seed": ' + b"9" * 10_000 + b"}",
    lambda draw: b'{"prompt": "\\ud800"}',
)


def is_an_error(answer: httpx2.Response) -> bool:
    """Whether it has the one shape."""
    error = answer.json()["error"]
    names = {"message", "type", "param", "code", "problems"}
    return set(error) == names and bool(error["message"] and error["type"] and error["code"])


def test_a_thousand_bodies(tmp_path: Any) -> None:
    with running_server(tmp_path, queue__max_songs=200, batch__max_batch_size=16) as server, server.client() as client:
        sender = Sender(client)
        with ThreadPoolExecutor(WORKERS) as pool:
            answers = list(pool.map(sender.send, range(BODIES)))
        strange = [
            (number, answer.status_code, answer.text[:300])
            for number, answer in enumerate(answers)
            if answer.status_code not in ALLOWED or (answer.status_code >= 400 and not is_an_error(answer))
        ]
        assert not strange
        counts = Counter(answer.status_code for answer in answers)
        assert counts[200] > 20 and counts[202] > 20 and counts[422] > 100 and counts[400] > 50, counts
        assert max(len(answer.content) for answer in answers if answer.status_code >= 400) < 50_000
        assert client.get("/ready").status_code == 200
        good = client.post("/v1/audio/generations", json={"prompt": "song", "duration": 1})
        assert good.status_code == 200, "the server and its engine live"
