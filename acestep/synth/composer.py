"""The notes of a piece: a loop of chords, a melody over it, a bass and a beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acestep.synth.piece import SCALES, Mode, Piece

BEATS = 4
"""In a bar."""

_PROGRESSIONS: dict[Mode, tuple[tuple[int, ...], ...]] = {
    "major": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 3, 0, 4)),
}
"""Scale degrees of the chords, one a bar."""

_RHYTHMS = {
    "sparse": ((2.0, 2.0), (2.0, 1.0, 1.0), (3.0, 1.0)),
    "medium": ((1.0, 1.0, 1.0, 1.0), (1.0, 0.5, 0.5, 2.0), (1.0, 1.0, 0.5, 0.5, 1.0)),
    "busy": ((0.5,) * 8, (0.5, 0.5, 1.0, 0.5, 0.5, 1.0), (1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)),
}
"""Lengths of a bar's melody notes, in beats."""

_MELODY_CENTER, _CHORD_CENTER, _BASS_LOW = 77, 66, 48
"""MIDI notes."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is struck when. Times in beats from the start."""

    start: float
    length: float
    voice: str
    """melody, chord, bass, or the name of a drum."""
    pitch: int
    """MIDI; 0 for drums."""
    velocity: float


def compose(piece: Piece, num_bars: int) -> list[Note]:
    """The notes of the first bars, in no order. A longer piece begins with the shorter one."""
    rng = np.random.default_rng([piece.seed, 3])
    progression = _PROGRESSIONS[piece.mode][int(rng.integers(4))]
    step = 0
    notes: list[Note] = []
    for bar in range(num_bars):
        degree = progression[bar % len(progression)]
        start = float(bar * BEATS)
        melody, step = _melody(piece, rng, start, degree, step)
        notes += melody
        notes += _chords(piece, start, degree)
        if piece.bass:
            root = _bass_note(piece, degree)
            notes += [Note(start + beat, 1.8, "bass", root, 1.0) for beat in (0.0, 2.0)]
        if piece.drums:
            notes += _beat(piece, start)
    return notes


def _melody(piece: Piece, rng: np.random.Generator, start: float, degree: int, step: int) -> tuple[list[Note], int]:
    """A bar that walks along the scale, on a note of the chord when a strong beat comes."""
    rhythms = _RHYTHMS[piece.density]
    notes, beat = [], 0.0
    for length in rhythms[int(rng.integers(len(rhythms)))]:
        step = int(np.clip(step + rng.choice((-2, -1, -1, 0, 1, 1, 2)), -5, 6))
        if beat in (0.0, 2.0):
            step = min((step, step + 1, step - 1), key=lambda s: (s - degree) % 7 not in (0, 2, 4))
        notes.append(
            Note(start + beat, length, "melody", _pitch(piece, step, _MELODY_CENTER), 1.0 if beat == 0 else 0.85)
        )
        beat += length
    return notes, step


def _chords(piece: Piece, start: float, degree: int) -> list[Note]:
    beats = (0.0, 2.0) if piece.density == "sparse" else (0.0, 1.0, 2.0, 3.0)
    length = BEATS / len(beats)
    pitches = [_pitch(piece, degree + third, _CHORD_CENTER) for third in (0, 2, 4)]
    # Folded into one octave, so that a chord is close to the next.
    pitches = sorted({_CHORD_CENTER - 7 + (pitch - _CHORD_CENTER + 7) % 12 for pitch in pitches})
    return [
        Note(start + beat, length * 0.95, "chord", pitch, 1.0 if beat == 0 else 0.8)
        for beat in beats
        for pitch in pitches
    ]


def _beat(piece: Piece, start: float) -> list[Note]:
    kicks = (0.0, 1.0, 2.0, 3.0) if piece.density == "busy" else (0.0, 2.0)
    hats = np.arange(0, BEATS, 1.0 if piece.density == "sparse" else 0.5)
    notes = [Note(start + beat, 0.0, "kick", 0, 1.0) for beat in kicks]
    notes += [Note(start + beat, 0.0, "snare", 0, 1.0) for beat in (1.0, 3.0)]
    return notes + [Note(start + float(beat), 0.0, "hat", 0, 1.0 if beat % 1 == 0 else 0.6) for beat in hats]


def _pitch(piece: Piece, step: int, center: int) -> int:
    """The note some steps along the scale from the root that is nearest to a center."""
    octave, degree = divmod(step, 7)
    root = center - 6 + (piece.root - (center - 6)) % 12
    return root + 12 * octave + SCALES[piece.mode][degree]


def _bass_note(piece: Piece, degree: int) -> int:
    pitch = piece.root + SCALES[piece.mode][degree % 7]
    return _BASS_LOW + (pitch - _BASS_LOW) % 12
