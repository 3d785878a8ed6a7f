"""Audio files: encode a waveform in memory, write it whole, read one back.

Encoding needs no torch, unless Opus needs another sample rate. Equal waveforms give equal bytes, in every format.
"""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile as sf

from acestep.audio_format import AudioFormat
from acestep.errors import AudioFormatError, InvalidAudioError
from acestep.ogg import fix_serial
from acestep.whole_file import write_whole

if TYPE_CHECKING:
    import torch

__all__ = ["AudioFormat", "encode_audio", "load_audio", "save_audio"]

TAGS = ("title", "artist", "album", "comment", "software", "copyright", "date", "genre")

_LONGEST_TAG = 2000
"""Characters; libsndfile loses a WAV comment of more than 2,045 bytes without an error."""
_OPUS_HZ = 48_000
_MP3_HZ = (32_000, 44_100, 48_000)


def encode_audio(
    waveform: np.ndarray | torch.Tensor,
    sample_rate: int,
    format: AudioFormat,
    tags: Mapping[str, str] | None = None,
) -> bytes:
    """Encode float `[2, W]`, clipped to -1..1, as one file. Opus is always 48 kHz: others are resampled.

    Args:
        waveform: numpy, or torch on any device.
        tags: any of `TAGS`; written as ASCII (accents dropped, other letters escaped), at most 2,000 characters.

    Raises:
        InvalidAudioError: for samples that are not finite, or none at all.
        AudioFormatError: for a sample rate that the format does not have, or an unknown tag.
    """
    if unknown := set(tags or ()) - set(TAGS):
        raise AudioFormatError(f"unknown tags: {', '.join(sorted(unknown))}; known: {', '.join(TAGS)}")
    samples = _samples(waveform)
    if format.format == "opus" and sample_rate != _OPUS_HZ:
        samples, sample_rate = _resampled(samples, sample_rate), _OPUS_HZ
    if format.format == "mp3" and sample_rate not in _MP3_HZ:
        raise AudioFormatError(f"mp3 cannot have {sample_rate} Hz; allowed: {', '.join(map(str, _MP3_HZ))}")
    interleaved = np.ascontiguousarray(samples.clip(-1, 1).T)
    buffer = io.BytesIO()
    try:
        with sf.SoundFile(buffer, "w", sample_rate, 2, **format.soundfile_options()) as file:
            for name, value in (tags or {}).items():
                if text := _ascii(value):  # libsndfile refuses an empty one
                    setattr(file, name, text)
            # libvorbis puts a whole write on its stack and crashes the process over a long one.
            for start in range(0, len(interleaved), sample_rate):
                file.write(interleaved[start : start + sample_rate])
    except sf.LibsndfileError as error:
        raise AudioFormatError(f"{format.rendition} at {sample_rate} Hz cannot be written: {error}") from error
    return _repeatable(buffer.getvalue())


def save_audio(
    waveform: np.ndarray | torch.Tensor,
    sample_rate: int,
    path: str | os.PathLike[str],
    tags: Mapping[str, str] | None = None,
    **options: Any,
) -> str:
    """Encode and write to a local path or fsspec URL; the extension names the format. Returns the path.

    The file appears whole or not at all, and replaces what was there. Parent directories are made. `options` are the
    fields of `AudioFormat`.

    Raises:
        AudioFormatError: for an unknown extension or option, before anything is encoded.
        InvalidAudioError: as `encode_audio`.
    """
    path = os.fspath(path)
    data = encode_audio(waveform, sample_rate, AudioFormat.from_path(path, **options), tags)
    if "://" not in path:
        write_whole(path, data)
        return path
    import fsspec

    filesystem, key = fsspec.core.url_to_fs(path)
    if "file" in filesystem.protocol:
        write_whole(key, data)
    else:
        filesystem.pipe_file(key, data)  # an object store shows an object only once all of it is there
    return path


def load_audio(source: str | os.PathLike[str] | bytes) -> tuple[torch.Tensor, int]:
    """Read a file, fsspec URL or the bytes of a file: float32 `[2, W]`, mono doubled, and its sample rate in Hz.

    Raises:
        AudioFormatError: for anything that is not audio of one or two channels.
        FileNotFoundError: where there is no file.
    """
    import torch

    name = "these bytes" if isinstance(source, bytes) else repr(os.fspath(source))
    try:
        samples, sample_rate = sf.read(io.BytesIO(_read(source)), dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise AudioFormatError(f"{name} cannot be read as audio: {error}") from error
    if samples.shape[1] > 2:
        raise AudioFormatError(f"{name}: {samples.shape[1]} channels; 1 or 2 can be used")
    if len(samples) == 0:
        raise AudioFormatError(f"{name}: there are no samples in it")
    return torch.from_numpy(np.ascontiguousarray(samples.T)).expand(2, -1).contiguous(), sample_rate


def _read(source: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    if "://" not in os.fspath(source):
        with open(source, "rb") as file:
            return file.read()
    import fsspec

    with fsspec.open(os.fspath(source), "rb") as file:
        return file.read()


def _samples(waveform: np.ndarray | torch.Tensor) -> np.ndarray:
    """Float32 `[2, W]` on the CPU, known to be finite."""
    if not isinstance(waveform, np.ndarray):
        waveform = waveform.detach().cpu().float().numpy()
    if waveform.ndim != 2 or waveform.shape[0] != 2 or waveform.dtype.kind != "f":
        raise ValueError(f"a waveform must be float [2, W], not {waveform.dtype} {list(waveform.shape)}")
    if waveform.shape[1] == 0:
        raise InvalidAudioError("the waveform has no samples")
    with np.errstate(over="ignore"):
        samples = waveform.astype(np.float32, copy=False)
    # libsndfile would write NaN as full-scale clicks without a word.
    if bad := int(samples.size - np.isfinite(samples).sum()):
        raise InvalidAudioError(f"{bad:,} of {samples.size:,} samples are not finite")
    return samples


def _resampled(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    import torch

    from acestep.resample import resample

    return resample(torch.from_numpy(samples), sample_rate, _OPUS_HZ).numpy()


def _ascii(text: str) -> str:
    """ASCII without control characters: MP3 readers take tags as Latin-1, and a NUL would end them."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    escaped = plain.encode("ascii", "backslashreplace").decode()
    return "".join(char if char.isprintable() else " " for char in escaped)[:_LONGEST_TAG]


def _repeatable(data: bytes) -> bytes:
    """Without what libsndfile draws at random (Ogg) or takes from the clock (the PEAK chunk of a float WAV)."""
    if data[:4] == b"OggS":
        return fix_serial(data)
    if data[:4] == b"RIFF":
        return _without_peak_time(data)
    return data


def _without_peak_time(data: bytes) -> bytes:
    start = 12  # behind "RIFF", the size, "WAVE"
    while start < len(data) and data[start : start + 4] != b"data":
        if data[start : start + 4] == b"PEAK":
            time_at = start + 12  # behind the chunk's name, size and version
            return data[:time_at] + bytes(4) + data[time_at + 4 :]
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + size + size % 2
    return data
