"""Loudness of a waveform by ITU-R BS.1770-4, its true peak, and the gain that brings it to a wished level.

One gain for a whole song: there is no limiter, and nothing is compressed. Needs no torch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from acestep.errors import InvalidAudioError

if TYPE_CHECKING:
    import torch

Mode = Literal["off", "peak", "lufs"]
Waveform = TypeVar("Waveform", "np.ndarray", "torch.Tensor")

OVERSAMPLING = 4
"""Of the true peak: the lowest that the standard allows."""

_STEP_S = 0.1
"""A loudness block begins every so many seconds, and lasts four times as long."""
_STEPS_PER_BLOCK = 4
_OFFSET_LUFS = -0.691
"""Makes up for the gain of the K weighting at 997 Hz."""
_ABSOLUTE_GATE_LUFS = -70.0
_RELATIVE_GATE_LU = -10.0
_MEMORY_S = _STEP_S
"""After so long the K weighting's answer to an impulse has fallen by 180 dB, below what float32 can tell."""
_STEPS_PER_PASS = 7
_REACH = 16
"""Samples to each side that an interpolated one is made of."""
_BETA = 8.0
"""Of the Kaiser window over them; passes 0.84 of the band, to 20 kHz at 48,000 Hz."""
_RUNS_PER_PASS = 2048
"""Of the interpolation: what a processor's cache holds."""


class Loudness(BaseModel):
    """How loud songs are to be: one gain for each song, or none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mode: Mode = Field(
        default="off",
        description="off: as the model made it; peak: the highest sample to peak_dbfs; lufs: as loud as target_lufs, "
        "or as near to it as true_peak_dbtp allows.",
    )
    target_lufs: float = Field(
        default=-14.0, ge=-70, le=0, description="lufs: integrated loudness (ITU-R BS.1770-4), in LUFS."
    )
    peak_dbfs: float = Field(
        default=-1.0, ge=-70, le=0, description="peak: level of the highest sample, in dB below full scale."
    )
    true_peak_dbtp: float = Field(
        default=-1.0, ge=-70, le=0, description="lufs: what the peak between samples may reach, in dBTP."
    )


def normalize(
    waveform: Waveform,
    sample_rate: int,
    mode: Mode = "off",
    *,
    target_lufs: float = -14.0,
    peak_dbfs: float = -1.0,
    true_peak_dbtp: float = -1.0,
) -> Waveform:
    """The waveform `[2, W]` made louder or softer as a whole, as the fields of `Loudness` say.

    In mode `"lufs"` the true peak never exceeds its ceiling: a song with high peaks stays softer than asked, for
    there is no limiter to take them down. Silence, and what is softer than -70 LUFS throughout, stays as it is.

    Raises:
        ValueError: for an unknown mode or another shape.
        InvalidAudioError: for samples that are not finite.
    """
    gain = gain_db(
        waveform, sample_rate, mode, target_lufs=target_lufs, peak_dbfs=peak_dbfs, true_peak_dbtp=true_peak_dbtp
    )
    return waveform if gain == 0 else waveform * 10 ** (gain / 20)


def gain_db(
    waveform: np.ndarray | torch.Tensor,
    sample_rate: int,
    mode: Mode = "off",
    *,
    target_lufs: float = -14.0,
    peak_dbfs: float = -1.0,
    true_peak_dbtp: float = -1.0,
) -> float:
    """What `normalize` would apply, in dB; 0 for silence."""
    if mode == "off":
        return 0.0
    if mode == "peak":
        level = sample_peak(waveform)
        return peak_dbfs - level if math.isfinite(level) else 0.0
    if mode != "lufs":
        raise ValueError(f"unknown mode {mode!r}; known: off, peak, lufs")
    level = integrated_loudness(waveform, sample_rate)
    return min(target_lufs - level, true_peak_dbtp - true_peak(waveform)) if math.isfinite(level) else 0.0


def integrated_loudness(waveform: np.ndarray | torch.Tensor, sample_rate: int) -> float:
    """Gated loudness of `[2, W]` in LUFS (which the standard calls LKFS); -inf for silence.

    What is shorter than a block of 400 ms is measured as one block.
    """
    samples = _samples(waveform)
    step = round(_STEP_S * sample_rate)
    steps = _STEPS_PER_BLOCK
    if samples.shape[1] < steps * step:
        step, steps = samples.shape[1], 1
    energies = _k_weighted_energies(samples, sample_rate, step)
    powers = np.convolve(energies, np.ones(steps), "valid") / (steps * step)
    powers = powers[powers > _power_of(_ABSOLUTE_GATE_LUFS)]
    if len(powers):
        powers = powers[powers > powers.mean() * 10 ** (_RELATIVE_GATE_LU / 10)]
    return _OFFSET_LUFS + 10 * math.log10(powers.mean()) if len(powers) else -math.inf


def true_peak(waveform: np.ndarray | torch.Tensor) -> float:
    """The highest level of `[2, W]` on or between its samples, in dBTP; -inf for silence."""
    samples = _samples(waveform)
    # A matrix that interpolates a run of samples is many times faster than filtering, for all its zeros.
    matrix = _interpolation()
    window = len(matrix)
    run = window - 2 * _REACH
    padded = np.pad(samples, ((0, 0), (_REACH, _REACH + -samples.shape[1] % run)))
    runs = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, ::run]
    peak = float(np.abs(samples).max())
    for first in range(0, runs.shape[1], _RUNS_PER_PASS):
        between = runs[:, first : first + _RUNS_PER_PASS].reshape(-1, window) @ matrix
        peak = max(peak, float(np.abs(between).max()))
    return _decibels(peak)


def sample_peak(waveform: np.ndarray | torch.Tensor) -> float:
    """The level of the highest sample of `[2, W]`, in dB relative to full scale; -inf for silence."""
    return _decibels(float(np.abs(_samples(waveform)).max()))


def _k_weighted_energies(samples: np.ndarray, sample_rate: int, step: int) -> np.ndarray:
    """Sums of squares over both channels behind the K weighting, of each whole `step` samples; float64."""
    memory = round(_MEMORY_S * sample_rate)
    # Short enough for a processor's cache; the usual step has small factors.
    size = _STEPS_PER_PASS * step + memory if step == memory else 2 ** math.ceil(math.log2(step + memory))
    response = _k_response(sample_rate, size)
    steps_per_pass = (size - memory) // step
    energies = []
    num_steps = samples.shape[1] // step
    for first in range(0, num_steps, steps_per_pass):
        count = min(steps_per_pass, num_steps - first)
        start = first * step
        part = samples[:, max(0, start - memory) : start + count * step]
        spectrum = np.fft.rfft(part, size)
        spectrum *= response  # in place: float32 stays float32
        weighted = np.fft.irfft(spectrum, size)[:, part.shape[1] - count * step : part.shape[1]]
        steps = weighted.reshape(2, count, step)
        energies.append(np.einsum("cns,cns->n", steps, steps))
    return np.concatenate(energies).astype(np.float64)


@lru_cache(maxsize=8)
def _k_response(sample_rate: int, size: int) -> np.ndarray:
    """The K weighting at the frequencies of a transform of `size` samples: a high shelf, then a high-pass.

    The standard gives coefficients for 48,000 Hz; these are the analog filters that they come from.
    """
    turn = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)  # a delay of one sample
    gain = 10 ** (3.999843853973347 / 20)
    shelf = _biquad(turn, sample_rate, 1681.974450955533, 0.7071752369554196, (gain, gain**0.4996667741545416, 1.0))
    high_pass_hz, quality = 38.13547087602444, 0.5003270373238773
    # The standard writes the high-pass with a numerator of 1, -2, 1, which is a little more than a gain of one.
    corner = math.tan(math.pi * high_pass_hz / 48_000)
    return shelf * _biquad(turn, sample_rate, high_pass_hz, quality, (1 + corner / quality + corner**2, 0.0, 0.0))


def _biquad(
    turn: np.ndarray, sample_rate: int, hz: float, quality: float, numerator: tuple[float, float, float]
) -> np.ndarray:
    """(p0 s^2 + p1 s / Q + p2) / (s^2 + s / Q + 1), s being relative to `hz`, by the bilinear transform."""
    above, below = 1 - turn, (1 + turn) * math.tan(math.pi * hz / sample_rate)  # s is the one over the other
    terms = np.stack([above**2, above * below / quality, below**2])
    return np.tensordot(numerator, terms, 1) / terms.sum(axis=0)


@lru_cache(maxsize=1)
def _interpolation() -> np.ndarray:
    """From a run of samples and `_REACH` more on both sides to what lies between them: `[samples, points]`, float32."""
    run = 2 * _REACH
    window = run + 2 * _REACH
    columns = []
    for phase in range(1, OVERSAMPLING):
        times = np.arange(run)[None, :] + phase / OVERSAMPLING - (np.arange(window) - _REACH)[:, None]
        within = np.sqrt(np.clip(1 - (times / _REACH) ** 2, 0, None))
        columns.append(np.where(np.abs(times) < _REACH, np.sinc(times) * np.i0(_BETA * within) / np.i0(_BETA), 0))
    return np.concatenate(columns, axis=1).astype(np.float32)


def _samples(waveform: np.ndarray | torch.Tensor) -> np.ndarray:
    """Float32 `[2, W]` on the CPU, known to be finite."""
    if not isinstance(waveform, np.ndarray):
        waveform = waveform.detach().cpu().float().numpy()
    if waveform.ndim != 2 or waveform.shape[0] != 2 or waveform.shape[1] == 0 or waveform.dtype.kind != "f":
        raise ValueError(f"a waveform must be float [2, W], not {waveform.dtype} {list(waveform.shape)}")
    samples = waveform.astype(np.float32, copy=False)
    if not np.isfinite(samples).all():
        raise InvalidAudioError("the waveform is not finite (NaN or infinity)")
    return samples


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf


def _power_of(lufs: float) -> float:
    return 10 ** ((lufs - _OFFSET_LUFS) / 10)
