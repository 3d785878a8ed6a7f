"""The measures, on music whose tempo, key and instrument are known."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.evaluation.distances import log_mel_error, stft_distance
from acestep.evaluation.instrument import FITTED, _fitted, find_instrument, fit
from acestep.evaluation.judge import Heard, judge, listen
from acestep.evaluation.key import chroma, find_scale, key_share
from acestep.evaluation.marring import marred
from acestep.evaluation.prompts import (
    HELD_OUT,
    NUM_PROMPTS,
    RESERVED_SEEDS,
    build,
    held_out,
    is_held_out,
    is_held_out_combination,
)
from acestep.evaluation.spectra import mono, power
from acestep.evaluation.tempo import beat_phase, find_tempo, tempo_agrees
from acestep.frames import SAMPLE_RATE
from acestep.synth import Piece, describe, random_piece, render
from acestep.synth.piece import INSTRUMENTS, TEMPI

NUM_PIECES = 24
FIRST_SEED = 77_000
PIECE = Piece(instrument="piano", tempo=104, root=2, mode="major", density="medium", drums=True, bass=True, seed=5)


@pytest.fixture(scope="module")
def heard() -> list[tuple[Piece, Heard]]:
    """Pieces that nothing was fitted to; every other one is as dull and noisy as a model's sound."""
    rng = np.random.default_rng(3)
    found = []
    for number in range(NUM_PIECES):
        piece = random_piece(FIRST_SEED + number)
        waveform = render(piece, 12.0)
        found.append((piece, listen(marred(waveform, rng) if number % 2 else waveform)))
    return found


def test_tempi_are_right(heard: list[tuple[Piece, Heard]]) -> None:
    wrong = [(found.tempo, piece.tempo) for piece, found in heard if not judge(found, piece).tempo]
    assert len(wrong) <= 0.05 * NUM_PIECES, wrong


def test_tones_lie_in_the_key(heard: list[tuple[Piece, Heard]]) -> None:
    shares = [judge(found, piece).key_share for piece, found in heard]
    assert np.mean(np.array(shares) >= 0.8) >= 0.95, sorted(shares)
    assert np.mean([judge(found, piece).best_key for piece, found in heard]) >= 0.95


def test_instruments_are_told_apart(heard: list[tuple[Piece, Heard]]) -> None:
    wrong = [(found.instrument, piece.instrument) for piece, found in heard if found.instrument != piece.instrument]
    assert len(wrong) <= 0.05 * NUM_PIECES, wrong


def test_music_has_no_faults(heard: list[tuple[Piece, Heard]]) -> None:
    assert [found.faults for _, found in heard if found.faults] == []


def test_another_prompt_is_not_agreed_with(heard: list[tuple[Piece, Heard]]) -> None:
    verdicts = [judge(found, piece) for (_, found), (piece, _) in zip(heard, heard[1:] + heard[:1], strict=True)]
    for measure in ("tempo", "key", "instrument"):
        assert np.mean([getattr(verdict, measure) for verdict in verdicts]) < 0.5, measure


@pytest.mark.parametrize(("found", "agrees"), [(100, True), (50, True), (200, True), (96.1, True), (208, True)])
def test_half_and_double_tempo_agree(found: float, agrees: bool) -> None:
    assert tempo_agrees(found, 100) is agrees


@pytest.mark.parametrize("found", [0, 95, 105, 75, 150, 66.7, 400, 25])
def test_other_tempi_do_not(found: float) -> None:
    assert not tempo_agrees(found, 100)


def test_no_tempo_of_the_synthesiser_passes_for_its_neighbour() -> None:
    assert not any(tempo_agrees(slow, fast) for slow, fast in itertools.pairwise(TEMPI))


def clicks(tempo: float, start: float = 0.0, seconds: float = 10.0) -> np.ndarray:
    waveform = np.zeros((2, int(seconds * SAMPLE_RATE)), np.float32)
    burst = np.random.default_rng(0).standard_normal(800) * np.exp(-np.arange(800) / 200)
    for beat in np.arange(start, seconds - 0.1, 60 / tempo):
        at = round(beat * SAMPLE_RATE)
        waveform[:, at : at + 800] += burst
    return waveform


@settings(max_examples=30)
@given(tempo=st.floats(50, 200))
def test_the_tempo_of_clicks_is_exact(tempo: float) -> None:
    assert tempo_agrees(find_tempo(clicks(tempo)), tempo, tolerance=0.01)


def test_the_phase_of_the_beat_moves_with_the_music() -> None:
    early, late = (beat_phase(clicks(120, start), 120) for start in (0.1, 0.35))
    assert (late - early) % 1 == pytest.approx(0.5, abs=0.03)


def test_the_tempo_does_not_depend_on_the_level() -> None:
    waveform = render(PIECE, 8.0)
    assert find_tempo(0.1 * waveform) == pytest.approx(find_tempo(waveform), rel=0.01)


@given(midi=st.integers(48, 90), cents=st.integers(-30, 30))
def test_a_tone_is_its_pitch_class(midi: int, cents: int) -> None:
    hertz = 440 * 2 ** ((midi + cents / 100 - 69) / 12)
    wave = sum(np.sin(2 * np.pi * n * hertz * np.arange(SAMPLE_RATE) / SAMPLE_RATE) / n for n in range(1, 8))
    shares = chroma(np.stack([wave, wave]).astype(np.float32) * 0.1)
    assert shares.sum() == pytest.approx(1)
    assert shares[midi % 12] > 0.8


def test_the_key_moves_with_the_music() -> None:
    waveform = render(PIECE, 8.0)
    assert key_share(waveform, PIECE.pitch_classes) > 0.85
    far = dataclasses.replace(PIECE, root=(PIECE.root + 6) % 12)
    assert key_share(waveform, far.pitch_classes) < 0.5
    assert set(find_scale(waveform)) == set(PIECE.pitch_classes)
    minor = dataclasses.replace(PIECE, mode="minor")
    assert set(find_scale(render(minor, 8.0))) == set(minor.pitch_classes)


def test_drums_alone_do_not_decide_the_key() -> None:
    with_drums, without = (render(dataclasses.replace(PIECE, drums=drums), 8.0) for drums in (True, False))
    assert np.abs(chroma(with_drums) - chroma(without)).sum() < 0.2


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_one_piece_on_every_instrument(instrument: str) -> None:
    assert find_instrument(render(dataclasses.replace(PIECE, instrument=instrument), 8.0)) == instrument


def test_what_was_fitted_is_there_and_whole() -> None:
    axes, centres, middle = _fitted()
    assert centres.shape == (len(INSTRUMENTS), len(INSTRUMENTS) - 1)
    assert axes.shape == (len(middle), centres.shape[1])
    apart = np.linalg.norm(centres[:, None] - centres, axis=2)[~np.eye(len(centres), dtype=bool)]
    assert apart.min() > 3, "in deviations of a class"
    assert FITTED.stat().st_size < 20_000


def test_a_fit_parts_what_can_be_parted() -> None:
    rng = np.random.default_rng(0)
    centres = 5 * rng.standard_normal((len(INSTRUMENTS), 20))
    labels = np.repeat(np.arange(len(INSTRUMENTS)), 30)
    rows = centres[labels] + rng.standard_normal((len(labels), 20))
    axes, places, middle = fit([INSTRUMENTS[label] for label in labels], rows)
    fresh = centres[labels] + rng.standard_normal((len(labels), 20))
    nearest = np.square((fresh - middle) @ axes - places[:, None]).sum(axis=2).argmin(axis=0)
    assert np.mean(nearest == labels) > 0.99


@pytest.mark.parametrize(
    ("waveform", "fault"),
    [
        (np.zeros((2, 5 * SAMPLE_RATE), np.float32), "silent"),
        (np.full((2, 5 * SAMPLE_RATE), np.nan, np.float32), "not finite"),
        (np.clip(20 * render(PIECE, 5.0), -1, 1), "clipped"),
    ],
)
def test_faults_are_named(waveform: np.ndarray, fault: str) -> None:
    found = listen(waveform)
    assert fault in found.faults
    assert np.isfinite([found.tempo, found.rms, *found.chroma]).all()


def test_silence_agrees_with_nothing() -> None:
    verdict = judge(listen(np.zeros((2, 5 * SAMPLE_RATE), np.float32)), PIECE)
    assert not (verdict.tempo or verdict.key or verdict.instrument or verdict.best_key)


def test_sound_of_any_length_can_be_listened_to() -> None:
    for size in (1, 100, 5000, SAMPLE_RATE):
        listen(np.random.default_rng(0).standard_normal((2, size)).astype(np.float32) * 0.1)


def test_distances_grow_with_the_damage() -> None:
    waveform = render(PIECE, 3.0)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(waveform.shape).astype(np.float32)
    for distance in (log_mel_error, stft_distance):
        steps = [distance(waveform + level * noise, waveform) for level in (0, 0.001, 0.01, 0.1)]
        assert steps == sorted(steps) and steps[0] == 0 < steps[1], distance
    assert log_mel_error(np.e * noise, noise) == pytest.approx(1, abs=0.01)
    assert log_mel_error(waveform[:, :-100], waveform) < 0.2
    with pytest.raises(ValueError, match="2,048"):
        log_mel_error(waveform[:, :1000], waveform)


def test_a_full_scale_sine_has_a_power_of_one() -> None:
    wave = np.sin(2 * np.pi * 100 * SAMPLE_RATE / 2048 * np.arange(20_000) / SAMPLE_RATE).astype(np.float32)
    assert power(wave)[10, 100] == pytest.approx(1, rel=1e-3)
    with pytest.raises(ValueError, match=r"\[2, W\]"):
        mono(np.zeros((3, 10)))


def test_building_the_prompts_gives_the_same_bytes() -> None:
    assert build().encode() == HELD_OUT.read_bytes()


def test_the_prompts_cover_everything() -> None:
    pieces = [item.piece for item in held_out()]
    assert len(pieces) == NUM_PROMPTS == len({item.generation_seed for item in held_out()})
    for name, values in (("instrument", 8), ("tempo", 12), ("key", 24)):
        found = [getattr(piece, name) for piece in pieces]
        assert min(found.count(value) for value in set(found)) >= NUM_PROMPTS // values
        assert len(set(found)) == values
    assert 30 <= sum(piece.drums for piece in pieces) <= 70
    assert len({piece.instrument for piece in pieces[:8]}) == 8


def test_every_prompt_says_what_is_judged() -> None:
    for item in held_out():
        assert item.piece.seed in RESERVED_SEEDS
        assert item.piece == random_piece(item.piece.seed)
        words = item.prompt.lower()
        assert item.piece.instrument in words
        assert item.piece.mode in words
        assert f"{item.piece.tempo}bpm" in words.replace(" ", "")


def test_held_out_prompts_are_known_however_they_are_written() -> None:
    for item in held_out():
        assert is_held_out(item.prompt)
        tags = item.prompt.upper().split(",")
        assert is_held_out(",".join(reversed(tags)) + " ")
        assert is_held_out(item.prompt.replace(" bpm", "BPM").replace(", ", " ,  "))
        assert not is_held_out(item.prompt + ", accordion")
        assert is_held_out_combination(dataclasses.replace(item.piece, seed=1, drums=not item.piece.drums))


def test_other_prompts_are_not_held_out() -> None:
    pieces = [random_piece(seed) for seed in range(500)]
    assert not any(is_held_out(describe(piece, piece.seed)) for piece in pieces)
    assert 0.01 < np.mean([is_held_out_combination(piece) for piece in pieces]) < 0.08


def test_the_data_files_are_part_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for path in (FITTED, HELD_OUT):
        assert f'"*{path.suffix}"' in text
