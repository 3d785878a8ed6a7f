"""Fetching a file that a client named: within limits of size and time, and never from the server's own network."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from acestep.errors import InvalidRequestError
from acestep.problems import Problem
from pipelines.storage import open_filesystem
from serve.errors import TooLargeError
from serve.locations import Location

logger = logging.getLogger(__name__)

_AT_ONCE = 4
"""Files fetched at a time: each is held in memory."""
_BLOCK = 1 << 16
_SHOWN = 60
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC = [  # Beside what `ipaddress` knows: its tables grew with Python's versions.
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's own services, on a public address
        *("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "2002::/16", "3fff::/20"),
        *("5f00::/16", "fec0::/10"),
    )
]
_HEADERS = {"Accept": "audio/*, */*;q=0.5", "Accept-Encoding": "identity"}


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet; those that carry an IPv4 address are judged by it too."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved
    return ip.is_global and not special and not any(ip in network for network in _NOT_PUBLIC)


class NotPublicError(Exception):
    """A host with an address that is not of the open internet."""


class PublicResolver(AbstractResolver):
    """Looks hosts up and gives only public addresses away: what is checked here is what is connected to.

    A check before the request would leave the name time to change.

    Args:
        inner: what looks hosts up; None: the system.
    """

    def __init__(self, inner: AbstractResolver | None = None):
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises:
            NotPublicError: when any of them is not public.
        """
        self._inner = self._inner or aiohttp.ThreadedResolver()
        found = await self._inner.resolve(host, port, family)
        if not all(is_public(each["host"]) for each in found):
            raise NotPublicError
        return found

    async def close(self) -> None:
        """Let go of what looks hosts up."""
        if self._inner is not None:
            await self._inner.close()


class Fetcher:
    """Reads files from web servers and stores.

    Args:
        max_bytes: of a file.
        seconds: for one file, from the look-up of its host to its last byte.
        resolver: in place of `PublicResolver`, for tests that fetch from this machine.
    """

    def __init__(self, max_bytes: int, seconds: float, resolver: AbstractResolver | None = None):
        self._max_bytes, self._seconds, self._resolver = max_bytes, seconds, resolver
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, location: Location, options: Mapping[str, Any]) -> bytes:
        """The bytes of a file.

        Args:
            options: of fsspec, for a store.

        Raises:
            InvalidRequestError: when it cannot be had.
            TooLargeError: when it has more bytes than are taken.
        """
        async with self._places:
            try:
                if location.is_http:
                    return await self._over_http(location)
                in_thread = asyncio.to_thread(self._from_store, location, options)
                return await asyncio.wait_for(in_thread, self._seconds)
            except asyncio.TimeoutError as error:
                raise _refused(location, f"it could not be fetched in {self._seconds:g} s") from error
            except NotPublicError as error:
                raise _refused(location, "its host has an address that is not public") from error
            except FileNotFoundError as error:
                raise _refused(location, "there is no such file") from error
            except (InvalidRequestError, TooLargeError):
                raise
            except (
                Exception
            ) as error:  # Whatever a store's driver raises; it may tell of the server, so only the log does.
                logger.warning("cannot fetch %s: %s: %s", location.name, type(error).__name__, error)
                raise _refused(location, "it cannot be fetched") from error

    async def _over_http(self, location: Location) -> bytes:
        if _is_address(location.host) and not is_public(location.host):  # No resolver is asked about those.
            raise NotPublicError
        connector = aiohttp.TCPConnector(resolver=self._resolver or PublicResolver(), use_dns_cache=False)
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # A small body could become any size.
        )
        url = URL(location.url, encoded=True)
        async with session, session.get(url, headers=_HEADERS, allow_redirects=False) as response:
            if 300 <= response.status < 400:
                raise _refused(location, "it leads to another address, and such steps are not followed")
            if response.status != 200:
                raise _refused(location, f"it cannot be fetched: the answer is {response.status}")
            self._check_size(response.content_length or 0)
            data = bytearray()
            async for block in response.content.iter_chunked(_BLOCK):
                data += block
                self._check_size(len(data))
            return bytes(data)

    def _from_store(self, location: Location, options: Mapping[str, Any]) -> bytes:
        filesystem, path = open_filesystem(location.url, options)
        about = filesystem.info(path)
        if about["type"] != "file":
            raise FileNotFoundError
        self._check_size(about["size"])
        # Only so much, for another file may take its place meanwhile.
        return filesystem.cat_file(path, start=0, end=about["size"]) if about["size"] else b""

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise TooLargeError(f"source: the largest file has {self._max_bytes:,} bytes", param="source")


def excerpt(text: str) -> str:
    """What a message shows of a client's words: 60 characters at most."""
    return text if len(text) <= _SHOWN - 5 else f"{text[: _SHOWN - 5]}..."


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refused(location: Location, allowed: str) -> InvalidRequestError:
    return InvalidRequestError([Problem("source", excerpt(location.name), allowed)])
