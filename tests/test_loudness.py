"""Loudness at the standard's own test signals and against its filters as a recursion; peaks; the gain of each mode."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from acestep import loudness
from acestep.errors import InvalidAudioError
from acestep.loudness import Loudness, gain_db, integrated_loudness, normalize, sample_peak, true_peak

RATES = [44_100, 48_000]


def sine(dbfs: float, seconds: float, rate: int = 48_000, hz: float = 997.0) -> np.ndarray:
    """The same tone on both sides."""
    one = 10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)
    return np.stack([one, one]).astype(np.float32)


def noise(seconds: float, seed: int = 0, rate: int = 48_000) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((2, int(seconds * rate)))).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
def test_a_full_scale_tone_in_one_channel_is_minus_3_01(rate: int) -> None:
    both = sine(0, 3, rate)
    for channel in (0, 1):
        one = np.zeros_like(both)
        one[channel] = both[channel]
        assert integrated_loudness(one, rate) == pytest.approx(-3.01, abs=0.005)
    assert integrated_loudness(both, rate) == pytest.approx(0.0, abs=0.005)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    "parts",
    [
        [(-23, 20)],
        [(-36, 10), (-23, 60), (-36, 10)],
        [(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)],
        [(-26, 20), (-20, 20.1), (-26, 20)],
    ],
)
def test_the_gates_leave_out_what_is_soft(parts: list[tuple[float, float]], rate: int) -> None:
    # The signals of EBU Tech 3341, cases 1 and 3 to 5: all of them measure -23.0, within 0.1.
    signal = np.concatenate([sine(level, seconds, rate, hz=1000) for level, seconds in parts], axis=1)
    assert integrated_loudness(signal, rate) == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize("hz", [30.0, 100.0, 997.0, 4000.0, 10_000.0])
def test_a_tone_is_as_loud_at_either_sample_rate(hz: float) -> None:
    levels = [integrated_loudness(sine(-20, 3, rate, hz), rate) for rate in RATES]
    assert levels[0] == pytest.approx(levels[1], abs=0.02)


def recursion(x: np.ndarray, b: tuple[float, ...], a: tuple[float, ...]) -> np.ndarray:
    out, x1, x2, y1, y2 = [], 0.0, 0.0, 0.0, 0.0
    for x0 in x.tolist():
        y0 = b[0] * x0 + b[1] * x1 + b[2] * x2 - a[0] * y1 - a[1] * y2
        out.append(y0)
        x1, x2, y1, y2 = x0, x1, y0, y1
    return np.array(out)


def test_the_weighting_is_the_standard_s_at_48_khz() -> None:
    signal = noise(3.0) + 0.3  # longer than a pass of the transform; with an offset, which the weighting takes out
    powers = np.zeros(signal.shape[1])
    for channel in signal:
        shelved = recursion(
            channel, (1.53512485958697, -2.69169618940638, 1.19839281085285), (-1.69065929318241, 0.73248077421585)
        )
        powers += recursion(shelved, (1.0, -2.0, 1.0), (-1.99004745483398, 0.99007225036621)) ** 2
    blocks = [powers[start : start + 19_200].mean() for start in range(0, len(powers) - 19_199, 4800)]
    assert integrated_loudness(signal, 48_000) == pytest.approx(-0.691 + 10 * math.log10(np.mean(blocks)), abs=1e-4)


def test_silence_and_what_is_nearly_silence_have_no_loudness() -> None:
    for signal in (np.zeros((2, 48_000), np.float32), sine(-80, 1)):
        assert integrated_loudness(signal, 48_000) == -math.inf
        for mode in ("off", "lufs"):
            assert normalize(signal, 48_000, mode) is signal
    assert true_peak(np.zeros((2, 9), np.float32)) == -math.inf
    assert gain_db(np.zeros((2, 9), np.float32), 48_000, "peak") == 0


@settings(max_examples=25, deadline=None)
@given(st.floats(-30, 30), st.integers(0, 5), st.sampled_from(RATES), st.floats(0.05, 3))
def test_a_gain_is_as_much_loudness_and_peak(gain: float, seed: int, rate: int, seconds: float) -> None:
    signal = noise(seconds, seed, rate)
    louder = signal * np.float32(10 ** (gain / 20))
    assert integrated_loudness(louder, rate) - integrated_loudness(signal, rate) == pytest.approx(gain, abs=1e-3)
    assert true_peak(louder) - true_peak(signal) == pytest.approx(gain, abs=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 19_199), st.sampled_from(RATES))
def test_what_is_shorter_than_a_block_is_one_block(samples: int, rate: int) -> None:
    signal = noise(0.4)[:, :samples]
    level = integrated_loudness(signal, rate)
    assert math.isfinite(level)
    assert level == integrated_loudness(torch.from_numpy(signal), rate)


def test_the_peak_between_two_samples_is_found() -> None:
    fade = np.minimum(1, np.minimum(np.arange(48_000), np.arange(48_000)[::-1]) / 2000)
    for hz, phase in ((12_000, np.pi / 4), (6000, np.pi / 8), (8000, 0.0)):
        one = 0.5 * fade * np.sin(2 * np.pi * hz * np.arange(48_000) / 48_000 + phase)
        signal = np.stack([one, 0 * one]).astype(np.float32)
        assert sample_peak(signal) < -6.2
        # Four times oversampled, a peak can still lie between: by 0.17 dB at a quarter of the rate.
        assert -6.02 - 0.17 <= true_peak(signal) <= -6.02 + 0.02


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 100))
def test_the_true_peak_is_that_of_the_signal_four_times_as_fine(seed: int, runs: int) -> None:
    # What fades out at both ends and lies below 0.8 of the band is interpolated by a transform without error.
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((2, 4096)))
    spectrum[:, int(0.7 * 2049) :] = 0
    signal = np.zeros((2, 8192))
    signal[:, 2048:6144] = np.fft.irfft(spectrum) * np.hanning(4096)
    fine = np.fft.irfft(np.fft.rfft(signal), 4 * 8192) * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loudness, "_RUNS_PER_PASS", runs)
        got = true_peak(signal.astype(np.float32))
    assert got == pytest.approx(20 * math.log10(np.abs(fine).max()), abs=0.02)


def test_a_peak_at_the_very_end_counts() -> None:
    for position in (0, 40, -1):
        signal = np.zeros((2, 100), np.float32)
        signal[1, position] = -0.5
        assert true_peak(signal) == pytest.approx(-6.02, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 5),
    level=st.floats(-40, 20),
    target=st.floats(-40, 0),
    ceiling=st.floats(-20, 0),
    rate=st.sampled_from(RATES),
)
def test_lufs_reaches_the_target_or_the_ceiling(
    seed: int, level: float, target: float, ceiling: float, rate: int
) -> None:
    signal = noise(0.5, seed, rate) * np.float32(10 ** (level / 20))
    got = normalize(signal, rate, "lufs", target_lufs=target, true_peak_dbtp=ceiling)
    loud, peak = integrated_loudness(got, rate), true_peak(got)
    assert loud < target + 0.01
    assert peak < ceiling + 0.001
    assert loud > target - 0.01 or peak > ceiling - 0.001
    assert got.dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(st.floats(-40, 20), st.floats(-20, 0))
def test_peak_brings_the_highest_sample_to_its_level(level: float, peak_dbfs: float) -> None:
    signal = noise(0.1) * np.float32(10 ** (level / 20))
    got = normalize(signal, 48_000, "peak", peak_dbfs=peak_dbfs)
    assert sample_peak(got) == pytest.approx(peak_dbfs, abs=1e-4)
    again = normalize(got, 48_000, "peak", peak_dbfs=peak_dbfs)
    np.testing.assert_allclose(again, got, rtol=1e-5)


def test_off_is_the_waveform_itself() -> None:
    signal = np.full((2, 9), np.nan, np.float32)
    assert normalize(signal, 44_100) is signal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_torch_gives_torch(dtype: torch.dtype) -> None:
    signal = torch.from_numpy(noise(1.0)).to(dtype)
    got = normalize(signal, 48_000, "lufs", target_lufs=-30.0)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == dtype
    assert integrated_loudness(got, 48_000) == pytest.approx(-30, abs=0.05)


def test_a_long_song_is_measured_quickly() -> None:
    signal = np.tile(noise(10.0), 24)
    started = time.process_time()
    gain_db(signal, 48_000, "lufs")
    assert time.process_time() - started < 2  # 0.6 s on one core


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    signal = noise(0.1)
    signal[1, 7] = bad
    for mode in ("peak", "lufs"):
        with pytest.raises(InvalidAudioError, match="not finite"):
            normalize(signal, 48_000, mode)


def test_other_shapes_and_modes_are_refused() -> None:
    for shape in ((9,), (1, 9), (9, 2), (2, 0)):
        with pytest.raises(ValueError, match=r"must be float \[2, W\]"):
            true_peak(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="unknown mode 'loud'; known: off, peak, lufs"):
        normalize(noise(0.1), 48_000, "loud")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [("mode", "loud"), ("target_lufs", 1), ("true_peak_dbtp", 0.5), ("peak_dbfs", math.nan), ("limiter", True)],
)
def test_settings_that_cannot_be_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        Loudness.model_validate({field: value})


def test_the_settings_are_the_arguments() -> None:
    settings_ = Loudness(mode="lufs", target_lufs=-20.0)
    got = normalize(noise(1.0), 48_000, **settings_.model_dump())
    assert integrated_loudness(got, 48_000) == pytest.approx(-20, abs=0.01)
    with pytest.raises(ValidationError, match="frozen"):
        settings_.mode = "off"  # type: ignore[misc]
    assert all(field.description for field in Loudness.model_fields.values())


def test_measuring_needs_no_torch() -> None:
    code = "import sys, acestep.loudness; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
