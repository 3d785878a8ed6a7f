"""The synthesiser: the same music each time, in the key and the tempo that its captions say."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.frames import SAMPLE_RATE
from acestep.synth import Piece, describe, random_piece, render
from acestep.synth.composer import BEATS, compose
from acestep.synth.drums import hit
from acestep.synth.grid import FRAME, HIGHEST, LINE_HZ, TURN, along, pilot, turn_of, wheel
from acestep.synth.instruments import play
from acestep.synth.piece import INSTRUMENTS, ROOTS, TEMPI
from acestep.synth.renderer import FADE_SECONDS

SEEDS = st.integers(0, 2**31)
DRUMS = ("kick", "snare", "hat")
LOWEST = 41
"""MIDI note, of what is played."""


def sha256(wave: np.ndarray) -> str:
    return hashlib.sha256(wave.tobytes()).hexdigest()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_means_the_same_bytes_in_every_process_and_needs_no_torch(seed: int) -> None:
    code = (
        "import hashlib, sys; from acestep.synth import describe, random_piece, render; "
        f"p = random_piece({seed}); print(hashlib.sha256(render(p, 2.5).tobytes()).hexdigest()); "
        f"print(describe(p, {seed})); print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    piece = random_piece(seed)
    assert said == [sha256(render(piece, 2.5)), describe(piece, seed), "False"]
    assert sha256(render(replace(piece, seed=seed + 100), 2.5)) != said[0]


@settings(max_examples=8)
@given(SEEDS, st.floats(0.3, 3), st.floats(0.1, 3))
def test_a_longer_piece_begins_with_the_shorter_one(seed: int, seconds: float, more: float) -> None:
    piece = random_piece(seed)
    short, long = render(piece, seconds), render(piece, seconds + more)
    before_fade = short.shape[1] - int(FADE_SECONDS * SAMPLE_RATE)
    assert np.array_equal(short[:, :before_fade], long[:, :before_fade])
    assert (short.shape[1], long.shape[1]) == (round(seconds * SAMPLE_RATE), round((seconds + more) * SAMPLE_RATE))


@settings(max_examples=10)
@given(SEEDS, st.floats(0.01, 4))
def test_sound_is_stereo_within_bounds_and_ends_in_silence(seed: int, seconds: float) -> None:
    wave = render(random_piece(seed), seconds)
    assert wave.shape == (2, round(seconds * SAMPLE_RATE)) and wave.dtype == np.float32
    assert np.isfinite(wave).all() and np.abs(wave).max() <= 1
    assert np.abs(wave[:, -1]).max() < 0.005, "only the pilot stays"
    if seconds > 1:
        assert 0.02 < np.sqrt(np.mean(np.square(wave))) < 0.5
        assert not np.array_equal(wave[0], wave[1])


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_length_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"must be above 0, not {seconds}"):
        render(random_piece(0), seconds)


@given(SEEDS, st.integers(1, 9))
def test_every_note_is_of_the_scale_and_within_its_bar(seed: int, bars: int) -> None:
    piece = random_piece(seed)
    notes = compose(piece, bars)
    tonal = [played for played in notes if played.voice not in DRUMS]
    assert {played.pitch % 12 for played in tonal} <= set(piece.pitch_classes)
    assert len(set(piece.pitch_classes)) == 7 and piece.root in piece.pitch_classes
    expected = {"melody", "chord"} | ({"bass"} if piece.bass else set()) | (set(DRUMS) if piece.drums else set())
    assert {played.voice for played in notes} == expected
    pitches = {voice: [played.pitch for played in tonal if played.voice == voice] for voice in expected - set(DRUMS)}
    assert all(max(found) - min(found) <= (36 if voice == "melody" else 12) for voice, found in pitches.items())
    for played in tonal:
        assert LOWEST <= played.pitch <= 96, played
        assert played.length > 0 and played.start + played.length <= (played.start // BEATS + 1) * BEATS + 0.5
    assert all(0 <= played.start < bars * BEATS and played.start % 0.5 == 0 for played in notes)
    assert notes == compose(piece, bars + 2)[: len(notes)]


@given(SEEDS)
def test_a_bar_is_as_busy_as_is_said(seed: int) -> None:
    piece = random_piece(seed)
    melody = [played for played in compose(piece, 8) if played.voice == "melody"]
    low, high = {"sparse": (2, 3), "medium": (4, 5), "busy": (6, 8)}[piece.density]
    for bar in range(8):
        inside = [played for played in melody if played.start // BEATS == bar]
        assert low <= len(inside) <= high
        assert sum(played.length for played in inside) == BEATS


@given(SEEDS)
def test_strong_beats_are_of_the_chord(seed: int) -> None:
    notes = compose(random_piece(seed), 4)
    for bar in range(4):
        chord = {p.pitch % 12 for p in notes if p.voice == "chord" and p.start // BEATS == bar}
        strong = {p.pitch % 12 for p in notes if p.voice in ("melody", "bass") and p.start - bar * BEATS in (0.0, 2.0)}
        assert len(chord) == 3 and strong <= chord


@pytest.mark.parametrize("tempo", [TEMPI[0], 104, TEMPI[-1]])
@pytest.mark.parametrize("instrument", ["piano", "marimba"])
def test_what_is_heard_begins_on_the_beats(tempo: int, instrument: str) -> None:
    piece = replace(random_piece(0), tempo=tempo, instrument=instrument, density="medium", drums=False, bass=False)
    wave = render(piece, 8).mean(axis=0)
    hop = SAMPLE_RATE // 100
    level = np.sqrt(np.square(wave[: len(wave) // hop * hop].reshape(-1, hop)).mean(axis=1))
    rise = np.clip(np.diff(level, prepend=0), 0, None)
    starts = sorted({played.start * 60 / tempo for played in compose(piece, 40)})
    nearby = np.zeros(len(rise), dtype=bool)
    for start in starts:
        nearby[round(start * 100) : round(start * 100) + 3] = True
    assert {0.0, 60 / tempo, 120 / tempo, 180 / tempo} <= set(starts)
    assert rise[nearby].mean() > 5 * rise[~nearby].mean(), "what becomes louder does so with a note"


def test_pieces_are_drawn_from_all_there_are_and_evenly() -> None:
    pieces = [random_piece(seed) for seed in range(3000)]
    for name, values in (("instrument", INSTRUMENTS), ("tempo", TEMPI), ("root", range(12))):
        counts = [sum(getattr(piece, name) == value for piece in pieces) for value in values]
        expected = len(pieces) / len(counts)
        assert sum(counts) == len(pieces)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts), (name, counts)
    for chosen, share in (("drums", 0.5), ("bass", 0.6)):
        assert abs(sum(getattr(piece, chosen) for piece in pieces) / 3000 - share) < 0.05
    drawn = [[INSTRUMENTS.index(p.instrument), p.tempo, p.root, p.mode == "minor", p.drums, p.bass] for p in pieces]
    together = np.corrcoef(np.array(drawn, dtype=float), rowvar=False)
    assert np.abs(together - np.eye(6)).max() < 0.08, "nothing tells anything of another"


def test_each_field_changes_what_is_heard() -> None:
    piece = random_piece(5)
    changes = {"instrument": "organ", "tempo": 96, "root": 3, "density": "busy", "seed": 6}
    changes |= {"mode": "major", "drums": not piece.drums, "bass": not piece.bass}
    assert changes.keys() == {field.name for field in fields(Piece)}
    before = sha256(render(piece, 3))
    for name, value in changes.items():
        other = replace(piece, **{name: value})  # type: ignore[arg-type]
        assert other != piece, name
        assert sha256(render(other, 3)) != before, name


# Captions

ROOT_NAMES = {
    name: index
    for index, names in enumerate(("C", "C# Db", "D", "D# Eb", "E", "F", "F# Gb", "G", "G# Ab", "A", "A# Bb", "B"))
    for name in names.split()
}


def key_of(found: re.Match[str]) -> Callable[[Piece], bool]:
    name = found["letter"] + {" sharp": "#", " flat": "b"}.get(found["sign"] or "", found["sign"] or "")
    return lambda piece: (ROOT_NAMES[name], found["mode"]) == (piece.root, piece.mode)


def is_(**said: object) -> Callable[[re.Match[str]], Callable[[Piece], bool]]:
    return lambda found: lambda piece: all(getattr(piece, name) == value for name, value in said.items())


def calm(piece: Piece) -> bool:
    return piece.density == "sparse" and not piece.drums


def energetic(piece: Piece) -> bool:
    return piece.density == "busy" and piece.drums


def sad(piece: Piece) -> bool:
    return piece.mode == "minor" and piece.tempo <= 80


def happy(piece: Piece) -> bool:
    return piece.mode == "major" and piece.tempo > 80


ALWAYS = r"instrumental|high quality|melodic|studio recording|loop|background music|song|demo"
STATEMENTS: list[tuple[str, Callable[[re.Match[str]], Callable[[Piece], bool]]]] = [
    (r"(?P<letter>[A-G])(?P<sign>#|b| sharp| flat)? (?P<mode>major|minor)", key_of),
    (r"(?P<bpm>\d+) ?(bpm|BPM)", lambda found: lambda piece: piece.tempo == int(found["bpm"])),
    (r"no drums|without drums|drumless", is_(drums=False)),
    (r"with drums|drum beat|drums", is_(drums=True)),
    (r"no bass|without bass", is_(bass=False)),
    (r"with bass|bass line|bass", is_(bass=True)),
    (r"(upright |soft |grand )?piano", is_(instrument="piano")),
    (r"(acoustic |plucked )?guitar", is_(instrument="guitar")),
    (r"(wooden |breathy )?flute", is_(instrument="flute")),
    (r"(hammond |electric )?organ", is_(instrument="organ")),
    (r"string ensemble|(warm )?strings", is_(instrument="strings")),
    (r"(wooden )?marimba", is_(instrument="marimba")),
    (r"(analog )?synth( lead|esizer)?", is_(instrument="synth")),
    (r"(tiny )?music box", is_(instrument="music box")),
    (r"slow tempo|slow|adagio", lambda found: lambda piece: piece.tempo <= 80),
    (r"mid-tempo|medium tempo|moderate", lambda found: lambda piece: 80 < piece.tempo <= 112),
    (r"fast tempo|fast|upbeat|allegro", lambda found: lambda piece: piece.tempo > 112),
    (r"calm|peaceful|relaxing|chill", lambda found: calm),
    (r"energetic|driving|lively", lambda found: energetic),
    (r"sad|melancholic|sorrowful", lambda found: sad),
    (r"happy|cheerful|bright|joyful", lambda found: happy),
    (r"sparse|minimal|few notes", is_(density="sparse")),
    (r"medium density|steady", is_(density="medium")),
    (r"busy|dense|many notes", is_(density="busy")),
    (ALWAYS, lambda found: lambda piece: True),
]


def check(caption: str, piece: Piece) -> int:
    """How many statements a caption makes; each is true, and nothing else is said."""
    rest, count = caption, 0
    for pattern, meaning in STATEMENTS:
        for found in list(re.finditer(rf"(?<![\w#-])({pattern})(?![\w#-])", rest)):
            assert meaning(found)(piece), f"{found[0]!r} in {caption!r} is not true of {piece}"
            rest, count = rest.replace(found[0], "", 1), count + 1
    assert not re.sub(r"\b(in|at)\b|[, ]", "", rest), f"{rest!r} of {caption!r} is not understood"
    return count


@settings(max_examples=400)
@given(SEEDS, SEEDS)
def test_captions_say_only_what_is_true(seed: int, other: int) -> None:
    piece = random_piece(seed)
    assert check(describe(piece, other), piece) >= 1


def test_a_lie_would_be_noticed() -> None:
    piece = replace(random_piece(0), root=9, mode="minor", tempo=120, instrument="piano", drums=False)
    assert check("piano in A minor at 120 bpm, no drums", piece) == 4
    for lie in (
        "flute",
        "A major",
        "Ab minor",
        "a minor",
        "121 bpm",
        "drums",
        "slow piano",
        "jazz",
        "piano with drums",
    ):
        with pytest.raises(AssertionError):
            check(lie, piece)


def test_captions_are_varied_and_say_much() -> None:
    pieces = [random_piece(seed) for seed in range(400)]
    captions = [describe(piece, seed) for seed, piece in enumerate(pieces)]
    assert len(set(captions)) > 0.9 * len(captions)
    assert len({describe(pieces[0], seed) for seed in range(100)}) > 80
    counts = [check(caption, piece) for caption, piece in zip(captions, pieces, strict=True)]
    assert 3 < np.mean(counts) < 7
    keys = [bool(re.search("major|minor", caption)) for caption in captions]
    tempi = [bool(re.search(r"\d ?bpm", caption, re.IGNORECASE)) for caption in captions]
    assert 0.75 < np.mean(keys) < 0.97 and 0.75 < np.mean(tempi) < 0.95
    for root in range(12):
        names = {name for name, value in ROOT_NAMES.items() if value == root}
        said = " ".join(caption for caption, piece in zip(captions, pieces, strict=True) if piece.root == root)
        spelt = {name for name in names if re.search(rf"\b{name[0]}(?:{name[1:]}|{_word(name)}) m", said)}
        assert spelt == names, f"{ROOTS[root]} goes by all its names"


def _word(name: str) -> str:
    return {"": "", "#": " sharp", "b": " flat"}[name[1:]]


# Instruments


@pytest.mark.parametrize("instrument", [*INSTRUMENTS, "bass"])
def test_every_note_is_finite_of_like_level_and_in_tune(instrument: str) -> None:
    for midi in range(LOWEST, 65) if instrument == "bass" else range(58, 96, 3):
        wave = play(instrument, midi, 1000, 2.0)
        assert wave.ndim == 1 and 2.0 < len(wave) / SAMPLE_RATE < 3.0 and wave.dtype == np.float32
        assert np.isfinite(wave).all() and np.abs(wave).max() < 2
        assert 0.08 < max(np.sqrt(np.mean(np.square(part))) for part in np.array_split(wave, 20)) < 0.3
        pitch, found = 440 * 2 ** ((midi - 69) / 12), strongest(wave)
        cents = 1200 * np.log2(found / pitch)
        octave = 2 ** round(cents / 1200)
        assert octave in (1, 2), (midi, cents)
        # The wheels are coarse where a bass plays; a semitone is not missed there either.
        assert abs((cents + 600) % 1200 - 600) < (40 if instrument == "bass" else 20), (midi, cents)


def strongest(wave: np.ndarray) -> float:
    """Frequency of the strongest partial, in Hz."""
    size = 8 * SAMPLE_RATE
    return float(np.argmax(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), size)))) * SAMPLE_RATE / size


def test_a_note_ends_after_its_release_and_begins_from_nothing() -> None:
    for instrument in INSTRUMENTS:
        long, short = (play(instrument, 70, 0, seconds) for seconds in (1.0, 0.5))
        assert np.array_equal(short[: SAMPLE_RATE // 2], long[: SAMPLE_RATE // 2]), "nobody knows how long it will be"
        assert abs(long[0]) < 1e-6 and np.abs(long[-20:]).max() < 1e-3
        assert np.abs(long[SAMPLE_RATE // 4 : SAMPLE_RATE // 2]).max() > 0.01


def test_steady_sound_is_a_function_of_the_time_in_the_song() -> None:
    lines = {wheel(69): 1.0, 300: 0.2}
    turn = turn_of(lines)
    spectrum = np.abs(np.fft.rfft(turn)) / (TURN / 2)
    assert {int(line): pytest.approx(spectrum[line], abs=1e-4) for line in np.flatnonzero(spectrum > 0.01)} == lines
    assert TURN % FRAME == 0
    assert np.array_equal(along(turn, 100, 3 * TURN), along(turn, 100 + TURN, 3 * TURN))
    assert np.array_equal(along(turn, 0, TURN + 500)[500:], along(turn, 500, TURN))
    early, late = play("organ", 70, 0, 1.0), play("organ", 70, 5000, 1.0)
    steady = slice(SAMPLE_RATE // 10, SAMPLE_RATE // 2)
    shifted = early[5000:][steady]
    np.testing.assert_allclose(late[steady], shifted, atol=1e-4)


def test_every_semitone_has_a_wheel_of_its_own() -> None:
    notes = range(LOWEST, HIGHEST + 1)
    assert len({wheel(midi) for midi in notes}) == len(notes)
    for midi in notes:
        cents = 1200 * np.log2(wheel(midi) * LINE_HZ / (440 * 2 ** ((midi - 69) / 12)))
        assert abs(cents) < (40 if midi < 58 else 20), midi


def test_the_pilot_is_faint_and_tells_the_samples_of_a_turn_apart() -> None:
    wave = pilot(4 * TURN)
    assert 1e-4 < np.abs(wave).max() < 5e-3
    assert np.array_equal(wave[:TURN], wave[TURN : 2 * TURN])
    frames = wave[: 2 * TURN].reshape(-1, FRAME)
    levels = np.array([np.abs(np.fft.rfft(frame * np.hanning(FRAME)))[105:130] for frame in frames])
    likeness = np.corrcoef(np.log(levels[: TURN // FRAME] + 1e-9)) - np.eye(TURN // FRAME)
    assert likeness.max() < 0.999
    assert not np.abs(np.fft.rfft(wave))[: int(9000 / LINE_HZ * 4)].max() > 0.05, "nothing below 9 kHz"


def test_instruments_and_drums_can_be_told_apart() -> None:
    sounds = [play(instrument, 70, 0, 1.0)[:SAMPLE_RATE] for instrument in INSTRUMENTS]
    likeness = np.corrcoef([np.log(np.abs(np.fft.rfft(wave)) + 1) for wave in sounds]) - np.eye(len(sounds))
    assert likeness.max() < 0.99
    strokes = [hit(drum, 0) for drum in DRUMS]
    for stroke in strokes:
        assert 0.3 < np.abs(stroke).max() <= 1 and abs(stroke[-1]) < 1e-3 and np.isfinite(stroke).all()
    centers = []
    for stroke in strokes:
        power = np.square(np.abs(np.fft.rfft(stroke, SAMPLE_RATE)))
        centers.append(float((np.arange(len(power)) * power).sum() / power.sum()))
    assert centers[0] < 120 < centers[1] < 5000 < centers[2], centers


@pytest.mark.parametrize("drum", ["kick", "snare", "hat"])
def test_a_stroke_is_about_as_loud_at_any_time(drum: str) -> None:
    strokes = [hit(drum, start)[: SAMPLE_RATE // 10] for start in range(0, TURN, 256)]
    levels = [np.sqrt(np.mean(np.square(stroke))) for stroke in strokes]
    assert max(levels) < 1.5 * min(levels)


@pytest.mark.parametrize("missing", [lambda: play("tuba", 60, 0, 1.0), lambda: hit("gong", 0)])
def test_what_there_is_not_cannot_be_played(missing: Callable[[], object]) -> None:
    with pytest.raises(KeyError):
        missing()
