"""`Conversation`: what a client says to a server, and what it makes of the answers. Does no input or output itself.

Each of its methods is a generator. It yields a `Call`, and is sent the response or the error that came instead; or it
yields a `Pause`. `acestep.client` drives them, with asyncio and without.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from acestep.errors import ACEStepError

logger = logging.getLogger(__name__)

JOBS = "/v1/audio/jobs"
FINAL = ("completed", "failed", "cancelled")
MANY = 50
"""Items that are sent in one submission of many."""
_RETRIED = (429, 503)
_HOPELESS = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
_LONGEST_PAUSE = 10.0
_REMOTE = re.compile(r"(?:upload|job)[:-]|data:")

Json = dict[str, Any]
Source = str | os.PathLike[str] | bytes
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Call:
    """A request to be sent; `arguments` are those of `httpx2.Client.request`."""

    method: str
    path: str
    arguments: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """Time to let pass, in seconds."""

    seconds: float


Flow = Generator[Call | Pause, Any, _T]


class APIError(ACEStepError):
    """What a server answered instead of what was asked, or why a job failed.

    Attributes:
        status: of HTTP; None for a server that could not be reached, and for a job that failed.
        type: the kind of error, such as `invalid_request_error`; `connection_error` for no answer at all.
        code: one word for programs, such as `queue_full`.
        param: the field that is at fault.
        problems: every single thing that is wrong, `{param, message}` each.
        retry_after: seconds after which the server says that the same may do better.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        problems: Iterable[Mapping[str, Any]] = (),
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.type, self.code, self.param = status, type, code, param
        self.problems = tuple(map(dict, problems))
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),), self.__dict__

    @property
    def may_pass(self) -> bool:
        """Whether the same may do better later: no answer, too busy, or an error of something before the server."""
        if self.type == "rate_limit_error" or self.status in _RETRIED:
            return True
        return self.type == "connection_error" and self.code != "no_request"

    @classmethod
    def of_response(cls, response: httpx2.Response) -> APIError:
        """An answer that is an error; one of a proxy has another shape, and counts as no answer from 500 on."""
        after = response.headers.get("retry-after", "")
        retry_after = float(after) if after.isascii() and after.isdigit() else None
        try:
            told = response.json()["error"]
            return cls(retry_after=retry_after, status=response.status_code, **_fields(told))
        except (ValueError, KeyError, TypeError):
            message = f"{response.status_code} {response.reason_phrase}: {response.text[:200]}"
            kind = "connection_error" if response.status_code >= 500 else "http_error"
            return cls(message, status=response.status_code, type=kind, retry_after=retry_after)

    @classmethod
    def of_failure(cls, error: httpx2.RequestError) -> APIError:
        """No answer."""
        message = f"the server cannot be reached: {str(error) or type(error).__name__}"
        code = "no_request" if isinstance(error, _HOPELESS) else "no_answer"
        return cls(message, type="connection_error", code=code)

    @classmethod
    def of_job(cls, job: Mapping[str, Any]) -> APIError:
        """Why a job was not completed."""
        told = job.get("error") or {"message": f"{job.get('id')} was {job['status']}", "code": job["status"]}
        return cls(**_fields(told))


def _fields(told: Mapping[str, Any]) -> Json:
    known = {name: told.get(name) for name in ("type", "code", "param")}
    return {"message": told["message"], "problems": told.get("problems") or (), **known}


class Patience:
    """How long to go on trying; pauses grow, and are as long as the server says where it says so."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """There was progress: begin anew."""
        self._deadline = time.monotonic() + self._seconds
        self._pauses = self._growing()

    def rest(self, error: APIError) -> Flow[None]:
        """Wait for better times.

        Raises:
            APIError: the given one, when it will not pass, or not in time.
        """
        pause = next(self._pauses) if error.retry_after is None else error.retry_after
        if not error.may_pass or time.monotonic() + pause > self._deadline:
            raise error
        logger.warning("%s; trying again in %.1f s", error, pause)
        yield Pause(pause)

    @staticmethod
    def _growing() -> Iterator[float]:
        pause = 0.25
        while True:
            yield pause * random.uniform(0.75, 1.25)  # Many clients must not come back all at once.
            pause = min(2 * pause, _LONGEST_PAUSE)


class Conversation:
    """See the module.

    Args:
        patience: seconds to go on trying while the server cannot be reached or takes no more.
    """

    def __init__(self, patience: float):
        self._patience = patience

    def ask(self, method: str, path: str, patience: float | None = None, **arguments: Any) -> Flow[httpx2.Response]:
        """The answer to a request that may be sent more than once.

        Raises:
            APIError: for an answer that is an error, and for none.
        """
        left = Patience(self._patience if patience is None else patience)
        while True:
            try:
                return (yield from _once(Call(method, path, arguments)))
            except APIError as error:
                yield from left.rest(error)

    def submit(self, settings: Mapping[str, Any]) -> Flow[Json]:
        """A new job; the same however often it had to be sent."""
        body = yield from self._body(settings, {})
        return (yield from self._post_once(body)).json()

    def submit_many(self, items: Iterable[Mapping[str, Any] | str], defaults: Mapping[str, Any]) -> Flow[list[Json]]:
        """A job for each item, or `{status: "failed", error}`; what found the queue full is sent again.

        Raises:
            APIError: where not a single one could be sent.
        """
        uploaded: dict[Any, str] = {}
        bodies: list[Json] = []
        for item in items:
            settings = {"prompt": item} if isinstance(item, str) else item
            bodies.append((yield from self._body({**defaults, **settings}, uploaded)))
        found: dict[int, Json] = {}
        left, patience = list(range(len(bodies))), Patience(self._patience)
        while left:
            some, refused = left[:MANY], []
            try:
                answer = yield from self._post_once({"items": [bodies[index] for index in some]})
                for index, entry in zip(some, answer.json()["data"], strict=True):
                    found[index] = entry
                    if entry["status"] == "failed" and APIError.of_job(entry).may_pass:
                        refused.append(index)
                if refused:
                    if len(refused) < len(some):
                        patience.renew()
                    yield from patience.rest(APIError.of_job(found[refused[0]]))
            except APIError as error:
                if not any("id" in entry for entry in found.values()):
                    raise
                about = {name: getattr(error, name) for name in ("type", "code", "param")}
                told = {"status": "failed", "error": {"message": str(error), **about}}
                return [found.get(index, told) for index in range(len(bodies))]
            left = refused + left[len(some) :]
        return [found[index] for index in range(len(bodies))]

    def upload(self, source: Source) -> Flow[str]:
        """`upload:<id>`, for the bytes of an audio file or its local path.

        Raises:
            OSError: for a file that cannot be read.
        """
        name = "audio" if isinstance(source, bytes) else Path(source).name
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        answer = yield from self.ask("POST", "/v1/audio/uploads", files={"file": (name, data)})
        return f"upload:{answer.json()['id']}"

    def job(self, id: str, patience: float | None = None) -> Flow[Json]:
        """A job as it stands."""
        return (yield from self.ask("GET", job_path(id), patience)).json()

    def cancel(self, id: str, patience: float | None = None) -> Flow[Json]:
        """The job, which is then over. One that was over before is left as it is."""
        left = Patience(self._patience if patience is None else patience)
        while True:  # Never two DELETEs without a look in between: the second would delete what the first ended.
            job = yield from self.job(id, patience)
            if job["status"] in FINAL:
                return job
            try:
                answer = (yield from _once(Call("DELETE", job_path(id)))).json()
                return answer if "status" in answer else job
            except APIError as error:
                yield from left.rest(error)

    def delete(self, id: str) -> Flow[None]:
        """Cancel a job if need be, and delete its record and its audio. One that is gone is deleted."""
        try:
            yield from self.cancel(id)
            yield from self.ask("DELETE", job_path(id))
        except APIError as error:
            if error.status != 404:
                raise

    def content(self, id: str, index: int, format: str | None) -> Flow[bytes]:
        """The file of one song, converted by the server where a format is named."""
        query = {"index": index, **({"format": format} if format else {})}
        return (yield from self.ask("GET", f"{job_path(id)}/content", params=query)).content

    def json(self, path: str, **query: Any) -> Flow[Json]:
        """The JSON that stands there."""
        query = {name: value for name, value in query.items() if value is not None}
        return (yield from self.ask("GET", path, params=query)).json()

    def _post_once(self, body: Json) -> Flow[httpx2.Response]:
        return self.ask("POST", JOBS, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})

    def _body(self, settings: Mapping[str, Any], uploaded: dict[Any, str]) -> Flow[Json]:
        """The settings, with a source that the server knows; each file is sent once."""
        body = dict(settings)
        source = body.get("source")
        if source is None:
            return body
        if (named := getattr(source, "source", None)) is not None:  # A song that is there already.
            return body | {"source": named}
        if isinstance(source, str):
            if "://" in source or (_REMOTE.match(source) and not (len(source) < 255 and os.path.exists(source))):
                return body
        if source not in uploaded:
            uploaded[source] = yield from self.upload(source)
        return body | {"source": uploaded[source]}


def job_path(id: str) -> str:
    """Where the server has a job."""
    return f"{JOBS}/{quote(id, safe='')}"


def _once(call: Call) -> Flow[httpx2.Response]:
    answer = yield call
    if isinstance(answer, httpx2.RequestError):
        raise APIError.of_failure(answer) from answer
    if answer.is_error:
        raise APIError.of_response(answer)
    return answer
