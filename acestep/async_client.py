"""`AsyncClient`: songs from a server, with asyncio. `acestep.client.Client` is the same without."""

from __future__ import annotations

import inspect
import os
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Literal, overload
from urllib.parse import quote

from acestep.audio_format import AudioFormat
from acestep.line import APIError, AsyncLine, Json, Line, Patience
from acestep.whole_file import write_whole

URL = "http://localhost:7865"
FINAL = ("completed", "failed", "cancelled")
MANY = 50
"""Items that are sent in one submission of many."""
QUIET_SECONDS = 10.0
"""Events that say nothing for so long are asked for anew, with a look at the job: a proxy may hold them back."""
RECONNECT_SECONDS = 0.5
_JOBS = "/v1/audio/jobs"
_KNOWN_THERE = re.compile(r"(?:upload|job)[:-]|data:|[a-z0-9]+://")

Source = str | os.PathLike[str] | bytes
Progress = Callable[[Json], Any]


class AsyncSong:
    """One song that a server has made.

    Attributes:
        id: `<job>/<index>`.
        facts: all that the server says of it: seed, duration, sample_rate, bytes, sha256, format, warnings, ...
        parameters: every setting, resolved, as `generate(**parameters)` takes them to make it again.
    """

    def __init__(self, line: Line, job: Json, facts: Json):
        self._line, self.facts = line, facts
        self.id = f"{job['id']}/{facts['index']}"
        self.parameters: Json = {**job["parameters"], "seed": facts["seed"], "n": 1}

    @property
    def seed(self) -> int:
        """The seed used."""
        return self.facts["seed"]

    @property
    def duration(self) -> float:
        """Seconds made: up to 93 ms less than asked."""
        return self.facts["duration"]

    @property
    def source(self) -> str:
        """What a request calls it, to begin with it; the song itself will do, too."""
        return f"job:{self.id}"

    async def bytes(self, format: str | None = None) -> bytes:
        """The file, as the server has it, or converted to wav, flac, mp3, ogg or opus.

        Raises:
            APIError: when it has expired, or for a format that there is not.
        """
        job, _, index = self.id.rpartition("/")
        query = {"index": index} | ({"format": format} if format not in (None, self.facts["format"]) else {})
        return (await self._line.ask("GET", f"{_path(job)}/content", params=query)).content

    async def save(self, path: str | os.PathLike[str]) -> str:
        """Write it to a local file, whole or not at all; the extension names the format. Returns the path.

        Raises:
            AudioFormatError: for an extension that is no format.
            APIError: when it has expired.
        """
        data = await self.bytes(AudioFormat.from_path(path).format)
        await self._line.do(write_whole, os.fspath(path), data)
        return os.fspath(path)

    def __repr__(self) -> str:
        return f"<song {self.id}, {self.duration:.1f} s, seed {self.seed}>"


class AsyncJobHandle:
    """A job of a server.

    Attributes:
        id: empty for an item of many that was refused; `error` says why.
        job: as last heard of.
    """

    def __init__(self, line: Line, job: Json):
        self._line, self.job = line, job
        self.id: str = job.get("id", "")

    @property
    def is_over(self) -> bool:
        """Whether it is, as far as is known."""
        return self.job.get("status") in FINAL

    @property
    def error(self) -> APIError | None:
        """Why it was not completed, as far as is known."""
        if self.job.get("status") not in ("failed", "cancelled"):
            return None
        known = {"message": f"{self.id} was cancelled", "type": "cancelled", "code": "cancelled"}
        return APIError.of(self.job.get("error") or known)

    async def status(self) -> Json:
        """The job as it stands: status, progress, queue_position, data, error, ..."""
        return await self._look()

    async def events(self, timeout: float | None = None) -> AsyncGenerator[Json, None]:
        """The job now and each time it changes, until it is over; a connection that breaks is made anew.

        Raises:
            TimeoutError: when it was not over after so many seconds; it goes on.
            APIError: when the server cannot be reached, or has no such job.
        """
        left = (lambda: QUIET_SECONDS) if timeout is None else _countdown(timeout)
        while self.id:
            quiet = max(0.1, min(QUIET_SECONDS, left()))
            async with aclosing(self._line.events(f"{_path(self.id)}/events", quiet)) as jobs:
                async for job in jobs:
                    self.job = job
                    yield job
                    if self.is_over:
                        return
                    if left() < 0:
                        break
            yield await self._look()
            if self.is_over:
                return
            if left() < 0:
                raise TimeoutError(f"{self.id} is {self.job['status']}: it was not over after {timeout:g} s")
            await self._line.sleep(RECONNECT_SECONDS)

    async def wait(self, progress: Progress | None = None, timeout: float | None = None) -> Json:
        """The job once it is over, completed or not.

        Args:
            progress: called with the job each time it changes; what it returns is awaited if that can be.
            timeout: seconds.

        Raises:
            TimeoutError: when it was not over in time; it goes on.
        """
        async with aclosing(self.events(timeout)) as jobs:
            async for job in jobs:
                if progress is not None and inspect.isawaitable(pending := progress(job)):
                    await pending
        return self.job

    async def songs(self, progress: Progress | None = None, timeout: float | None = None) -> list[AsyncSong]:
        """Wait for its songs, as `wait` does.

        Raises:
            APIError: when it was not completed; `job["data"]` tells of those songs that there are.
        """
        job = await self.wait(progress, timeout)
        if self.error is not None:
            raise self.error
        return [AsyncSong(self._line, job, facts) for facts in job["data"]]

    async def cancel(self) -> Json:
        """End it if it is not over; its songs leave a running batch at the next step. Returns the job."""
        return await self._cancel(None)

    async def delete(self) -> None:
        """Cancel it if it is not over, and delete its record and its audio."""
        try:
            await self._cancel(None)
            await self._line.ask("DELETE", _path(self.id))
        except APIError as error:
            if error.status != 404:
                raise

    async def _look(self, patience: float | None = None) -> Json:
        if self.id:
            self.job = (await self._line.ask("GET", _path(self.id), patience)).json()
        return self.job

    async def _cancel(self, patience: float | None) -> Json:
        left = Patience(self._line.patience if patience is None else patience)
        while (await self._look(patience))["status"] not in FINAL:
            try:
                self.job = (await self._line.ask_once("DELETE", f"{_path(self.id)}?cancel=true")).json()
            except APIError as error:
                await self._line.sleep(left.pause_after(error))
        return self.job

    def __repr__(self) -> str:
        return f"<job {self.id or '(refused)'}: {self.job.get('status', 'not asked for yet')}>"


class AsyncClient:
    """A server.

    Args:
        api_key: None: what the variable ACESTEP_API_KEY says, if there is one.
        timeout: seconds that one answer may take; not how long a song may take.
        patience: seconds to go on trying while the server cannot be reached or takes no more.

    Raises:
        InvalidRequestError: for a URL that is none.
    """

    _line_class: type[Line] = AsyncLine

    def __init__(self, url: str = URL, api_key: str | None = None, *, timeout: float = 60.0, patience: float = 120.0):
        self._line = self._line_class(url, api_key, timeout, patience)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._line.close()

    @overload
    async def generate(
        self, prompt: str, *, n: Literal[1] = 1, progress: Progress | None = None, **settings: Any
    ) -> AsyncSong: ...

    @overload
    async def generate(
        self, prompt: str, *, n: int, progress: Progress | None = None, **settings: Any
    ) -> list[AsyncSong]: ...

    async def generate(
        self, prompt: str, *, n: int = 1, progress: Progress | None = None, **settings: Any
    ) -> AsyncSong | list[AsyncSong]:
        """Make one song, or with `n` above 1 a list, and wait; whoever stops waiting cancels the job.

        Args:
            progress: called with the job each time it changes.
            settings: fields of `GenerationRequest`, and `response_format`; a local `source` is uploaded.

        Raises:
            APIError: when it cannot be made.
            OSError: for a local source that cannot be read.
        """
        handle = await self.submit(prompt, n=n, **settings)
        try:
            songs = await handle.songs(progress)
        except BaseException:
            if not handle.is_over:
                with suppress(APIError):
                    await handle._cancel(0)
            raise
        return songs[0] if n == 1 else songs

    async def submit(self, prompt: str, **settings: Any) -> AsyncJobHandle:
        """Ask for one song, or `n`, and do not wait.

        Raises:
            APIError, OSError: as `generate`.
        """
        body = await self._body({"prompt": prompt, **settings}, {})
        return AsyncJobHandle(self._line, await self._post(body))

    async def submit_many(self, items: Iterable[Mapping[str, Any] | str], **defaults: Any) -> list[AsyncJobHandle]:
        """Ask for each item: settings, or a prompt alone. A bad one has an `error`, and is no other's problem.

        What finds the queue full is sent again, for as long as the client has patience.

        Raises:
            APIError: when not one of them could be sent.
            OSError: for a local source that cannot be read.
        """
        uploaded: dict[Any, str] = {}
        settings = [{"prompt": item} if isinstance(item, str) else item for item in items]
        bodies = [await self._body({**defaults, **each}, uploaded) for each in settings]
        jobs: dict[int, Json] = {}
        left, patience = list(range(len(bodies))), Patience(self._line.patience)
        while left:
            some = left[:MANY]
            try:
                answer = await self._post({"items": [bodies[index] for index in some]})
                jobs |= zip(some, answer["data"], strict=True)
                errors = {index: APIError.of(jobs[index]["error"]) for index in some if "id" not in jobs[index]}
                again = [index for index, error in errors.items() if error.may_pass]
                if len(again) < len(some):
                    patience = Patience(self._line.patience)
                if again:
                    await self._line.sleep(patience.pause_after(errors[again[0]]))
            except APIError as error:
                if not any("id" in job for job in jobs.values()):
                    raise
                refused = {"status": "failed", "error": error.told()}  # What was taken must not be lost sight of.
                jobs = {index: jobs.get(index, refused) for index in range(len(bodies))}
                break
            left = again + left[MANY:]
        return [AsyncJobHandle(self._line, jobs[index]) for index in range(len(bodies))]

    def job(self, id: str) -> AsyncJobHandle:
        """A job that was asked for before, by anybody with this key."""
        return AsyncJobHandle(self._line, {"id": id})

    async def jobs(self, status: str | None = None, order: str = "desc") -> AsyncGenerator[AsyncJobHandle, None]:
        """All jobs, or those of one status, newest first (`asc`: oldest), page by page."""
        query: Json = {"limit": 100, "order": order} | ({"status": status} if status else {})
        while True:
            page = (await self._line.ask("GET", _JOBS, params=query)).json()
            for job in page["data"]:
                yield AsyncJobHandle(self._line, job)
            if not page["has_more"]:
                return
            query["after"] = page["last_id"]

    async def upload(self, source: Source) -> str:
        """Bring audio, the path of a local file or its bytes; returns what a `source` calls it: `upload:<id>`.

        Raises:
            APIError: for what cannot be a source.
            OSError: for a file that cannot be read.
        """
        name = "audio" if isinstance(source, bytes) else Path(source).name
        data = source if isinstance(source, bytes) else await self._line.do(Path(source).read_bytes)
        answer = await self._line.ask("POST", "/v1/audio/uploads", files={"file": (name, data)})
        return f"upload:{answer.json()['id']}"

    async def models(self) -> list[Json]:
        """What is served, with its limits and defaults."""
        return (await self._line.ask("GET", "/v1/models")).json()["data"]

    async def stats(self) -> Json:
        """How busy it is."""
        return (await self._line.ask("GET", "/v1/stats")).json()

    async def _post(self, body: Json) -> Json:
        """New jobs; the same, however often it had to be sent."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return (await self._line.ask("POST", _JOBS, json=body, headers=headers)).json()

    async def _body(self, settings: Mapping[str, Any], uploaded: dict[Any, str]) -> Json:
        """The settings, with a source that the server knows; each file is sent once."""
        source = settings.get("source")
        source = getattr(source, "source", source)  # A song that is there already.
        if source is None or (isinstance(source, str) and _KNOWN_THERE.match(source)):
            return {**settings, "source": source}
        if source not in uploaded:
            uploaded[source] = await self.upload(source)
        return {**settings, "source": uploaded[source]}


def _path(id: str) -> str:
    return f"{_JOBS}/{quote(id, safe='')}"


def _countdown(seconds: float) -> Callable[[], float]:
    deadline = time.monotonic() + seconds
    return lambda: deadline - time.monotonic()
