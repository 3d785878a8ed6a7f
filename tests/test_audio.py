"""Audio files through the real encoders and back: fidelity, tags, repeatable bytes, refusals, whole writes."""

from __future__ import annotations

import io
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from acestep.audio import AudioFormat, encode_audio, load_audio, save_audio
from acestep.audio_format import KINDS, MP3_BITRATES
from acestep.errors import ACEStepError, AudioFormatError, InvalidAudioError
from acestep.ogg import SERIAL, fix_serial

LOSSLESS = [("wav", 16), ("wav", 24), ("wav", 32), ("flac", 16), ("flac", 24)]


def song(seconds: float = 2.0, rate: int = 44_100) -> np.ndarray:
    """A different chord on each side, at half scale, with a little noise."""
    time_s = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((2, len(time_s)))
    tones = [sum(np.sin(2 * np.pi * hz * time_s) for hz in chord) for chord in ((220, 330), (440, 550))]
    return (0.24 * np.stack(tones) + 0.003 * noise).astype(np.float32)


def snr_db(got: np.ndarray, want: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).mean() / np.square(got - want).mean()))


@pytest.mark.parametrize("torch_input", [False, True])
@pytest.mark.parametrize(("name", "bits"), LOSSLESS)
def test_lossless_formats_give_back_the_samples(name: str, bits: int, torch_input: bool) -> None:
    waveform = song()
    data = encode_audio(
        torch.from_numpy(waveform) if torch_input else waveform, 44_100, AudioFormat(format=name, bit_depth=bits)
    )
    info = sf.info(io.BytesIO(data))
    assert (info.format, info.subtype) == (name.upper(), "FLOAT" if bits == 32 else f"PCM_{bits}")
    got, rate = load_audio(data)
    assert (rate, got.dtype) == (44_100, torch.float32)
    step = 0 if bits == 32 else 2.0 ** (1 - bits)
    assert np.abs(got.numpy() - waveform).max() <= 1.01 * step


@pytest.mark.parametrize("rate", [44_100, 48_000])
@pytest.mark.parametrize("name", ["mp3", "ogg", "opus"])
def test_lossy_formats_give_back_the_song(name: str, rate: int) -> None:
    waveform = song(3.0, rate)
    got, got_rate = load_audio(encode_audio(waveform, rate, AudioFormat(format=name)))
    assert got_rate == (48_000 if name == "opus" else rate)
    want = song(3.0, 48_000) if name == "opus" and rate == 44_100 else waveform
    assert got.shape == want.shape
    if want is waveform:
        assert snr_db(got.numpy(), want) > 20
    else:  # The noise differs between the two rates; the tones do not.
        assert snr_db(got.numpy(), want) > 15


@pytest.mark.parametrize("name", ["ogg", "mp3"])
def test_a_long_song_does_not_crash_the_encoder(name: str) -> None:
    seconds = 70 if name == "ogg" else 5  # one write of 60 s ends the process inside libvorbis
    waveform = np.tile(song(1.0, 48_000), seconds)
    assert sf.info(io.BytesIO(encode_audio(waveform, 48_000, AudioFormat(format=name)))).duration == seconds


def test_the_same_song_gives_the_same_bytes_at_another_time() -> None:
    formats = [AudioFormat(format=name) for name in KINDS] + [AudioFormat(format="wav", bit_depth=32)]
    tags = {"title": "t", "comment": "{}"}
    first = [encode_audio(song(1.0), 44_100, each, tags) for each in formats]
    time.sleep(1.1)  # libsndfile writes the second of the clock into some files, and random numbers into others
    assert [encode_audio(song(1.0), 44_100, each, tags) for each in formats] == first
    assert len(set(first)) == len(formats)


def test_values_beyond_full_scale_are_clipped() -> None:
    waveform = np.stack([np.full(1000, 3.0), np.full(1000, -3.0)]).astype(np.float32)
    for each in (AudioFormat(format="wav"), AudioFormat(format="wav", bit_depth=32)):
        got, _ = load_audio(encode_audio(waveform, 44_100, each))
        assert got[0].min() > 0.999
        assert got[1].max() <= -0.999
        assert got.abs().max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_samples_that_are_not_finite_are_refused(bad: float) -> None:
    waveform = song(0.1).astype(np.float64)
    waveform[1, 7] = bad
    with pytest.raises(InvalidAudioError, match=r"1 of 8,820 samples are not finite"):
        encode_audio(waveform, 44_100, AudioFormat(format="wav"))


def test_an_empty_song_is_refused() -> None:
    with pytest.raises(InvalidAudioError, match="no samples"):
        encode_audio(np.zeros((2, 0), np.float32), 44_100, AudioFormat(format="wav"))


@pytest.mark.parametrize(
    "waveform", [np.zeros(9, np.float32), np.zeros((9, 2), np.float32), np.zeros((2, 9), np.int16)]
)
def test_a_waveform_must_be_stereo_and_float(waveform: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be float \[2, W\], not (float32|int16) \["):
        encode_audio(waveform, 44_100, AudioFormat(format="wav"))


@pytest.mark.parametrize("name", KINDS)
def test_tags_are_read_back(name: str) -> None:
    comment = json.dumps({"id": "a-1", "seed": 2**64 - 1, "ai_generated": True})
    tags = {"title": "Caf\u00e9 \u4f60\nX", "software": "acestep", "comment": comment}
    file = sf.SoundFile(io.BytesIO(encode_audio(song(0.5), 44_100, AudioFormat(format=name), tags)))
    assert file.title == "Cafe \\u4f60 X"
    assert file.comment == comment
    if name != "mp3":  # libsndfile does not read it back from there
        assert file.software.startswith("acestep")


@pytest.mark.parametrize("name", KINDS)
def test_a_tag_that_is_too_long_is_cut_and_does_not_vanish(name: str) -> None:
    data = encode_audio(song(0.5), 44_100, AudioFormat(format=name), {"comment": "x" * 5000})
    assert sf.SoundFile(io.BytesIO(data)).comment == "x" * 2000


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=100), st.sampled_from(sorted(KINDS)))
def test_any_text_is_a_tag(text: str, name: str) -> None:
    data = encode_audio(song(0.05), 44_100, AudioFormat(format=name), {"title": text})
    title = sf.SoundFile(io.BytesIO(data)).title or ""
    assert title.isascii()
    if text.isascii() and text.isprintable():
        assert title == text


def test_unknown_tags_are_refused() -> None:
    with pytest.raises(AudioFormatError, match="unknown tags: mood; known: title"):
        encode_audio(song(0.1), 44_100, AudioFormat(format="wav"), {"mood": "sad"})


@pytest.mark.parametrize("kbps", MP3_BITRATES)
def test_mp3_has_the_bitrate_asked_for(kbps: int) -> None:
    data = encode_audio(song(3.0), 44_100, AudioFormat(format="mp3", bitrate_kbps=kbps))
    assert len(data) * 8 / 3.0 / 1000 == pytest.approx(kbps, rel=0.05)


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_more_quality_is_a_larger_file(name: str) -> None:
    sizes = [
        len(encode_audio(song(), 48_000, AudioFormat(format=name, quality=quality))) for quality in (0, 0.3, 0.7, 1)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]


def test_defaults_are_written_out() -> None:
    assert AudioFormat(format="mp3") == AudioFormat(format="mp3", bitrate_kbps=320)
    assert [AudioFormat(format=name).rendition for name in KINDS] == [
        "wav-16",
        "flac-16",
        "mp3-320",
        "ogg-0.7",
        "opus-0.4",
    ]
    for name in KINDS:
        default = AudioFormat(format=name)
        assert AudioFormat(**default.model_dump(exclude_none=True)) == default
        assert AudioFormat(**default.model_dump()) == default
        assert default.extension == f".{name}"
        assert default.media_type.startswith("audio/")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("song.aac", {}, r"'song.aac': the extension must be one of .wav, .flac, .mp3, .ogg, .opus"),
        ("song.flc", {}, r"did you mean '.flac'\?"),
        ("song", {}, "the extension must be one of"),
        (
            "song.wav",
            {"bitrate_kbps": 320},
            "bitrate_kbps: 320 is not allowed; wav has no such setting; it has bit_depth",
        ),
        ("song.mp3", {"bit_depth": 16}, "mp3 has no such setting; it has bitrate_kbps"),
        ("song.flac", {"quality": 0.5}, "flac has no such setting; it has bit_depth"),
        ("song.opus", {"bitrate_kbps": 128}, "opus has no such setting; it has quality"),
        ("song.mp3", {"bitrate_kbps": 300}, "allowed for mp3: 64, 80, 96, 112, 128, 160, 192, 224, 256, 320"),
        ("song.flac", {"bit_depth": 32}, "allowed for flac: 16, 24"),
        ("song.wav", {"bit_depth": 8}, "allowed for wav: 16, 24, 32"),
        ("song.ogg", {"quality": 1.5}, "quality: 1.5 is not allowed"),
        ("song.ogg", {"quality": float("nan")}, "quality: nan is not allowed"),
        ("song.mp3", {"bitrate": 320}, "there is no such field; did you mean 'bitrate_kbps'?"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_can(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AudioFormatError, match=message):
        AudioFormat.from_path(path, **options)


def test_formats_in_a_larger_config_are_refused_as_fields() -> None:
    with pytest.raises(ValidationError, match="wav has no such setting"):
        AudioFormat(format="wav", quality=1)
    with pytest.raises(ValidationError, match="frozen"):
        AudioFormat(format="wav").bit_depth = 24  # type: ignore[misc]


@pytest.mark.parametrize("path", ["a/SONG.MP3", Path("b.c/x.mp3"), "s3://bucket/key.mp3"])
def test_the_extension_names_the_format(path: str | Path) -> None:
    assert AudioFormat.from_path(path, bitrate_kbps="128") == AudioFormat(format="mp3", bitrate_kbps=128)


def test_mp3_has_few_sample_rates() -> None:
    with pytest.raises(AudioFormatError, match="mp3 cannot have 22050 Hz; allowed: 32000, 44100, 48000"):
        encode_audio(song(0.1), 22_050, AudioFormat(format="mp3"))


def test_save_makes_folders_and_load_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "song.wav"
    assert save_audio(song(), 44_100, path, tags={"title": "t"}, bit_depth=24) == str(path)
    got, rate = load_audio(path)
    assert rate == 44_100
    assert np.abs(got.numpy() - song()).max() < 1e-6
    assert os.listdir(path.parent) == ["song.wav"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_save_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert save_audio(song(0.1), 44_100, "song.flac") == "song.flac"
    assert (tmp_path / "song.flac").is_file()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_cut_short_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "song.wav"
    path.write_bytes(b"before")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="disk full"):
        save_audio(song(0.1), 44_100, path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["song.wav"]


def test_nothing_is_made_for_a_song_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidAudioError):
        save_audio(np.full((2, 9), np.nan, np.float32), 44_100, tmp_path / "new" / "song.wav")
    with pytest.raises(AudioFormatError):
        save_audio(song(0.1), 44_100, tmp_path / "new" / "song.wav", quality=1)
    assert os.listdir(tmp_path) == []


def test_urls_are_written_and_read(tmp_path: Path) -> None:
    url = "memory://songs/deep/song.flac"
    assert save_audio(song(0.5), 44_100, url) == url
    got, rate = load_audio(url)
    assert (rate, got.shape) == (44_100, (2, 22_050))
    assert fsspec.filesystem("memory").cat(url) == encode_audio(song(0.5), 44_100, AudioFormat(format="flac"))
    save_audio(song(0.5), 44_100, f"file://{tmp_path}/deep/song.flac")
    assert torch.equal(load_audio(f"file://{tmp_path}/deep/song.flac")[0], got)
    assert os.listdir(tmp_path / "deep") == ["song.flac"]


def test_mono_is_doubled() -> None:
    buffer = io.BytesIO()
    sf.write(buffer, song()[0], 32_000, format="WAV", subtype="FLOAT")
    got, rate = load_audio(buffer.getvalue())
    assert (rate, got.shape) == (32_000, (2, 88_200))
    assert np.array_equal(got.numpy(), np.stack([song()[0]] * 2))


def test_what_is_not_audio_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    path.write_bytes(b"not audio at all")
    with pytest.raises(AudioFormatError, match=r"song\.mp3' cannot be read as audio"):
        load_audio(path)
    with pytest.raises(ACEStepError, match="these bytes cannot be read"):
        load_audio(b"")
    with pytest.raises(FileNotFoundError):
        load_audio(tmp_path / "none.mp3")
    for samples, message in ((np.zeros((9, 3)), "3 channels; 1 or 2"), (np.zeros((0, 2)), "no samples")):
        sf.write(tmp_path / "odd.wav", samples, 44_100)
        with pytest.raises(AudioFormatError, match=message):
            load_audio(tmp_path / "odd.wav")


def ogg_pages(data: bytes) -> list[tuple[int, int, bytes]]:
    """Serial, CRC and the page with a zero CRC, of each page."""
    pages, start = [], 0
    while start < len(data):
        count = data[start + 26]
        end = start + 27 + count + sum(data[start + 27 : start + 27 + count])
        serial, _, crc = struct.unpack_from("<III", data, start + 14)
        pages.append((serial, crc, data[start : start + 22] + bytes(4) + data[start + 26 : end]))
        start = end
    return pages


def ogg_crc(page: bytes) -> int:
    """As RFC 3533 has it, bit by bit."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_ogg_pages_have_the_fixed_serial_and_a_valid_crc(name: str) -> None:
    pages = ogg_pages(encode_audio(song(1.0), 48_000, AudioFormat(format=name, quality=0.2)))
    assert len(pages) > 3
    for serial, crc, page in pages:
        assert serial == SERIAL
        assert crc == ogg_crc(page)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=600), min_size=1, max_size=3), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_ogg_stream_can_be_given_any_serial(bodies: list[bytes], old: int, new: int) -> None:
    stream = b""
    for number, body in enumerate(bodies):
        table = bytes([255] * (len(body) // 255) + [len(body) % 255])
        page = struct.pack("<4sBBQIII", b"OggS", 0, 0, 7, old, number, 0) + bytes([len(table)]) + table + body
        stream += page[:22] + struct.pack("<I", ogg_crc(page)) + page[26:]
    fixed = fix_serial(stream, new)
    assert len(fixed) == len(stream)
    for (serial, crc, page), (_, _, before) in zip(ogg_pages(fixed), ogg_pages(stream), strict=True):
        assert serial == new
        assert crc == ogg_crc(page)
        assert page[18:] == before[18:]
    assert fix_serial(fixed, old) == stream
