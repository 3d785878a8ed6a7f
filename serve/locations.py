"""`Location`: a URL that a client wrote, taken apart strictly, and whether it lies below a place that is allowed.

Nothing is mended here: what two readers of a URL could understand in two ways is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

HTTP_PORTS = {"http": 80, "https": 443}
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "hdfs", "hf", "memory")
"""Protocols of fsspec that a server may be allowed to read; none of them reaches its own files."""

_LONGEST = 2048
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")


@dataclass(frozen=True, slots=True)
class Location:
    """Where something lies.

    Attributes:
        scheme: in small letters.
        place: the bucket, or the host in small letters, with its port where that is not the usual one.
        path: with its slash in front, as written.
        query: with its question mark, or empty.
    """

    scheme: str
    place: str
    path: str
    query: str = ""

    @property
    def is_http(self) -> bool:
        """Whether a web server has it, and not a store."""
        return self.scheme in HTTP_PORTS

    @property
    def host(self) -> str:
        """Of a web server: name or address, without brackets."""
        return urlsplit(f"//{self.place}").hostname or ""

    @property
    def name(self) -> str:
        """The URL as messages may show it: without the query, which may hold a signature."""
        return f"{self.scheme}://{self.place}{self.path}"

    @property
    def url(self) -> str:
        """The whole URL."""
        return self.name + self.query

    def is_below(self, folders: Iterable[Location]) -> bool:
        """Whether it lies in one of the `folders`, at whatever depth."""
        return any(
            (self.scheme, self.place) == (folder.scheme, folder.place) and self.path.startswith(folder.path)
            for folder in folders
        )

    @classmethod
    def of(cls, url: str) -> Location:
        """Take the URL of a file apart.

        Raises:
            ValueError: with what is wrong with it.
        """
        location = _split(url)
        if not location.path:
            raise ValueError("it must have the name of a file")
        _check_segments(location.path.split("/")[1:])
        return location

    @classmethod
    def of_folder(cls, url: str) -> Location:
        """Take the URL of a folder apart; it ends with a slash, so that no longer name begins with it.

        Raises:
            ValueError: with what is wrong with it.
        """
        location = _split(url)
        if not location.path.endswith("/") or location.query:
            raise ValueError("it must end with a slash")
        _check_segments(location.path.split("/")[1:-1])
        return location


def _split(url: str) -> Location:
    if len(url) > _LONGEST:
        raise ValueError(f"the longest URL has {_LONGEST:,} characters")
    if not url.isprintable() or url != url.strip() or "\\" in url or "#" in url:
        raise ValueError("it has characters that a URL may not have")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port if parts.scheme in HTTP_PORTS else None
    except ValueError as error:
        raise ValueError("it is not a URL") from error
    if parts.scheme not in (*HTTP_PORTS, *STORES):
        raise ValueError(f"a URL begins with {', '.join(f'{each}://' for each in (*HTTP_PORTS, *STORES))}")
    if not parts.netloc or "@" in parts.netloc:
        raise ValueError("it must have a host or bucket, and no user")
    if parts.scheme in STORES:
        if "?" in url or "::" in url or "%" in parts.netloc:  # fsspec chains filesystems at `::`.
            raise ValueError("it must be a bucket and the name of a file in it")
        return Location(parts.scheme, parts.netloc, parts.path)
    if not url.isascii() or " " in url:
        raise ValueError("what is not ASCII must be percent-encoded")
    host = f"[{host}]" if ":" in host else host
    if not _HOST.fullmatch(host):
        raise ValueError("it must have the name of a host")
    place = host if port in (None, HTTP_PORTS[parts.scheme]) else f"{host}:{port}"
    return Location(parts.scheme, place, parts.path, f"?{parts.query}" if parts.query else "")


def _check_segments(segments: list[str]) -> None:
    """Refuse names that a server could read as a step up, a separator or nothing."""
    for segment in segments:
        # Some servers decode, some normalise, some cut at a semicolon: it must be harmless after all of it.
        read = unicodedata.normalize("NFKC", unquote(segment))
        if not read.isprintable() or any(sign in read for sign in "%/\\\N{REPLACEMENT CHARACTER}"):
            raise ValueError("its path is encoded twice, or has signs that are no part of a name")
        if not read.partition(";")[0].strip(" ."):
            raise ValueError("its path must be plain names between single slashes")
