"""`SongReader`: a listed song as waveforms with what they are called, ready to be encoded. Work for CPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from acestep.audio import load_audio
from acestep.errors import AudioFormatError
from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, num_samples
from acestep.resample import resample
from acestep.synth import describe, random_piece, render
from pipelines.errors import UnusableInputError
from pipelines.storage import open_filesystem
from pipelines.training_data.config import PrepareConfig, SynthSection
from pipelines.training_data.items import Item


@dataclass(frozen=True, slots=True)
class TrainingSong:
    """What becomes one row."""

    id: str
    waveform: np.ndarray
    """Float32 `[2, W]` at 44.1 kHz."""
    prompts: list[str]
    lyrics: str = ""
    language: str = "auto"


@dataclass(frozen=True)
class SongReader:
    """Reads songs one by one; safe to call from several threads.

    Attributes:
        options: of the fsspec filesystem that the audio lies in.
    """

    config: PrepareConfig
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __call__(self, item: Item) -> list[TrainingSong]:
        """The songs that a listed one becomes: one, several parts of a long one, or none that may be learned from.

        Raises:
            AudioFormatError: for anything that is not audio of one or two channels.
            UnusableInputError: for audio that is too short or not finite, or where nothing says what it is called.
            OSError: for what cannot be read.
        """
        if item["audio"] is None:
            return synth_song(item["id"], item["seed"], self.config.synth)
        prompts = item["prompts"] or [line.strip() for line in self._text(item["prompt_file"]).splitlines()]
        prompts = [prompt for prompt in prompts if prompt]
        if not prompts:
            raise UnusableInputError("there is no prompt for it")
        lyrics = self._text(item["lyrics_file"]) if item["lyrics_file"] else item["lyrics"] or ""
        waveform = self._waveform(item["audio"])
        parts = self._parts(waveform, only_first=bool(lyrics.strip()))
        return [
            TrainingSong(
                item["id"] if len(parts) == 1 else f"{item['id']}#{index}",
                part,
                prompts,
                lyrics,
                item["language"] or "auto",
            )
            for index, part in enumerate(parts)
        ]

    def _waveform(self, address: str) -> np.ndarray:
        samples, sample_rate = load_audio(self._read(address))
        waveform = resample(samples, sample_rate, SAMPLE_RATE).numpy()
        if not np.isfinite(waveform).all():
            raise AudioFormatError("not all of its samples are finite")
        if (seconds := waveform.shape[1] / SAMPLE_RATE) < self.config.min_seconds:
            raise UnusableInputError(f"it has {seconds:.2f} s; the shortest is {self.config.min_seconds:g} s")
        return waveform

    def _parts(self, waveform: np.ndarray, *, only_first: bool) -> list[np.ndarray]:
        """Parts of whole latent frames, but for the last."""
        if self.config.max_seconds is None:
            return [waveform]
        longest = num_samples(self.config.max_seconds)
        shortest = min(longest, math.ceil(self.config.min_seconds * SAMPLE_RATE))
        starts = range(0, waveform.shape[1], longest)
        parts = [waveform[:, start : start + longest] for start in starts]
        parts = [part for index, part in enumerate(parts) if not index or part.shape[1] >= shortest]
        return parts[:1] if only_first else parts

    def _text(self, address: str) -> str:
        return self._read(address).decode("utf-8-sig").strip()

    def _read(self, address: str) -> bytes:
        filesystem, path = open_filesystem(address, self.options)
        return filesystem.cat_file(path)


def synth_song(id: str, seed: int, section: SynthSection) -> list[TrainingSong]:
    """A piece of the synthesiser by its captions, of whole latent frames; nothing where the evaluation asks for it."""
    from acestep.evaluation.prompts import is_held_out, is_held_out_combination

    piece = random_piece(seed)
    captions = [describe(piece, seed * section.captions + index) for index in range(section.captions)]
    captions = [caption for caption in dict.fromkeys(captions) if not is_held_out(caption)]
    if not captions or (section.leave_out_combinations and is_held_out_combination(piece)):
        return []
    weights = np.array(section.weights) / sum(section.weights)
    duration = float(np.random.default_rng([seed, 4]).choice(section.durations, p=weights))
    waveform = render(piece, num_samples(duration) / SAMPLE_RATE)
    assert waveform.shape[1] % SAMPLES_PER_FRAME == 0
    return [TrainingSong(id, waveform, captions)]


def uses_reserved_seeds(section: SynthSection) -> bool:
    """Whether some of the pieces are those that the evaluation draws its prompts from."""
    from acestep.evaluation.prompts import RESERVED_SEEDS

    stop = section.first_seed + section.pieces
    return section.first_seed < RESERVED_SEEDS.stop and RESERVED_SEEDS.start < stop


RESERVED_PROBLEM = "synth.first_seed: some of these seeds are those of the evaluation's prompts; begin elsewhere"
