"""`Line`: one server on the other end, with patience for what fails for a while. Below `acestep.client`.

All of it is written with async and await. Over a `BlockingLine` nothing ever suspends, so that `run` can take such a
coroutine to its end without an event loop: the client with asyncio and the one without are one piece of logic.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import httpx2

from acestep import __version__
from acestep.errors import ACEStepError, InvalidRequestError
from acestep.problems import Problem

logger = logging.getLogger(__name__)

KEY_VARIABLE = "ACESTEP_API_KEY"
_BUSY = (429, 503)
_HOPELESS = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
_LONGEST_PAUSE = 10.0

Json = dict[str, Any]
_T = TypeVar("_T")


class APIError(ACEStepError):
    """What a server answered instead of what was asked, or why a job failed.

    Attributes:
        status: of HTTP; None for a server that could not be reached, and for a job that failed.
        type: the kind of error, such as `invalid_request_error`; `connection_error` for no answer of the server itself.
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
        """Whether the same may do better later."""
        if self.type == "connection_error":
            return self.code != "no_request"
        return self.status in _BUSY or self.type == "rate_limit_error"

    @classmethod
    def of_response(cls, response: httpx2.Response) -> APIError:
        """An answer that is an error; one without our JSON is that of a proxy, or of Ray, before the server."""
        after = response.headers.get("retry-after", "")
        retry_after = float(after) if after.isascii() and after.isdigit() else None
        try:
            return cls.of(response.json()["error"], status=response.status_code, retry_after=retry_after)
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
    def of(cls, told: Mapping[str, Any], **more: Any) -> APIError:
        """The `error` of an answer or a job."""
        known = {name: told.get(name) for name in ("type", "code", "param")}
        return cls(told["message"], problems=told.get("problems") or (), **known, **more)

    def told(self) -> Json:
        """As `of` takes it."""
        return {"message": str(self)} | {name: getattr(self, name) for name in ("type", "code", "param", "problems")}


class Patience:
    """How long to go on trying; pauses grow, or are as long as the server says."""

    def __init__(self, seconds: float):
        self._deadline = time.monotonic() + seconds
        self._pauses = _growing()

    def pause_after(self, error: APIError) -> float:
        """Seconds to wait.

        Raises:
            APIError: the given one, when it will not pass, or not in time.
        """
        pause = next(self._pauses) if error.retry_after is None else error.retry_after
        if not error.may_pass or time.monotonic() + pause > self._deadline:
            raise error
        logger.warning("%s; trying again in %.1f s", error, pause)
        return pause


class Line:
    """See the module.

    Args:
        timeout: seconds that one answer may take.
        patience: seconds to go on trying while the server cannot be reached or takes no more.

    Raises:
        InvalidRequestError: for a URL that is none.
    """

    def __init__(self, url: str, api_key: str | None, timeout: float, patience: float):
        if not url.startswith(("http://", "https://")):
            raise InvalidRequestError([Problem("url", url, "it must be like http://localhost:7865")])
        key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
        self.patience = patience
        self.options: Json = {
            "base_url": url,
            "headers": {"User-Agent": f"acestep/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            "timeout": httpx2.Timeout(timeout, pool=None),
            "limits": httpx2.Limits(max_connections=None),
            "follow_redirects": True,
        }

    async def ask(self, method: str, path: str, patience: float | None = None, **arguments: Any) -> httpx2.Response:
        """The answer to a request that may be sent more than once.

        Raises:
            APIError: for an answer that is an error, and for none.
        """
        left = Patience(self.patience if patience is None else patience)
        while True:
            try:
                return await self.ask_once(method, path, **arguments)
            except APIError as error:
                await self.sleep(left.pause_after(error))

    async def ask_once(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """The answer to a request that is sent once.

        Raises:
            APIError: for an answer that is an error, and for none.
        """
        try:
            response = await self.send(method, path, **arguments)
        except httpx2.RequestError as error:
            raise APIError.of_failure(error) from error
        if response.is_error:
            raise APIError.of_response(response)
        return response

    async def send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """Whatever comes back."""
        raise NotImplementedError

    def events(self, path: str, timeout: float) -> AsyncGenerator[Json, None]:
        """The data of server-sent events, until the stream ends, breaks or is silent for so long; never raises."""
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        raise NotImplementedError

    async def do(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """The result of a function that waits for a disk."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close its connections."""
        raise NotImplementedError


class BlockingLine(Line):
    """Waits where it stands."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._http = httpx2.Client(**self.options)

    async def send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        return self._http.request(method, path, **arguments)

    async def events(self, path: str, timeout: float) -> AsyncGenerator[Json, None]:
        try:
            with self._http.stream("GET", path, timeout=timeout) as response:
                for event in httpx2.EventSource(response) if response.is_success else ():
                    yield event.json()  # type: ignore[misc]
        except httpx2.RequestError as error:
            logger.debug("the events of %s broke off: %r", path, error)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def do(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return function(*arguments)

    async def close(self) -> None:
        self._http.close()


class AsyncLine(Line):
    """Waits with asyncio."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._http = httpx2.AsyncClient(**self.options)

    async def send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        return await self._http.request(method, path, **arguments)

    async def events(self, path: str, timeout: float) -> AsyncGenerator[Json, None]:
        try:
            async with self._http.stream("GET", path, timeout=timeout) as response:
                if response.is_success:
                    async for event in httpx2.EventSource(response):
                        yield event.json()  # type: ignore[misc]
        except httpx2.RequestError as error:
            logger.debug("the events of %s broke off: %r", path, error)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def do(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.to_thread(function, *arguments)

    async def close(self) -> None:
        await self._http.aclose()


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine over a `BlockingLine`."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited for an event loop")


def _growing() -> Iterator[float]:
    pause = 0.25
    while True:
        yield pause * random.uniform(0.75, 1.25)  # Many clients must not come back all at once.
        pause = min(2 * pause, _LONGEST_PAUSE)
