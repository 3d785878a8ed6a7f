"""`Piece`: what is played, in musical terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Density = Literal["sparse", "medium", "busy"]
Mode = Literal["major", "minor"]

TEMPI = (60, 66, 72, 80, 88, 96, 104, 112, 120, 132, 144, 160)
"""Beats a minute, about 9% apart."""

ROOTS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
"""Names of the pitch classes 0 to 11."""

INSTRUMENTS = ("piano", "guitar", "flute", "organ", "strings", "marimba", "synth", "music box")

SCALES: dict[Mode, tuple[int, ...]] = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
"""Semitones above the root."""

DENSITIES: tuple[Density, ...] = ("sparse", "medium", "busy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One instrument with an accompaniment of its own, perhaps a bass and drums, in 4/4."""

    instrument: str
    tempo: int
    """Beats a minute."""
    root: int
    """Pitch class, 0 = C."""
    mode: Mode
    density: Density
    drums: bool
    bass: bool
    seed: int
    """Of the melody, the chords and everything that the other fields leave open."""

    @property
    def key(self) -> str:
        """As "A minor"."""
        return f"{ROOTS[self.root]} {self.mode}"

    @property
    def pace(self) -> Literal["slow", "mid-tempo", "fast"]:
        """The word for the tempo."""
        return "slow" if self.tempo <= 80 else "mid-tempo" if self.tempo <= 112 else "fast"

    @property
    def moods(self) -> tuple[str, ...]:
        """The words for its mood that are true, which may be none."""
        found = []
        if self.density == "sparse" and not self.drums:
            found.append("calm")
        if self.density == "busy" and self.drums:
            found.append("energetic")
        if self.mode == "minor" and self.pace == "slow":
            found.append("sad")
        if self.mode == "major" and self.pace != "slow":
            found.append("happy")
        return tuple(found)

    @property
    def pitch_classes(self) -> tuple[int, ...]:
        """Of its scale."""
        return tuple((self.root + step) % 12 for step in SCALES[self.mode])


def random_piece(seed: int) -> Piece:
    """Draw a piece; every field is independent of the others."""
    rng = np.random.default_rng([seed, 1])
    return Piece(
        instrument=str(rng.choice(INSTRUMENTS)),
        tempo=int(rng.choice(TEMPI)),
        root=int(rng.integers(12)),
        mode="major" if rng.random() < 0.5 else "minor",
        density=DENSITIES[int(rng.integers(3))],
        drums=bool(rng.random() < 0.5),
        bass=bool(rng.random() < 0.6),
        seed=seed,
    )
