"""`Sources`: what a client may begin a song with, turned into a key of the server's own store.

A client names an upload, a song of a job, audio in the request itself, or a URL that the config allows. Nothing else:
no path of the server, no address in its network.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from aiohttp.abc import AbstractResolver
from pydantic import Field, field_validator

from acestep.errors import InvalidRequestError
from acestep.problems import Problem, ProblemsError
from pipelines.sections import Section
from pipelines.storage import Storage
from serve.fetching import Fetcher, excerpt
from serve.locations import Location
from serve.uploads import ID, Upload, Uploads

FindJob = Callable[[str, int], Awaitable[str]]
"""The key of song `index` of the job `id`; raises when there is none."""

_UPLOAD = re.compile(rf"(?:upload:)?({ID.pattern})")
_JOB = re.compile(r"(?:job:)?(job-[A-Za-z0-9-]{1,64})(?:/([0-9]{1,4}))?")
_DATA = re.compile(r"data:audio/[a-z0-9.+-]{1,64}(?:;[a-z0-9-]{1,32}=[a-z0-9.+-]{1,32}){0,4};base64,", re.IGNORECASE)
_SECRETS = re.compile(r"(?<=//)[^/@]*@|\?.*", re.DOTALL)
"""User and password of a URL, and its query, where a signature may stand."""
_NAMED = 5
"""Allowed places that a message names."""


class SourcesSection(Section):
    """Audio that songs may begin with: uploads, songs of jobs, and what lies below `allowed_urls`."""

    max_bytes: int = Field(default=64 << 20, description="Largest file, 413 above; 67,108,864: 64 MiB.", ge=1)
    max_seconds: float = Field(default=240.0, description="Longest audio, in seconds.", gt=0, le=240)
    allowed_urls: list[str] = Field(
        default_factory=list,
        description="Folders below which a request may name a file, such as s3://bucket/in/ or https://host/path/; "
        "empty: none. Hosts in private networks are refused all the same.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        description="For fsspec, for those in stores; empty: as for the server's own store, if it is of that kind.",
        repr=False,
    )
    expire_seconds: float = Field(default=86_400.0, description="An upload is kept for so long.", gt=0)
    fetch_seconds: float = Field(default=30.0, description="Fetching one file may take so long.", gt=0)

    @field_validator("allowed_urls")
    @classmethod
    def _are_folders(cls, urls: list[str]) -> list[str]:
        problems = []
        for url in urls:
            try:
                Location.of_folder(url)
            except ValueError as error:
                problems.append(Problem("sources.allowed_urls", _shown(url), str(error)))
        if problems:
            raise ProblemsError(problems)
        return urls


class Sources:
    """See the module; for the one event loop that it lives in.

    Args:
        storage: the server's own.
        clock: Unix time.
        resolver: looks up hosts in place of the system's resolver and its check for private addresses; for tests.
    """

    def __init__(
        self,
        storage: Storage,
        section: SourcesSection,
        *,
        clock: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
    ):
        self._uploads = Uploads(
            storage,
            max_bytes=section.max_bytes,
            max_seconds=section.max_seconds,
            expire_seconds=section.expire_seconds,
            clock=clock,
        )
        self._fetcher = Fetcher(section.max_bytes, section.fetch_seconds, resolver)
        self._folders = [Location.of_folder(url) for url in section.allowed_urls]
        self._options = section.storage_options
        self._own_scheme = storage.url.partition("://")[0] if not storage.is_local else ""
        self._own_options = storage.options
        self._allowed = _allowed(self._folders)

    async def put(self, data: bytes, field: str = "file") -> Upload:
        """Check and keep audio that a client sent; equal content is one upload.

        Args:
            field: what the client calls it, for messages.

        Raises:
            InvalidRequestError: for what cannot be a source.
            TooLargeError: for more bytes than are taken.
            StorageError: when it cannot be written.
        """
        return await self._uploads.put(data, field)

    async def resolve(self, source: str, find_job: FindJob) -> str:
        """The key, in the server's own store, of what a client calls a source. Data and URLs become uploads.

        Raises:
            InvalidRequestError: for anything that a client may not name, or that is not there.
            TooLargeError: for more bytes than are taken.
            StorageError: when an upload cannot be written.
            Exception: what `find_job` raises.
        """
        if match := _UPLOAD.fullmatch(source):
            upload = await self._uploads.find(match[1])
            if upload is None:
                raise _refused(source, "there is no such upload; it may have expired")
            return upload.key
        if match := _JOB.fullmatch(source):
            return await find_job(match[1], int(match[2] or 0))
        if match := _DATA.match(source):
            return (await self.put(await self._decoded(source, match.end()), "source")).key
        location = self._location(source)
        data = await self._fetcher.fetch(location, self._options_of(location))
        return (await self.put(data, "source")).key

    async def sweep(self, keep: Collection[str] = ()) -> int:
        """Delete uploads that have expired; returns how many.

        Args:
            keep: keys that stay all the same, for jobs that have yet to begin with them.
        """
        return await self._uploads.sweep(keep)

    async def _decoded(self, source: str, start: int) -> bytes:
        self._uploads.check_size((len(source) - start) // 4 * 3 - 2, "source")
        try:
            return await asyncio.to_thread(base64.b64decode, source[start:], validate=True)
        except (binascii.Error, ValueError) as error:
            raise _refused(source, "what is behind base64, is not base64") from error

    def _location(self, source: str) -> Location:
        try:
            location = Location.of(source)
        except ValueError as error:
            raise _refused(source, f"{error}; {self._allowed}" if "://" in source else self._allowed) from error
        if not location.is_below(self._folders):
            raise _refused(source, self._allowed)
        return location

    def _options_of(self, location: Location) -> Mapping[str, Any]:
        if self._options or location.scheme != self._own_scheme:
            return self._options
        return self._own_options


def _allowed(folders: list[Location]) -> str:
    known = "it must be upload:<id>, job:<id>, job:<id>/<index> or data:audio/wav;base64,..."
    if not folders:
        return f"{known}; this server takes no URLs"
    names = ", ".join(folder.name for folder in folders[:_NAMED])
    return f"{known}, or a file below {names}{', ...' if len(folders) > _NAMED else ''}"


def _refused(source: str, allowed: str) -> InvalidRequestError:
    return InvalidRequestError([Problem("source", _shown(source), allowed)])


def _shown(source: str) -> str:
    return excerpt(_SECRETS.sub("", source[:4096]))
