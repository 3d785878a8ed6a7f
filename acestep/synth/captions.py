"""What users would write to get a piece."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from acestep.synth.piece import ROOTS, Piece

_NAMES = {
    "piano": ("piano", "upright piano", "soft piano", "grand piano"),
    "guitar": ("guitar", "acoustic guitar", "plucked guitar"),
    "flute": ("flute", "wooden flute", "breathy flute"),
    "organ": ("organ", "hammond organ", "electric organ"),
    "strings": ("strings", "string ensemble", "warm strings"),
    "marimba": ("marimba", "wooden marimba"),
    "synth": ("synth", "synth lead", "analog synth", "synthesizer"),
    "music box": ("music box", "tiny music box"),
}
_PACES = {
    "slow": ("slow", "slow tempo", "adagio"),
    "mid-tempo": ("mid-tempo", "medium tempo", "moderate"),
    "fast": ("fast", "fast tempo", "upbeat", "allegro"),
}
_MOODS = {
    "calm": ("calm", "peaceful", "relaxing", "chill"),
    "energetic": ("energetic", "driving", "lively"),
    "sad": ("sad", "melancholic", "sorrowful"),
    "happy": ("happy", "cheerful", "bright", "joyful"),
}
_DENSITIES = {
    "sparse": ("sparse", "minimal", "few notes"),
    "medium": ("medium density", "steady"),
    "busy": ("busy", "dense", "many notes"),
}
_DRUMS = {True: ("drums", "with drums", "drum beat"), False: ("no drums", "without drums", "drumless")}
_BASS = {True: ("bass", "with bass", "bass line"), False: ("no bass", "without bass")}
_OTHER_ROOTS = {"C#": "Db", "Eb": "D#", "F#": "Gb", "Ab": "G#", "Bb": "A#"}
_IDLE = ("instrumental", "high quality", "melodic", "studio recording", "loop", "background music", "song", "demo")
"""Words that say nothing about the piece; the model is to be used to such."""


def describe(piece: Piece, seed: int) -> str:
    """A prompt for the piece: tags or a phrase, its words drawn, some of what it is left unsaid."""
    rng = np.random.default_rng([seed, 2])

    def one(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    return _phrase(piece, one, chance) if chance(0.35) else _tags(piece, one, chance, rng)


def _tags(
    piece: Piece, one: Callable[[tuple[str, ...]], str], chance: Callable[[float], bool], rng: np.random.Generator
) -> str:
    tags = [one(_NAMES[piece.instrument])] if chance(0.95) else []
    if chance(0.85):
        tags.append(_key(piece, one))
    if chance(0.85):
        tags.append(_tempo(piece, one))
    if chance(0.3):
        tags.append(one(_PACES[piece.pace]))
    tags += [one(_MOODS[mood]) for mood in piece.moods if chance(0.4)]
    if chance(0.4):
        tags.append(one(_DENSITIES[piece.density]))
    if chance(0.6):
        tags.append(one(_DRUMS[piece.drums]))
    if chance(0.4):
        tags.append(one(_BASS[piece.bass]))
    if chance(0.2):
        tags.append(one(_IDLE))
    order = rng.permutation(len(tags))
    return ", ".join(tags[int(index)] for index in order) or one(_IDLE)


def _phrase(piece: Piece, one: Callable[[tuple[str, ...]], str], chance: Callable[[float], bool]) -> str:
    words = [one(_PACES[piece.pace][:1])] if chance(0.5) else []
    words += [one(_MOODS[mood]) for mood in piece.moods if chance(0.5)]
    text = " ".join([*words, one(_NAMES[piece.instrument])])
    if chance(0.9):
        text += f" in {_key(piece, one)}"
    if chance(0.85):
        text += f"{one((', ', ' at '))}{_tempo(piece, one)}"
    if chance(0.5):
        text += f", {one(_DRUMS[piece.drums])}"
    return text


def _key(piece: Piece, one: Callable[[tuple[str, ...]], str]) -> str:
    root = ROOTS[piece.root]
    if root in _OTHER_ROOTS:
        root = one((root, root, _OTHER_ROOTS[root]))
    root = one((root, root, root.replace("#", " sharp").replace("b", " flat")))
    return f"{root} {piece.mode}"


def _tempo(piece: Piece, one: Callable[[tuple[str, ...]], str]) -> str:
    return f"{piece.tempo}{one((' bpm', ' bpm', ' BPM', 'bpm'))}"
