"""`Player`: a song of the catalog as the page holds it: an excerpt to hear, and pictures of the whole."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import soundfile as sf

from acestep.audio import encode_audio
from acestep.audio_format import AudioFormat
from acestep.errors import ACEStepError
from pipelines.report.pictures import (
    clipped_path,
    highest_hz,
    spectrogram_png,
    waveform_path,
)
from pipelines.storage import Storage

LONGEST_SECONDS = 30.0
SHORTEST_SECONDS = 6.0
"""An excerpt under this says too little."""
PICTURE_BYTES = 60_000
"""Of the page, for the pictures and words about one song, at most."""

_WORDS_BYTES = 5000
_FOLDERS = ("audio/", "quarantine/")
_BITRATES = (128, 96, 64)
_THREADS = 4


@dataclass(frozen=True, slots=True)
class Excerpt:
    """How much of each song a page can hold, as MP3."""

    seconds: float
    bitrate_kbps: int

    @classmethod
    def share(cls, page_bytes: float, songs: int) -> tuple[Excerpt, int]:
        """The best for so many songs that share `page_bytes` of a page, and for how many of them there is room."""
        sound_bytes = (page_bytes / max(songs, 1) - PICTURE_BYTES) * 3 / 4  # base64
        for bitrate in _BITRATES:
            seconds = sound_bytes / (bitrate * 125)
            if seconds >= LONGEST_SECONDS / 2:
                break
        excerpt = cls(min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS), bitrate)
        return excerpt, max(0, min(songs, int(page_bytes / excerpt.page_bytes + 1e-9)))

    @property
    def page_bytes(self) -> float:
        """Of a song in the page, at most."""
        return PICTURE_BYTES + self.seconds * self.bitrate_kbps * 125 * 4 / 3


@dataclass(frozen=True, slots=True)
class Player:
    """What the page shows and plays of one song; `problem` says why there is nothing."""

    problem: str = ""
    sound: str = ""
    """MP3 in base64."""
    spectrogram: str = ""
    """PNG in base64."""
    waveform: tuple[str, str] = ("", "")
    """Paths of the left and the right channel."""
    clipped: str = ""
    seconds: float = 0.0
    start: float = 0.0
    """Second of the song at which the excerpt begins."""
    length: float = 0.0
    highest_hz: float = 0.0

    @property
    def page_bytes(self) -> int:
        """Of the page, about."""
        return len(self.sound) + len(self.spectrogram) + sum(map(len, self.waveform)) + _WORDS_BYTES

    @property
    def is_whole(self) -> bool:
        """Whether the excerpt is the whole song."""
        return self.length >= self.seconds


def players(storage: Storage, paths: Sequence[str | None], excerpt: Excerpt) -> Iterator[Player]:
    """A player for each path, in order; what cannot be read becomes one that says so."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda path: _player(storage, path, excerpt), paths)


def _player(storage: Storage, path: str | None, excerpt: Excerpt) -> Player:
    # A row is foreign text: it may not make the page show another file of this machine.
    if not path or not path.startswith(_FOLDERS) or ".." in path.split("/"):
        return Player(problem=f"{path!r} is no audio of this catalog" if path else "its audio was not kept")
    try:
        samples, sample_rate = sf.read(io.BytesIO(storage.get(path)), dtype="float32", always_2d=True)
    except FileNotFoundError:
        return Player(problem="its audio is not there any more")
    except (ACEStepError, sf.LibsndfileError) as error:
        return Player(problem=f"its audio cannot be read: {error}")
    if not len(samples):
        return Player(problem="its audio is empty")
    # Quarantined songs may hold anything.
    waveform = np.nan_to_num(samples.T, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
    waveform = np.repeat(waveform, 2, axis=0) if len(waveform) == 1 else waveform[:2]
    seconds = waveform.shape[1] / sample_rate
    length = min(excerpt.seconds, seconds)
    start = (seconds - length) / 3  # songs begin softly
    first, last = int(start * sample_rate), int((start + length) * sample_rate)
    try:
        audio = AudioFormat(format="mp3", bitrate_kbps=excerpt.bitrate_kbps)
        sound = encode_audio(waveform[:, first:last], sample_rate, audio)
    except ACEStepError as error:
        return Player(problem=f"its audio cannot be played here: {error}")
    return Player(
        sound=base64.b64encode(sound).decode(),
        spectrogram=base64.b64encode(spectrogram_png(waveform, sample_rate)).decode(),
        waveform=(waveform_path(waveform[0]), waveform_path(waveform[1])),
        clipped=clipped_path(waveform),
        seconds=seconds,
        start=start,
        length=length,
        highest_hz=highest_hz(sample_rate),
    )
