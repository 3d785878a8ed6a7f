"""The quality gate: what passes, each planted fault just below and just above its limit, and near duplicates."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep import ACEStepPipeline
from acestep.acoustic_hash import acoustic_hash, near_duplicates, similarity
from acestep.audio import encode_audio, load_audio
from acestep.audio_format import AudioFormat
from acestep.loudness import integrated_loudness
from acestep.quality import NOTHING, QualityLimits, QualityProblem, assess

LIMITS = QualityLimits()
RATES = [44_100, 48_000]
RATE = 48_000


def sine(hz: float = 440.0, level: float = 0.5, seconds: float = 4.0, rate: int = RATE) -> np.ndarray:
    one = level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.stack([one, one]).astype(np.float32)


def noise(seed: int = 0, seconds: float = 4.0, level: float = 0.1, rate: int = RATE) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal((2, round(seconds * rate)))).astype(np.float32)


def music(seed: int = 0, seconds: float = 12.0, rate: int = RATE) -> np.ndarray:
    """Plucked notes at random moments and places between the channels, peaking at 0.3."""
    random = np.random.default_rng(seed)
    time_ = np.arange(rate) / rate
    song = np.zeros((2, round(seconds * rate) + rate))
    for start in random.integers(0, song.shape[1] - rate, round(6 * seconds)):
        hz = 55 * 2 ** (random.integers(0, 48) / 12)
        note = sum(np.sin(2 * np.pi * hz * order * time_) / order for order in range(1, 5)) * np.exp(-5 * time_)
        place = random.uniform(0.3, 0.7)
        song[:, start : start + rate] += np.stack([place * note, (1 - place) * note])
    song = song[:, :-rate]
    return (0.3 * song / np.abs(song).max()).astype(np.float32)


def checks(waveform: np.ndarray, rate: int = RATE, expected: int | None = None, **limits: float) -> set[str]:
    return {problem.check for problem in assess(waveform, rate, QualityLimits(**limits), expected).problems}


@pytest.fixture(scope="module")
def tiny() -> ACEStepPipeline:
    return ACEStepPipeline.from_pretrained("tiny")


@pytest.mark.parametrize("duration", [1, 3, 7])
def test_the_tiny_model_passes_and_no_two_seeds_are_alike(tiny: ACEStepPipeline, duration: float) -> None:
    seeds = [1, 2, 3]
    songs = [tiny(prompt="rock", duration=duration, num_inference_steps=2, seed=seed) for seed in seeds]
    found = [assess(song.waveform.numpy(), song.sample_rate, LIMITS, song.waveform.shape[1]) for song in songs]
    assert [each.problems for each in found] == [()] * len(seeds)
    assert all(each.passed for each in found)
    hashes = [each.acoustic_hash for each in found]
    assert near_duplicates(hashes, 0.9) == []


def quiet_with_a_fade(rate: int) -> np.ndarray:
    """40 s of soft music, the last 20 s of which fade by 40 dB."""
    fade = np.minimum(1, 10 ** (-(np.arange(40 * rate) / rate - 20) * 2 / 20))
    return (0.3 * np.tile(music(1, 10, rate), 4) * fade).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
def test_what_is_sound_passes(rate: int) -> None:
    quiet = quiet_with_a_fade(rate)
    for song in (sine(rate=rate), sine(seconds=1, rate=rate), noise(rate=rate), music(rate=rate), quiet):
        assert assess(song, rate, LIMITS, song.shape[1]).problems == ()


def test_a_peak_that_touches_full_scale_is_not_clipping() -> None:
    song = music()
    song /= np.abs(song).max()
    found = assess(song, RATE, LIMITS)
    assert found.measures["peak_dbfs"] == pytest.approx(0, abs=1e-5)
    assert found.measures["clipping_share"] == 0
    assert assess(sine(level=1.0), RATE, LIMITS).measures["clipping_share"] == 0


def with_silence(share: float, where: str = "between") -> np.ndarray:
    song = noise(seconds=20)
    count = round(share * song.shape[1])
    start = {"before": 0, "between": song.shape[1] // 4, "after": song.shape[1] - count}[where]
    song[:, start : start + count] *= 1e-4
    return song


def clipped(share: float) -> np.ndarray:
    """A tone of which so much is cut off flat, at 0.8 of full scale."""
    return np.clip(0.8 * sine(100) / 0.5 / np.cos(np.pi * share / 2), -0.8, 0.8).astype(np.float32)


def offset(amount: float) -> np.ndarray:
    return music() + np.float32(amount)


def one_sided(db: float) -> np.ndarray:
    song = music(seconds=4)
    song[1] = song[0] * np.float32(10 ** (-db / 20))
    return song


def as_loud_as(lufs: float) -> np.ndarray:
    song = music(seconds=4)
    return song * np.float32(10 ** ((lufs - integrated_loudness(song, RATE)) / 20))


@pytest.mark.parametrize(
    ("check", "fault", "passes", "fails"),
    [
        ("silence_share", with_silence, 0.49, 0.51),
        ("leading_silence", lambda seconds: with_silence(seconds / 20, "before"), 4.9, 5.1),
        ("trailing_silence", lambda seconds: with_silence(seconds / 20, "after"), 9.5, 10.5),
        ("clipping_share", clipped, 0.005, 0.03),
        ("dc", offset, 0.048, 0.052),
        ("dc", offset, -0.048, -0.052),
        ("imbalance_db", one_sided, 19.9, 20.1),
        ("lufs", as_loud_as, -49.9, -50.1),
        ("lufs", as_loud_as, -0.1, 0.1),
    ],
)
def test_each_fault_fails_above_its_limit_only(
    check: str, fault: Callable[[float], np.ndarray], passes: float, fails: float
) -> None:
    limits = {"max_silence_share": 0.9} if check == "trailing_silence" else {}
    if (check, passes) == ("lufs", -0.1):
        limits = {"max_clipping_share": 1.0}  # so loud is not possible without
    assert checks(fault(passes), **limits) == set()
    assert checks(fault(fails), **limits) == {check}


def test_measures_are_what_they_are_called() -> None:
    measures = assess(with_silence(0.3, "before"), RATE, LIMITS).measures
    assert measures["silence_share"] == pytest.approx(0.3)
    assert measures["leading_silence"] == pytest.approx(6)
    assert measures["trailing_silence"] == 0
    assert measures["duration"] == 20
    measures = assess(sine(level=0.5), RATE, LIMITS).measures
    assert measures["peak_dbfs"] == pytest.approx(-6.02, abs=0.01)
    assert measures["lufs"] == integrated_loudness(sine(level=0.5), RATE)
    assert measures["channel_correlation"] == pytest.approx(1)
    assert measures["imbalance_db"] == 0
    assert measures["dynamics_db"] == pytest.approx(0, abs=0.1)
    assert measures["spectral_flatness"] < 0.01
    assert assess(noise(seconds=20), RATE, LIMITS).measures["spectral_flatness"] > 0.9
    assert assess(np.stack([sine()[0], -sine()[1]]), RATE, LIMITS).measures["channel_correlation"] == pytest.approx(-1)
    assert assess(one_sided(13), RATE, LIMITS).measures["imbalance_db"] == pytest.approx(13, abs=0.001)
    assert assess(clipped(0.2), RATE, LIMITS).measures["clipping_share"] == pytest.approx(0.2, abs=0.01)


def test_samples_that_a_file_would_cut_off_are_clipping() -> None:
    assert "clipping_share" in checks(sine(level=1.5))
    assert "clipping_share" in checks(np.tanh(20 * sine(level=0.5)))  # saturated, and nowhere quite flat


def test_silence_at_an_offset_is_still_silence() -> None:
    assert checks(np.full((2, 10 * RATE), 0.3, np.float32)) >= {"silence_share", "leading_silence", "dc"}


def test_one_silent_channel_fails_and_mono_does_not() -> None:
    song = music(seconds=4)
    song[1] = 0
    assert checks(song) == {"imbalance_db"}
    song[1] = song[0]
    assert checks(song) == set()


def test_all_problems_are_told_at_once_and_in_words() -> None:
    song = with_silence(0.6, "before") + np.float32(0.1)
    song[:, -9:] = np.nan
    found = assess(song, RATE, LIMITS, song.shape[1] + 1)
    assert {problem.check for problem in found.problems} == {
        *("non_finite_samples", "length", "silence_share", "leading_silence", "dc")
    }
    assert not found.passed
    words = [str(problem) for problem in found.problems]
    assert words[:2] == ["non_finite_samples: 18 is over 0", "length: 960000 is not 960001"]
    assert "silence_share: 0.6 is over 0.5" in words
    assert str(QualityProblem("lufs", -60.0, -50.0, "under")) == "lufs: -60 is under -50"


ODD = {
    "nothing": np.zeros((2, 0), np.float32),
    "one sample": np.ones((2, 1), np.float32),
    "zeros": np.zeros((2, RATE), np.float32),
    "all NaN": np.full((2, RATE), np.nan, np.float32),
    "infinite": np.full((2, 9), -np.inf),
    "huge": np.full((2, 999), 3e38, np.float32),
    "mono": noise()[0],
    "one row": noise()[:1],
    "upright": noise().T,
    "whole numbers": np.ones((2, 9), np.int16),
    "words": np.array([["a"], ["b"]]),
    "a number": np.float32(1),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("rate", [8_000, *RATES])
def test_whatever_comes_becomes_problems_and_finite_measures(name: str, rate: int) -> None:
    found = assess(ODD[name], rate, LIMITS, 12_345)
    assert not found.passed
    assert found.measures.keys() == NOTHING.keys()
    assert all(type(value) is float and math.isfinite(value) for value in found.measures.values())
    json.dumps(found.measures, allow_nan=False)


def test_the_kind_of_what_came_is_a_problem_of_its_own() -> None:
    assert checks(noise()[0]) == {"shape"}  # and measured all the same
    assert {"shape", "length"} <= checks(noise().T)
    assert "non_finite_samples" in checks(ODD["all NaN"])
    assert "length" in checks(ODD["nothing"])
    assert "shape" not in checks(noise().astype(np.float64))


@given(
    seed=st.integers(0, 99),
    length=st.integers(1, 30_000),
    level=st.floats(-150, 100),
    rate=st.sampled_from(RATES),
    bad=st.sampled_from([0.0, np.nan, np.inf]),
)
def test_any_waveform_gives_finite_measures_that_repeat(
    seed: int, length: int, level: float, rate: int, bad: float
) -> None:
    song = np.random.default_rng(seed).standard_normal((2, length)).astype(np.float32) * np.float32(10 ** (level / 20))
    song[0, length // 2] += np.float32(bad)
    before = song.copy()
    found = assess(song, rate, LIMITS, length)
    assert all(math.isfinite(value) for value in found.measures.values())
    assert 0 <= found.measures["silence_share"] <= 1
    assert 0 <= found.measures["clipping_share"] <= 1
    assert abs(found.measures["channel_correlation"]) <= 1
    assert ("non_finite_samples" in {problem.check for problem in found.problems}) == (bad != 0)
    assert assess(song, rate, LIMITS, length) == found
    np.testing.assert_array_equal(song, before)


def test_a_long_song_is_measured_quickly() -> None:
    song = np.tile(noise(seconds=10), 24)
    assess(song[:, :RATE], RATE, LIMITS)
    taken = []
    for measure in (assess, lambda *given: integrated_loudness(*given[:2])):
        started = time.process_time()
        measure(song, RATE, LIMITS)
        taken.append(time.process_time() - started)
    assert taken[0] < 2  # 0.4 s on one core, of which the loudness is 0.36


def test_measuring_needs_no_torch() -> None:
    code = "import sys, acestep.quality; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# Near duplicates


def file_of(song: np.ndarray, **format: object) -> tuple[np.ndarray, int]:
    waveform, rate = load_audio(encode_audio(song, RATE, AudioFormat.parse(**format)))
    return waveform.numpy(), rate


@pytest.mark.parametrize(
    "song",
    [noise(3), music(3), sine(440), sine(880), noise(4, seconds=1)],
    ids=["noise", "music", "sine-440", "sine-880", "short"],
)
def test_gain_rounding_and_codecs_leave_a_song_the_same(song: np.ndarray) -> None:
    known = acoustic_hash(song, RATE)
    assert len(known) == 128
    assert known == acoustic_hash(song.copy(), RATE)
    assert similarity(known, known) == 1
    for same, rate in (
        (song * np.float32(0.1), RATE),
        (song * (1 + np.float32(1e-5) * noise(9, seconds=song.shape[1] / RATE)), RATE),
        file_of(song, format="flac"),
        file_of(song, format="mp3"),
        file_of(song, format="ogg"),
    ):
        assert similarity(known, acoustic_hash(same, rate)) > 0.98


def test_different_songs_are_far_from_the_limit() -> None:
    songs = [noise(1), noise(2), music(1), music(2), sine(440), sine(523), sine(880), noise(1, seconds=1)]
    hashes = [acoustic_hash(song, RATE) for song in songs]
    for later in range(len(hashes)):
        for earlier in range(later):
            assert similarity(hashes[earlier], hashes[later]) < 0.8, (earlier, later)


def test_a_common_fade_or_pause_does_not_make_two_songs_alike() -> None:
    fade = np.linspace(1, 0, music().shape[1], dtype=np.float32) ** 3
    pause = np.ones_like(fade)
    pause[: len(pause) // 2] = 0
    for shape in (fade, pause):
        assert similarity(*(acoustic_hash(music(seed) * shape, RATE) for seed in (1, 2))) < 0.8


def test_near_duplicates_are_pairs_of_positions() -> None:
    song, other = music(1), music(2)
    hashes = [acoustic_hash(each, RATE) for each in (song, other, song * np.float32(0.5), np.zeros_like(song))]
    assert [(a, b) for a, b, _ in near_duplicates(hashes, LIMITS.max_similarity)] == [(0, 2)]
    assert near_duplicates(["", ""], 0.98) == []
    assert near_duplicates([], 0.98) == []


@given(st.integers(0, 50), st.integers(0, 50))
def test_similarity_is_a_symmetric_share(one: int, two: int) -> None:
    a, b = (np.random.default_rng(seed).integers(-127, 128, 64).astype(np.int8).tobytes().hex() for seed in (one, two))
    assert similarity(a, b) == similarity(b, a)
    assert 0 <= similarity(a, b) <= 1
    assert (similarity(a, b) == 1) == (one == two)


def test_what_is_no_hash_is_refused() -> None:
    for text in ("00", "zz" * 64):
        with pytest.raises(ValueError):
            similarity(text, text)
