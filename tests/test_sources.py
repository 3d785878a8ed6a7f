"""What a client may begin a song with: real files of several formats, and everything that must be refused."""

from __future__ import annotations

import asyncio
import base64
import io
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from aiohttp.abc import AbstractResolver
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from acestep.errors import InvalidRequestError
from pipelines.storage import Storage
from serve.errors import NotFoundError, TooLargeError
from serve.sources import Sources, SourcesSection, Upload
from tests.conftest import S3

JOB = "job-20261122T231500123456-ab12cd34"
HASH = "0123456789abcdef" * 2


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Unused(AbstractResolver):
    """Nobody may look a host up that is not allowed."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        raise AssertionError(f"{host} was looked up")

    async def close(self) -> None:
        pass


async def no_job(id: str, index: int) -> str:
    raise AssertionError(f"{id} was looked for")


def sound(seconds: float = 0.5, rate: int = 44_100, channels: int = 2, **options: Any) -> bytes:
    """A file of quiet noise."""
    samples = np.random.default_rng(7).normal(0, 0.1, (round(seconds * rate), channels))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", "subtype": "PCM_16", **options})
    return file.getvalue()


def data_url(data: bytes, kind: str = "audio/wav") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def sources_in(place: Storage | Path, clock: Any = None, **options: Any) -> Sources:
    storage = place if isinstance(place, Storage) else Storage(str(place))
    section = SourcesSection(**options)
    return Sources(storage, section, resolver=Unused(), **({"clock": clock} if clock else {}))


def refused(sources: Sources, source: str) -> str:
    """The message with which it is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        asyncio.run(sources.resolve(source, no_job))
    (problem,) = caught.value.problems
    assert problem.field == "source"
    return str(problem)


# Uploads

FORMATS = {
    "wav": {"format": "WAV", "subtype": "PCM_24"},
    "float.wav": {"format": "WAVEX", "subtype": "FLOAT"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS", "rate": 48_000},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
    "caf": {"format": "CAF", "subtype": "ALAC_16"},
}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_audio_of_many_formats_is_kept_as_it_came(tmp_path: Path, name: str, channels: int) -> None:
    data = sound(1.25, channels=channels, **FORMATS[name])
    clock = Clock()
    upload = asyncio.run(sources_in(tmp_path, clock).put(data))
    assert (upload.bytes, upload.channels, upload.sample_rate) == (
        len(data),
        channels,
        FORMATS[name].get("rate", 44_100),
    )
    assert upload.duration == pytest.approx(1.25, abs=0.06)  # MP3 is padded.
    assert upload.expires_at == clock.now + 86_400
    assert upload.key == f"uploads/{upload.id}.{name.rpartition('.')[2]}"
    assert Storage(str(tmp_path)).get(upload.key) == data


def test_equal_content_is_one_upload_and_stays_for_longer(tmp_path: Path) -> None:
    clock, data = Clock(), sound()
    sources = sources_in(tmp_path, clock)
    first = asyncio.run(sources.put(data))
    clock.now += 1000
    again = asyncio.run(sources.put(data))
    other = asyncio.run(sources.put(sound(0.6)))
    assert again.id == first.id != other.id
    assert again.expires_at == first.expires_at + 1000
    assert len(Storage(str(tmp_path)).keys("uploads", ".wav")) == 2


def test_an_upload_is_shown_as_the_api_says(tmp_path: Path) -> None:
    body = asyncio.run(sources_in(tmp_path).put(sound())).body()
    assert {"id", "object", "bytes", "duration", "sample_rate", "channels", "expires_at"} <= set(body)
    assert body["object"] == "upload" and body["id"].startswith("upload-")


def not_finite() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, np.nan, np.inf, 0.0]), 44_100, format="WAV", subtype="FLOAT")
    return file.getvalue()


UNUSABLE = {
    "nothing": (b"", "cannot be read as audio"),
    "text": (b"hello, world\n" * 100, "cannot be read as audio"),
    "a page": (b"<!doctype html><title>404</title>", "cannot be read as audio"),
    "half a header": (sound()[:20], "cannot be read as audio"),
    "only a header": (sound(0), "no samples"),
    "three channels": (sound(channels=3), "1 or 2"),
    "too long": (sound(2.01), "the longest source is 2 s"),
    "a rate that cannot be resampled": (sound(rate=44_101), "in steps of 25"),
    "a rate too low": (sound(rate=4_000), "8,000 to 192,000"),
    "a rate too high": (sound(rate=384_000), "8,000 to 192,000"),
    "not finite": (not_finite(), "2 samples"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_is_no_usable_audio_is_refused(tmp_path: Path, what: str) -> None:
    data, said = UNUSABLE[what]
    sources = sources_in(tmp_path, max_seconds=2)
    with pytest.raises(InvalidRequestError, match=said) as caught:
        asyncio.run(sources.put(data))
    assert caught.value.problems[0].field == "file"
    if data:
        with pytest.raises(InvalidRequestError, match=said) as caught:
            asyncio.run(sources.resolve(data_url(data), no_job))
        assert caught.value.problems[0].field == "source"
    assert Storage(str(tmp_path)).keys("") == []


def test_too_many_bytes_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    data = sound()
    sources = sources_in(tmp_path, max_bytes=len(data))
    asyncio.run(sources.put(data))
    asyncio.run(sources.resolve(data_url(data), no_job))
    with pytest.raises(TooLargeError, match=f"file: the largest file has {len(data):,} bytes"):
        asyncio.run(sources.put(data + b"\0"))
    with pytest.raises(TooLargeError, match="source: the largest"):
        asyncio.run(sources.resolve("data:audio/wav;base64," + "!" * len(data) * 2, no_job))


def flac_that_says(samples: int) -> bytes:
    """Three seconds of FLAC with another length in its header."""
    data = bytearray(sound(3, format="FLAC"))
    length = int.from_bytes(data[21:26], "big")
    assert data[:4] == b"fLaC" and length & 0xFFFFFFFFF == 3 * 44_100
    data[21:26] = (length & ~0xFFFFFFFFF | samples).to_bytes(5, "big")
    return bytes(data)


def test_a_header_that_does_not_say_how_long_it_is_is_refused(tmp_path: Path) -> None:
    """Whoever reads such a file as a whole would be told to make room for 2^63 samples."""
    with pytest.raises(InvalidRequestError, match="must say how long it is"):
        asyncio.run(sources_in(tmp_path).put(flac_that_says(0)))


def test_the_length_is_what_a_reader_gets(tmp_path: Path) -> None:
    upload = asyncio.run(sources_in(tmp_path, max_seconds=2).put(flac_that_says(22_050)))
    samples, rate = soundfile.read(io.BytesIO(Storage(str(tmp_path)).get(upload.key)))
    assert upload.duration == len(samples) / rate == 0.5


@settings(max_examples=60)
@given(st.binary(max_size=300), st.sampled_from(["flac", "mp3", "ogg", "wav"]), st.integers(0, 4000))
def test_damaged_files_are_refused_or_read_and_never_more(damage: bytes, name: str, place: int) -> None:
    data = bytearray(sound(0.1, **FORMATS[name]))
    data[place : place + len(damage)] = damage
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    try:
        upload = asyncio.run(sources_in(storage).put(bytes(data)))
    except InvalidRequestError:
        assert storage.keys("") == []
    else:
        assert storage.get(upload.key) == bytes(data)


# What a client writes


@pytest.mark.parametrize("form", ["{id}", "upload:{id}"])
def test_an_upload_is_found_by_its_id_until_it_expires(tmp_path: Path, form: str) -> None:
    clock = Clock()
    sources = sources_in(tmp_path, clock, expire_seconds=100)
    upload = asyncio.run(sources.put(sound()))
    source = form.format(id=upload.id)
    assert asyncio.run(sources.resolve(source, no_job)) == upload.key
    assert asyncio.run(sources_in(tmp_path, clock).resolve(source, no_job)) == upload.key  # After a restart.
    clock.now += 100
    assert "no such upload" in refused(sources, source)
    assert "no such upload" in refused(sources, f"upload-{HASH}")


def test_an_upload_whose_audio_is_gone_is_gone(tmp_path: Path) -> None:
    sources = sources_in(tmp_path)
    upload = asyncio.run(sources.put(sound()))
    Storage(str(tmp_path)).delete([upload.key])
    assert "no such upload" in refused(sources, upload.id)
    asyncio.run(sources.put(sound()))
    assert asyncio.run(sources.resolve(upload.id, no_job)) == upload.key


@pytest.mark.parametrize(
    "kind", ["audio/wav", "audio/x-wav", "AUDIO/MPEG", "audio/ogg;codecs=opus", "audio/wav;a=b;c=d", "audio/vnd.wave"]
)
def test_audio_within_the_request_becomes_an_upload(tmp_path: Path, kind: str) -> None:
    data, sources = sound(), sources_in(tmp_path)
    key = asyncio.run(sources.resolve(data_url(data, kind), no_job))
    assert Storage(str(tmp_path)).get(key) == data
    assert asyncio.run(sources.put(data)).key == key


@pytest.mark.parametrize(
    ("source", "asked"),
    [(f"job:{JOB}", (JOB, 0)), (JOB, (JOB, 0)), (f"job:{JOB}/0", (JOB, 0)), (f"job:{JOB}/12", (JOB, 12))],
)
def test_a_song_of_a_job_is_looked_up(tmp_path: Path, source: str, asked: tuple[str, int]) -> None:
    async def find(id: str, index: int) -> str:
        assert (id, index) == asked
        return "audio/x.flac"

    assert asyncio.run(sources_in(tmp_path).resolve(source, find)) == "audio/x.flac"


def test_a_job_that_is_not_there_is_the_callers_to_tell(tmp_path: Path) -> None:
    async def find(id: str, index: int) -> str:
        raise NotFoundError("no such job")

    with pytest.raises(NotFoundError):
        asyncio.run(sources_in(tmp_path).resolve(f"job:{JOB}", find))


ALLOWED = ["s3://songs/in/", "https://host.example/path/", "http://plain.example:8080/a/"]

HOSTILE = [
    # The server's files and processes.
    *("/etc/passwd", "etc/passwd", "../../etc/passwd", "~/.ssh/id_rsa", "./song.wav", "song.wav", "C:\\song.wav"),
    *(
        "file:///etc/passwd",
        "file:/etc/passwd",
        "FILE:///etc/passwd",
        "local:///etc/passwd",
        "\\\\server\\share\\x.wav",
    ),
    *(
        "uploads/upload-0.wav",
        "songs/bucket=000000/x.parquet",
        "memory://songs/in/x.wav",
        "simplecache::s3://songs/in/x",
    ),
    *("filecache::file:///etc/passwd", "zip://x.wav::file:///etc/a.zip", "s3://songs/in/x::file:///etc/passwd"),
    *("s3://songs/in/x::file:/etc/passwd", "s3://songs/in/x::memory", "s3://songs/in/x::/etc/passwd"),
    *("reference://x", "github://a:b@/x", "dir::/etc", "/dev/zero", "/proc/self/environ", "pipe:0", "-", "$HOME/x.wav"),
    *("javascript:alert(1)", "gopher://host.example/path/x", "ftp://host.example/path/x", "ldap://host.example/path/x"),
    # Steps up, in every spelling.
    *(
        "s3://songs/in/../secret.wav",
        "s3://songs/in/./../secret",
        "s3://songs/in/..",
        "s3://songs/in/.",
        "s3://songs/in/",
    ),
    *("s3://songs/in", "s3://songs/in/a/../../secret", "s3://songs/in//x", "s3://songs//in/x", "s3://songs/in\\..\\x"),
    *("s3://songs/in/%2e%2e/secret", "s3://songs/in/%2E%2E%2Fsecret", "s3://songs/in/%252e%252e/secret"),
    *("s3://songs/in/x?versionId=1", "s3://songs/in/x#y", "s3://songs/in/．．/secret", "s3://songs/in/..;/secret"),
    *(
        "https://host.example/path/../admin",
        "https://host.example/path/%2e%2e/admin",
        "https://host.example/path/..%2fx",
    ),
    *("https://host.example/path/%2e./x", "https://host.example/path/.%2e/x", "https://host.example/path/..%5cx"),
    *(
        "https://host.example/path/%252e%252e/x",
        "https://host.example/path/%c0%ae%c0%ae/x",
        "https://host.example/path/..;/x",
    ),
    *("https://host.example/path/..;a=b/x", "https://host.example/path/%00/x", "https://host.example/path//../x"),
    *(
        "https://host.example/path\\..\\x",
        "https://host.example/path/..\\x",
        "https://host.example/path/a%0d%0aHost:%20x",
    ),
    *("https://host.example/path/x#@evil.com", "https://host.example/%70ath/x.wav", "https://host.example/PATH/x.wav"),
    # Other places that look alike.
    *("s3://songs/inner/x", "s3://songs/in-secret/x", "s3://songs/other/x", "s3://songs2/in/x", "s3://SONGS/in/x"),
    *("s3://songs.evil/in/x", "S3A://songs/in/x", "gs://songs/in/x", "s3://key:secret@songs/in/x", "s3://@songs/in/x"),
    *(
        "https://host.example.evil.com/path/x",
        "https://evil.com/host.example/path/x",
        "https://host.example@evil.com/path/x",
    ),
    *(
        "https://user:pass@host.example/path/x",
        "https://host.example:pass@evil.com/path/x",
        "https://@host.example/path/x",
    ),
    *(
        "https://host.example%2eevil.com/path/x",
        "https://evil.com\\@host.example/path/x",
        "https://host.example./path/x",
    ),
    *(
        "https://evil.com#@host.example/path/x",
        "https://evil.com?@host.example/path/x",
        "https://host.example:444/path/x",
    ),
    *(
        "http://host.example/path/x",
        "https://host.example:80/path/x",
        "https:///host.example/path/x",
        "//host.example/path/x",
    ),
    *(
        "https:host.example/path/x",
        "https:/host.example/path/x",
        "https://ｈost.example/path/x",
        "https://host。example/path/x",
    ),
    *(
        "https://host.example/pathetic/x",
        "https://host.example/path",
        "https://host.example/path/",
        "http://plain.example/a/x",
    ),
    *(
        "http://plain.example:8081/a/x",
        "http://plain.example:80800/a/x",
        "https://host.example:x/path/x",
        "https://[::1/path/x",
    ),
    *("https://sub.host.example/path/x", "https://host.example,evil.com/path/x", "https://host.example /path/x"),
    # Addresses.
    *(
        "http://127.0.0.1/x.wav",
        "http://localhost:8265/api/jobs/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0/x",
    ),
    *("http://[::1]/x", "http://[::ffff:127.0.0.1]/x", "http://2130706433/x", "http://0x7f.1/x", "http://0177.0.0.1/x"),
    # Signs that parsers drop or turn.
    *(
        " https://host.example/path/x",
        "https://host.example/path/x ",
        "https://host.example/path/x\n",
        "\thttps://evil.com/x",
    ),
    *(
        "ht\ntps://host.example/path/x",
        "https://host.example/pa\tth/../x",
        "https://host.example/path/\x00",
        "\x00",
        "\x1b[2J",
    ),
    *(
        "https://host.example/path/\u202egpj.wav",
        "s3://songs/in/\u202ex",
        "s3://songs/in/\x7f",
        "https://host.example/path/é",
    ),
    *("https://host.example/path/a b", "https://host.example/path/" + "x" * 3000, "s3://" + "a" * 3000),
    # Names of our own kind.
    *("", " ", "upload:", "upload:../../x", "upload-", "upload-xyz", f"upload-{HASH}/../x", f"upload-{HASH}.json"),
    *(
        f"upload-{HASH.upper()}",
        f"upload:{HASH}",
        f"uploads/upload-{HASH}.wav",
        f"upload-{HASH}\n",
        f"upload:upload:{HASH}",
    ),
    *(
        "job:",
        "job:x",
        "job:../../x",
        f"job:{JOB}/../x",
        f"job:{JOB}/-1",
        f"job:{JOB}/",
        f"job:{JOB}/1/2",
        f"job:{JOB}/99999",
    ),
    *(f"job:{JOB}/١", f"job:{JOB}\n", f"job:{JOB}/0x1", f"job:job:{JOB}", "job-" + "a" * 500, "song:a", f"Job:{JOB}"),
    *(
        "data:",
        "data:,hello",
        "data:text/plain;base64,AAAA",
        "data:audio/wav,AAAA",
        "data:audio/wav;base64",
        "data:audio/;base64,AA",
    ),
    *(
        "data:audio/wav;base64,****",
        "data:audio/wav;base64,AAA",
        "data:audio/wav;base64,AA AA",
        "data:audio/wav;base64,é",
    ),
    *("data:audio/wav;base64,", "data:audio/wav;base64,AAAA", "data:audio/../x;base64,AAAA", "data:text/html,<script>"),
]


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_everything_else_is_refused(tmp_path: Path, source: str) -> None:
    for allowed in ([], ALLOWED):
        said = refused(sources_in(tmp_path, allowed_urls=allowed), source)
        assert said.isprintable() and len(said) < 600
        assert "fetched" not in said and "no such file" not in said  # Nobody went there to look.
        echoed = said.removeprefix("source: ").partition(" is not allowed; ")[0]
        assert len(echoed) <= 60
        assert ":pass@" not in echoed and ":secret@" not in echoed
    assert Storage(str(tmp_path)).keys("") == []


def test_a_refusal_says_what_is_allowed(tmp_path: Path) -> None:
    assert "this server takes no URLs" in refused(sources_in(tmp_path), "https://host.example/path/x.wav")
    said = refused(sources_in(tmp_path, allowed_urls=ALLOWED), "https://u:secret@evil.com/x.wav?signature=abc")
    assert all(url in said for url in (*ALLOWED, "upload:<id>", "job:<id>/<index>", "data:audio/wav;base64,..."))
    assert "secret" not in said and "abc" not in said


@pytest.mark.parametrize(
    "url",
    [
        *("s3://bucket/in", "https://host.example", "https://host.example/a", "file:///srv/", "/srv/sources/", "*", ""),
        *(
            "https://u:p@host.example/",
            "https://*.example/",
            "https://host.example/?a=b",
            "s3://bucket/../",
            "s3:///in/",
        ),
        *(
            "simplecache::s3://bucket/in/",
            "local://srv/",
            "zip://a/::file:///x",
            "https://host.example/a//",
            "s3://b/in/*?/",
        ),
    ],
)
def test_only_plain_folders_can_be_allowed(url: str) -> None:
    with pytest.raises(ValidationError, match=r"sources\.allowed_urls"):
        SourcesSection(allowed_urls=[url])


# Expiry


@pytest.fixture(params=["local", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path))
    server: S3 = request.getfixturevalue("moto")
    return Storage(f"{server.url}/{uuid.uuid4().hex}", server.options)


def test_a_sweep_deletes_what_has_expired_and_nothing_else(store: Storage) -> None:
    clock = Clock()
    sources = sources_in(store, clock, expire_seconds=100)

    async def run() -> None:
        old, kept = await sources.put(sound(0.5)), await sources.put(sound(0.6))
        renewed = await sources.put(sound(0.7))
        clock.now += 60
        young = await sources.put(sound(0.8))
        assert await sources.sweep() == 0
        await sources_in(store, clock, expire_seconds=100).put(sound(0.7))  # By another process.
        clock.now += 60
        store.put("audio/other.flac", b"a song")
        assert await sources.sweep(keep=[kept.key, "audio/other.flac"]) == 1
        left = {key for upload in (kept, renewed, young) for key in (upload.key, f"uploads/{upload.id}.json")}
        assert set(store.keys("uploads")) == left
        assert await sources.resolve(renewed.id, no_job) == renewed.key
        assert not store.exists(old.key)
        clock.now += 200
        assert await sources.sweep() == 3
        assert store.keys("") == ["audio/other.flac"]

    asyncio.run(run())


def test_a_sweep_after_a_restart_clears_up_what_was_cut_off(tmp_path: Path) -> None:
    """Audio whose record was never written, or is damaged, is given as long as any upload, and then goes."""
    clock, storage = Clock(), Storage(str(tmp_path))
    upload = asyncio.run(sources_in(tmp_path, clock, expire_seconds=100).put(sound()))
    storage.delete([f"uploads/{upload.id}.json"])
    storage.put(f"uploads/upload-{HASH}.json", b"{")
    sources = sources_in(tmp_path, clock, expire_seconds=100)

    async def run() -> list[int]:
        counts = [await sources.sweep()]
        for _ in range(2):
            clock.now += 50
            counts.append(await sources.sweep())
        return counts

    assert asyncio.run(run()) == [0, 0, 2]
    assert storage.keys("") == []


def test_an_upload_that_comes_while_its_predecessor_goes_is_whole(tmp_path: Path) -> None:
    clock = Clock()
    sources = sources_in(tmp_path, clock, expire_seconds=100)

    async def run() -> None:
        for turn in range(20):
            await sources.put(sound(0.01))
            clock.now += 100
            sweeping = asyncio.create_task(sources.sweep())
            await asyncio.sleep(turn / 10_000)
            upload: Upload = await sources.put(sound(0.01))
            await sweeping
            assert await sources.resolve(upload.id, no_job) == upload.key

    asyncio.run(run())
