"""`Client` and `AsyncClient`: songs from a server, such as `acestep serve` starts. Needs neither torch nor Ray.

    from acestep.client import Client
    Client().generate("lo-fi hip-hop, soft piano", duration=30).save("song.mp3")

A local file given as `source` is uploaded. What fails for a while is tried again: no answer, a full queue, a limit. A
job that had to be sent twice is made once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, overload

from acestep.async_client import URL, AsyncClient, AsyncJobHandle, AsyncSong, Progress, Source
from acestep.line import APIError, BlockingLine, Json, run

__all__ = ["APIError", "AsyncClient", "AsyncJobHandle", "AsyncSong", "Client", "JobHandle", "Song"]


class Song:
    """One song that a server has made.

    Attributes:
        id: `<job>/<index>`.
        facts: all that the server says of it: seed, duration, sample_rate, bytes, sha256, format, warnings, ...
        parameters: every setting, resolved, as `generate(**parameters)` takes them to make it again.
        source: what a request calls it, to begin with it; the song itself will do, too.
        seed: the one used.
        duration: seconds made, up to 93 ms less than asked.
    """

    def __init__(self, song: AsyncSong):
        self._song = song
        self.id, self.facts, self.parameters, self.source = song.id, song.facts, song.parameters, song.source
        self.seed, self.duration = song.seed, song.duration

    def bytes(self, format: str | None = None) -> bytes:
        """The file, as the server has it, or converted to wav, flac, mp3, ogg or opus.

        Raises:
            APIError: when it has expired, or for a format that there is not.
        """
        return run(self._song.bytes(format))

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write it to a local file, whole or not at all; the extension names the format. Returns the path.

        Raises:
            AudioFormatError: for an extension that is no format.
            APIError: when it has expired.
        """
        return run(self._song.save(path))

    def __repr__(self) -> str:
        return repr(self._song)


class JobHandle:
    """A job of a server.

    Attributes:
        id: empty for an item of many that was refused; `error` says why.
    """

    def __init__(self, job: AsyncJobHandle):
        self._job = job
        self.id = job.id

    @property
    def job(self) -> Json:
        """As last heard of."""
        return self._job.job

    @property
    def is_over(self) -> bool:
        """Whether it is, as far as is known."""
        return self._job.is_over

    @property
    def error(self) -> APIError | None:
        """Why it was not completed, as far as is known."""
        return self._job.error

    def status(self) -> Json:
        """The job as it stands: status, progress, queue_position, data, error, ..."""
        return run(self._job.status())

    def events(self, timeout: float | None = None) -> Iterator[Json]:
        """The job now and each time it changes, until it is over; a connection that breaks is made anew.

        Raises:
            TimeoutError: when it was not over after so many seconds; it goes on.
            APIError: when the server cannot be reached, or has no such job.
        """
        yield from _each(self._job.events(timeout))

    def wait(self, progress: Progress | None = None, timeout: float | None = None) -> Json:
        """The job once it is over, completed or not; `progress(job)` is called each time it changes.

        Raises:
            TimeoutError: when it was not over after so many seconds; it goes on.
        """
        return run(self._job.wait(progress, timeout))

    def songs(self, progress: Progress | None = None, timeout: float | None = None) -> list[Song]:
        """Wait for its songs, as `wait` does.

        Raises:
            APIError: when it was not completed; `job["data"]` tells of those songs that there are.
        """
        return [Song(song) for song in run(self._job.songs(progress, timeout))]

    def cancel(self) -> Json:
        """End it if it is not over; its songs leave a running batch at the next step. Returns the job."""
        return run(self._job.cancel())

    def delete(self) -> None:
        """Cancel it if it is not over, and delete its record and its audio."""
        run(self._job.delete())

    def __repr__(self) -> str:
        return repr(self._job)


class Client:
    """A server.

    Args:
        api_key: None: what the variable ACESTEP_API_KEY says, if there is one.
        timeout: seconds that one answer may take; not how long a song may take.
        patience: seconds to go on trying while the server cannot be reached or takes no more.

    Raises:
        InvalidRequestError: for a URL that is none.
    """

    def __init__(self, url: str = URL, api_key: str | None = None, *, timeout: float = 60.0, patience: float = 120.0):
        self._client = _OverBlockingLine(url, api_key, timeout=timeout, patience=patience)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        run(self._client.close())

    @overload
    def generate(
        self, prompt: str, *, n: Literal[1] = 1, progress: Progress | None = None, **settings: Any
    ) -> Song: ...

    @overload
    def generate(self, prompt: str, *, n: int, progress: Progress | None = None, **settings: Any) -> list[Song]: ...

    def generate(
        self, prompt: str, *, n: int = 1, progress: Progress | None = None, **settings: Any
    ) -> Song | list[Song]:
        """Make one song, or with `n` above 1 a list, and wait; whoever stops waiting (Ctrl-C) cancels the job.

        Args:
            progress: called with the job each time it changes.
            settings: fields of `GenerationRequest`, and `response_format`; a local `source` is uploaded.

        Raises:
            APIError: when it cannot be made.
            OSError: for a local source that cannot be read.
        """
        made: Any = run(self._client.generate(prompt, n=n, progress=progress, **settings))
        return [Song(song) for song in made] if isinstance(made, list) else Song(made)

    def submit(self, prompt: str, **settings: Any) -> JobHandle:
        """Ask for one song, or `n`, and do not wait.

        Raises:
            APIError, OSError: as `generate`.
        """
        return JobHandle(run(self._client.submit(prompt, **settings)))

    def submit_many(self, items: Iterable[Mapping[str, Any] | str], **defaults: Any) -> list[JobHandle]:
        """Ask for each item: settings, or a prompt alone. A bad one has an `error`, and is no other's problem.

        What finds the queue full is sent again, for as long as the client has patience.

        Raises:
            APIError: when not one of them could be sent.
            OSError: for a local source that cannot be read.
        """
        return [JobHandle(job) for job in run(self._client.submit_many(items, **defaults))]

    def job(self, id: str) -> JobHandle:
        """A job that was asked for before, by anybody with this key."""
        return JobHandle(self._client.job(id))

    def jobs(self, status: str | None = None, order: str = "desc") -> Iterator[JobHandle]:
        """All jobs, or those of one status, newest first (`asc`: oldest), page by page."""
        yield from map(JobHandle, _each(self._client.jobs(status, order)))

    def upload(self, source: Source) -> str:
        """Bring audio, the path of a local file or its bytes; returns what a `source` calls it: `upload:<id>`.

        Raises:
            APIError: for what cannot be a source.
            OSError: for a file that cannot be read.
        """
        return run(self._client.upload(source))

    def models(self) -> list[Json]:
        """What is served, with its limits and defaults."""
        return run(self._client.models())

    def stats(self) -> Json:
        """How busy it is."""
        return run(self._client.stats())


class _OverBlockingLine(AsyncClient):
    _line_class = BlockingLine


def _each(found: Any) -> Iterator[Any]:
    try:
        while True:
            try:
                yield run(found.__anext__())
            except StopAsyncIteration:
                return
    finally:
        run(found.aclose())
