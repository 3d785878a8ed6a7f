"""How large files of each format become, before they are made: exact where the format is, a range where it is not."""

from __future__ import annotations

from collections.abc import Mapping

from acestep.audio_format import KINDS, AudioFormat
from acestep.frames import LATENT_CHANNELS, LATENT_HEIGHT
from pipelines.measured import Files
from pipelines.speed import Range
from pipelines.work import FRAME_SECONDS

LATENT_BYTES = 4 * LATENT_CHANNELS * LATENT_HEIGHT / FRAME_SECONDS
"""Of kept latents, for a second of audio."""

_CHANNELS = 2
_FLAC_SHARE = Range(0.5, 0.65, 0.85)
"""Of the same samples in 16 bits: sparse to dense music. Bits below those are noise, and stay."""
_VORBIS_KBPS = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 500)
"""Nominal, for quality 0, 0.1, ... 1, stereo at 44,100 Hz."""
_VORBIS_SHARE = Range(0.75, 1.0, 1.15)
_OPUS_KBPS = (12.0, 512.0)
"""At quality 0 and 1, stereo, as libsndfile spreads them."""
_OPUS_SHARE = Range(0.8, 1.0, 1.15)
_ENOUGH_SONGS = 20
_MEASURED_WIDTH = 1.1
"""How far a measured mean is from the next songs', as a factor."""


def formats(chosen: AudioFormat) -> list[AudioFormat]:
    """The chosen format, and all others with their default settings."""
    return [chosen, *(AudioFormat.parse(format=name) for name in KINDS if name != chosen.format)]


def bytes_per_second(audio: AudioFormat, sample_rate: int, measured: Mapping[str, Files] | None = None) -> Range:
    """Bytes for a second of audio.

    Args:
        measured: by rendition; used where the format alone does not say it, and enough songs stand behind it.
    """
    depth = audio.bit_depth or 16
    pcm = sample_rate * _CHANNELS * depth / 8
    if audio.format == "wav":
        return Range.exactly(pcm)
    if audio.format == "mp3":
        assert audio.bitrate_kbps is not None
        return Range.exactly(125.0 * audio.bitrate_kbps)
    files = (measured or {}).get(audio.rendition)
    if files and files.songs >= _ENOUGH_SONGS and files.audio_seconds:
        mean = files.bytes / files.audio_seconds
        return Range(mean / _MEASURED_WIDTH, mean, mean * _MEASURED_WIDTH)
    if audio.format == "flac":
        return _FLAC_SHARE.times(pcm * 16 / depth).plus(Range.exactly(pcm * (depth - 16) / depth))
    assert audio.quality is not None
    if audio.format == "ogg":
        return _VORBIS_SHARE.times(125.0 * _between(_VORBIS_KBPS, audio.quality) * sample_rate / 44_100)
    return _OPUS_SHARE.times(125.0 * _between(_OPUS_KBPS, audio.quality))


def _between(values: tuple[float, ...], share: float) -> float:
    place = share * (len(values) - 1)
    below = min(int(place), len(values) - 2)
    return values[below] + (place - below) * (values[below + 1] - values[below])
