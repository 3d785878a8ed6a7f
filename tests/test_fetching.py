"""Fetching what a request names: from a real web server and real stores, within limits, and from no private network."""

from __future__ import annotations

import asyncio
import gzip
import posixpath
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from aiohttp.test_utils import TestServer
from hypothesis import example, given
from hypothesis import strategies as st

from acestep.errors import InvalidRequestError
from pipelines.storage import Storage
from serve.errors import TooLargeError
from serve.fetching import Fetcher, NotPublicError, PublicResolver, is_public
from serve.locations import Location
from serve.sources import Sources, SourcesSection
from tests.conftest import S3
from tests.test_sources import no_job, sound

SOUND = sound(0.5)


class Answers(AbstractResolver):
    """A name service that answers with these addresses, in turn, and counts."""

    def __init__(self, *answers: list[str]):
        self.answers, self.asked = list(answers), 0

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        about = {"hostname": host, "port": port, "proto": 0, "flags": socket.AI_NUMERICHOST}
        return [{**about, "host": each, "family": socket.AF_INET6 if ":" in each else socket.AF_INET} for each in found]

    async def close(self) -> None:
        pass


class Site:
    """What the web server was asked for, and how it answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        self.headers = dict(request.headers)
        match request.path.rpartition("/")[2]:
            case "song.wav" | "my song.wav":
                return web.Response(body=SOUND)
            case "moved.wav":
                raise web.HTTPFound("http://169.254.169.254/latest")
            case "packed.wav":
                return web.Response(body=gzip.compress(SOUND), headers={"Content-Encoding": "gzip"})
            case "page.wav":
                return web.Response(text="<html>")
            case "slow.wav":
                return await self._in_pieces(request, 1000, 0.05)
            case "endless.wav":
                return await self._in_pieces(request, 1 << 40, 0)
            case "liar.wav":
                response = web.StreamResponse(headers={"Content-Length": str(10**12)})
                await response.prepare(request)
                return response
        raise web.HTTPNotFound

    async def _in_pieces(self, request: web.Request, pieces: int, pause: float) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(pieces):
            await response.write(b"\0" * 10_000)
            await asyncio.sleep(pause)
        return response


def with_site(action: Callable[[Site, int], Awaitable[None]]) -> None:
    """Run `action(site, port)` beside a web server on 127.0.0.1."""

    async def run() -> None:
        site, app = Site(), web.Application()
        app.router.add_get("/{path:.*}", site.answer)
        async with TestServer(app, host="127.0.0.1") as server:
            assert server.port is not None
            await action(site, server.port)

    asyncio.run(run())


def sources_for(tmp_path: Path, port: int, resolver: AbstractResolver | None = None, **options: Any) -> Sources:
    section = SourcesSection(allowed_urls=[f"http://songs.example:{port}/in/"], **options)
    return Sources(Storage(str(tmp_path)), section, resolver=resolver or Answers(["127.0.0.1"]))


@pytest.mark.parametrize("name", ["song.wav", "sub/song.wav", "my%20song.wav", "song.wav?signature=a%2Fb&x=/../"])
def test_a_url_becomes_an_upload(tmp_path: Path, name: str) -> None:
    async def action(site: Site, port: int) -> None:
        sources = sources_for(tmp_path, port)
        key = await sources.resolve(f"http://Songs.Example:{port}/in/{name}", no_job)
        assert Storage(str(tmp_path)).get(key) == SOUND
        assert key == (await sources.put(SOUND)).key
        assert site.asked == [f"/in/{name}"]
        assert "Cookie" not in site.headers and site.headers["Accept-Encoding"] == "identity"

    with_site(action)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.wav", "the answer is 404"),
        ("moved.wav", "leads to another address"),
        ("page.wav", "cannot be read as audio"),
        ("packed.wav", "cannot be read as audio"),
        ("slow.wav", "could not be fetched in 0.5 s"),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path: Path, name: str, said: str) -> None:
    async def action(site: Site, port: int) -> None:
        with pytest.raises(InvalidRequestError, match=said):
            await sources_for(tmp_path, port, fetch_seconds=0.5).resolve(
                f"http://songs.example:{port}/in/{name}", no_job
            )
        assert len(site.asked) == 1

    with_site(action)
    assert Storage(str(tmp_path)).keys("") == []


@pytest.mark.parametrize("name", ["endless.wav", "liar.wav"])
def test_reading_ends_at_the_size_limit_whatever_the_server_says(tmp_path: Path, name: str) -> None:
    async def action(site: Site, port: int) -> None:
        with pytest.raises(TooLargeError) as caught:
            await sources_for(tmp_path, port, max_bytes=100_000, fetch_seconds=5).resolve(
                f"http://songs.example:{port}/in/{name}", no_job
            )
        assert caught.value.param == "source"

    with_site(action)


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(InvalidRequestError, match="it cannot be fetched"):
            asyncio.run(sources_for(tmp_path, port).resolve(f"http://songs.example:{port}/in/song.wav", no_job))


# Addresses

PRIVATE = [
    *("127.0.0.1", "127.8.9.10", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "203.0.113.5", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1"),
    *("fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "64:ff9b::127.0.0.1"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::1", "2001:db8::1"),
    *("::ffff:0:127.0.0.1", "2001:10::1", "3fff::1", "168.63.129.16", "192.88.99.1", "100::1"),
    *("", "localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "1.2.3.4.5"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


def test_addresses_are_told_apart() -> None:
    assert [address for address in PRIVATE if is_public(address)] == []
    assert [address for address in PUBLIC if not is_public(address)] == []


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["::1", "8.8.8.8"]])
def test_a_name_that_leads_into_a_private_network_is_never_connected_to(tmp_path: Path, answer: list[str]) -> None:
    async def action(site: Site, port: int) -> None:
        sources = sources_for(tmp_path, port, PublicResolver(Answers(answer)))
        with pytest.raises(InvalidRequestError, match="an address that is not public"):
            await sources.resolve(f"http://songs.example:{port}/in/song.wav", no_job)
        assert site.asked == []

    with_site(action)


def test_a_name_that_changes_between_two_lookups_gains_nothing() -> None:
    """There is one look-up for a fetch, its answer is what is connected to, and none is kept for the next fetch."""

    async def action(site: Site, port: int) -> None:
        names = Answers(["127.0.0.1"], ["127.0.0.2"])  # The second is where nobody listens.
        fetcher, location = Fetcher(1 << 20, 5, names), Location.of(f"http://songs.example:{port}/in/song.wav")
        assert await fetcher.fetch(location, {}) == SOUND
        assert names.asked == 1
        with pytest.raises(InvalidRequestError, match="it cannot be fetched"):
            await fetcher.fetch(location, {})
        assert names.asked == 2 and len(site.asked) == 1

    with_site(action)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "2130706433", "127.1", "0x7f.0.0.1"])
def test_an_address_in_the_place_of_a_name_is_checked_too(host: str) -> None:
    """No resolver is asked about those, so even a config that allows them by mistake opens nothing."""

    async def action(site: Site, port: int) -> None:
        with pytest.raises(InvalidRequestError):
            await Fetcher(1 << 20, 5).fetch(Location.of(f"http://{host}:{port}/in/song.wav"), {})
        assert site.asked == []

    with_site(action)


def test_the_systems_resolver_is_checked() -> None:
    async def run() -> None:
        resolver = PublicResolver()
        with pytest.raises(NotPublicError):
            await resolver.resolve("localhost", 80)
        await resolver.close()

    asyncio.run(run())


# Stores


@pytest.fixture(params=["memory", "moto"])
def place(request: pytest.FixtureRequest) -> Storage:
    """A bucket with files in and beside an allowed folder."""
    if request.param == "memory":
        place = Storage(f"memory://bucket-{uuid.uuid4().hex}/some")
    else:
        server: S3 = request.getfixturevalue("moto")
        place = Storage(f"{server.url}/{uuid.uuid4().hex}", server.options)
    for key in ("in/song.wav", "in/deep/my song é.wav", "secret/song.wav"):
        place.put(key, SOUND)
    place.put("in/large.wav", b"\0" * 200_000)
    place.put("in/empty.wav", b"")
    return place


def test_files_of_a_store_become_uploads(place: Storage, tmp_path: Path) -> None:
    section = SourcesSection(
        allowed_urls=[f"{place.url}/in/"], storage_options=place.options, max_bytes=len(SOUND), fetch_seconds=10
    )
    own = Storage(str(tmp_path))
    sources = Sources(own, section)
    for key in ("in/song.wav", "in/deep/my song é.wav"):
        assert own.get(asyncio.run(sources.resolve(f"{place.url}/{key}", no_job))) == SOUND
    with pytest.raises(TooLargeError):
        asyncio.run(sources.resolve(f"{place.url}/in/large.wav", no_job))
    for key, said in {
        "in/none.wav": "there is no such file",
        "in/deep": "there is no such file",
        "in/empty.wav": "cannot be read as audio",
        "secret/song.wav": "a file below",
        "in/../secret/song.wav": "plain names",
    }.items():
        with pytest.raises(InvalidRequestError, match=said) as caught:
            asyncio.run(sources.resolve(f"{place.url}/{key}", no_job))
        assert "127.0.0.1" not in str(caught.value)
    assert len(own.keys("uploads", ".wav")) == 1


def test_a_large_file_of_a_store_is_not_read(moto: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    place = Storage(f"{moto.url}/{uuid.uuid4().hex}", moto.options)
    place.put("in/large.wav", b"\0" * 200_000)

    async def read(*_: Any, **__: Any) -> bytes:
        raise AssertionError("it was read")

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", read)
    fetcher = Fetcher(100_000, 10)
    with pytest.raises(TooLargeError):
        asyncio.run(fetcher.fetch(Location.of(f"{place.url}/in/large.wav"), moto.options))


def test_the_servers_own_options_serve_for_stores_of_its_kind(moto: S3) -> None:
    own = Storage(f"{moto.url}/{uuid.uuid4().hex}", moto.options)
    own.put("in/song.wav", SOUND)
    sources = Sources(own, SourcesSection(allowed_urls=[f"{own.url}/in/"]))
    key = asyncio.run(sources.resolve(f"{own.url}/in/song.wav", no_job))
    assert key.startswith("uploads/") and own.get(key) == SOUND


def test_what_a_store_complains_of_stays_in_the_log(moto: S3, tmp_path: Path) -> None:
    options = {**moto.options, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 1}}}
    section = SourcesSection(allowed_urls=["s3://songs/in/"], storage_options=options, fetch_seconds=5)
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(Sources(Storage(str(tmp_path)), section).resolve("s3://songs/in/x.wav", no_job))
    assert "127.0.0.1" not in str(caught.value)
    assert "secret" not in repr(section)


# Properties

_PARTS = [
    "in",
    "secret",
    "..",
    ".",
    "",
    "%2e%2e",
    "%2e",
    "..%2f",
    "%5c..",
    "..;",
    "x",
    "a b",
    "%",
    "%25",
    "é",
    "．．",
    "?",
    "#",
]


@given(st.lists(st.sampled_from(_PARTS), max_size=6), st.sampled_from(["s3://songs", "https://host.example"]))
@example(["in", "x"], "s3://songs")
def test_what_is_allowed_lies_below_its_folder_however_it_is_read(parts: list[str], root: str) -> None:
    url = "/".join([root, *parts])
    try:
        location = Location.of(url)
    except ValueError:
        return
    assert location.url == url
    if not location.is_below([Location.of_folder(f"{root}/in/")]):
        return
    path = location.path
    for _ in range(3):
        assert posixpath.normpath(path.replace("\\", "/")).startswith("/in/")
        path = unquote(path)


@given(st.text(max_size=40))
def test_any_text_is_a_location_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"https://host.example/{text}", f"s3://songs/in/{text}"):
        try:
            location = Location.of(url)
        except ValueError:
            continue
        assert location.place and location.path.startswith("/") and "@" not in location.place
