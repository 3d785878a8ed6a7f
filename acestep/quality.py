"""What is wrong with a finished song, measured on its samples; needs no torch and no network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from acestep.acoustic_hash import hash_of, moments
from acestep.loudness import integrated_loudness

SILENT_DB = -120.0
"""Stands for minus infinity, which JSON does not have."""
NOTHING = {
    "duration": 0.0,
    "peak_dbfs": SILENT_DB,
    "lufs": SILENT_DB,
    "silence_share": 1.0,
    "leading_silence": 0.0,
    "trailing_silence": 0.0,
    "clipping_share": 0.0,
    "dc": 0.0,
    "imbalance_db": 0.0,
    "channel_correlation": 0.0,
    "dynamics_db": 0.0,
    "spectral_flatness": 0.0,
}
"""The measures of a song without samples: every name that `assess` measures."""

_BLOCK_S = 0.05
"""A moment of the silence checks."""
_FULL_SCALE = 0.999
"""What a limiter or a saturated output stays near."""
_LOWEST_CLIPPED = 0.1
"""Flat tops below it are small steps of a quiet song, not clipping."""
_SHORTEST_RUN = 3
"""Samples; a peak that is not clipped stays at its highest level for one, rarely for two."""
_LARGEST = 1e6
"""Samples beyond it are measured as this, so that no sum of squares overflows."""
_LEAST_SOUND = 1e-6
"""Of a channel's power; what is less beside an offset is rounding."""
_AUDIBLE_HZ = (60, 8000)
"""Where the flatness is measured: above, many songs have nothing."""


class QualityLimits(BaseModel):
    """Where a song fails. Levels are measured as the model made it, before any loudness target."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    silence_dbfs: float = Field(default=-60.0, description="Level under which a moment is silent.", le=0)
    max_silence_share: float = Field(default=0.5, description="Of the song.", ge=0, le=1)
    max_leading_silence: float = Field(default=5.0, description="Seconds.", ge=0)
    max_trailing_silence: float = Field(default=10.0, description="Seconds.", ge=0)
    max_clipping_share: float = Field(default=0.01, description="Share of samples at full scale.", ge=0, le=1)
    max_dc: float = Field(default=0.05, description="Mean of a channel, full scale is 1.", ge=0, le=1)
    max_imbalance_db: float = Field(default=20.0, description="Difference in level between the channels.", ge=0)
    min_lufs: float = Field(default=-50.0, description="Integrated loudness, as the model made it.", le=0)
    max_lufs: float = Field(default=0.0, description="The same, upwards.", le=30)
    max_similarity: float = Field(default=0.98, description="To another song of the same row, 1: the same.", gt=0, le=1)


@dataclass(frozen=True, slots=True)
class QualityProblem:
    """One check that a song failed; in words: `silence_share: 0.93 is over 0.5`."""

    check: str
    value: float | str
    limit: float | str
    relation: str = "over"

    def __str__(self) -> str:
        return f"{self.check}: {_shown(self.value)} is {self.relation} {_shown(self.limit)}"


@dataclass(frozen=True, slots=True)
class Assessment:
    """What was measured on a song.

    Attributes:
        problems: every check that it failed.
        measures: finite numbers by the names of `NOTHING`; -120 stands for minus infinity dB.
        acoustic_hash: for `acestep.acoustic_hash.similarity`; empty for silence.
    """

    problems: tuple[QualityProblem, ...]
    measures: dict[str, float]
    acoustic_hash: str

    @property
    def passed(self) -> bool:
        """True without any problem."""
        return not self.problems


def assess(waveform: Any, sample_rate: int, limits: QualityLimits, expected_samples: int | None = None) -> Assessment:
    """Measure a waveform `[2, W]` and hold it against the limits: all that is wrong becomes problems, never an error.

    Samples that are not finite are measured as 0, a single channel as two, and another shape as no samples at all.

    Args:
        waveform: what `numpy.asarray` takes, nominally in -1..1.
        sample_rate: Hz.
        expected_samples: what W must be.
    """
    given = np.asarray(waveform)
    samples = _stereo(given)
    num_bad = 0
    if samples.size and not np.isfinite([samples.max(), samples.min()]).all():  # either is NaN where a sample is
        finite = np.isfinite(samples)
        num_bad = samples.size - np.count_nonzero(finite)
        samples = np.where(finite, samples, np.float32(0))
    problems = []
    if given.ndim != 2 or given.shape[0] != 2 or given.dtype.kind != "f":
        problems.append(QualityProblem("shape", f"{given.dtype} {list(given.shape)}", "float [2, W]", "not"))
    if num_bad:
        problems.append(QualityProblem("non_finite_samples", num_bad, 0))
    if expected_samples is not None and samples.shape[1] != expected_samples:
        problems.append(QualityProblem("length", samples.shape[1], expected_samples, "not"))
    elif not samples.shape[1]:
        problems.append(QualityProblem("length", 0, 1, "under"))
    measures, acoustic_hash = _measured(samples, sample_rate, limits.silence_dbfs)
    return Assessment((*problems, *_beyond(measures, limits)), measures, acoustic_hash)


def _beyond(measures: dict[str, float], limits: QualityLimits) -> list[QualityProblem]:
    """Every limit, called `max_` or `min_` and the name of a measure, that is not kept."""
    problems = []
    for name, limit in limits:
        side, _, check = name.partition("_")
        if check not in measures:  # the other settings: what silence is, how alike songs may be
            continue
        if side == "max" and measures[check] > limit:
            problems.append(QualityProblem(check, measures[check], limit))
        if side == "min" and measures[check] < limit:
            problems.append(QualityProblem(check, measures[check], limit, "under"))
    return problems


def _measured(samples: np.ndarray, sample_rate: int, silence_dbfs: float) -> tuple[dict[str, float], str]:
    """All measures of finite float32 `[2, W]`, and the acoustic hash."""
    if not samples.size:
        return dict(NOTHING), ""
    length = samples.shape[1]
    highest, lowest = samples.max(axis=1), samples.min(axis=1)
    peak = float(max(highest.max(), -lowest.min()))
    if peak > _LARGEST:
        samples = samples.clip(-_LARGEST, _LARGEST)
        highest, lowest, peak = highest.clip(-_LARGEST, _LARGEST), lowest.clip(-_LARGEST, _LARGEST), _LARGEST
    sizes, sums, squares, cross = _blocks(samples, max(1, round(_BLOCK_S * sample_rate)))
    # Without each moment's mean: an offset is a fault of its own, and no sound.
    levels = 10 * np.log10(np.maximum(squares - sums**2 / sizes, 1e-30).max(axis=0) / sizes)
    sounding = np.flatnonzero(levels >= silence_dbfs)
    first, last = (sounding[0], sounding[-1]) if len(sounding) else (len(sizes), -1)
    means, powers = sums.sum(axis=1) / length, squares.sum(axis=1) / length
    left, right = np.where(powers - means**2 > _LEAST_SOUND * powers, powers - means**2, 0)
    together = cross.sum() / length - means.prod()
    soft, loud = np.percentile(levels[sounding], (10, 95)) if len(sounding) else (0.0, 0.0)
    spectra = moments(samples, sample_rate)
    measures = {
        "duration": length / sample_rate,
        "peak_dbfs": _decibels(peak**2),
        "lufs": max(SILENT_DB, integrated_loudness(samples, sample_rate)),
        "silence_share": 1 - sizes[sounding].sum() / length,
        "leading_silence": sizes[:first].sum() / sample_rate,
        "trailing_silence": sizes[last + 1 :].sum() / sample_rate,
        "clipping_share": sum(map(_num_clipped, samples, highest, lowest)) / samples.size,
        "dc": np.abs(means).max(),
        "imbalance_db": abs(_decibels(left) - _decibels(right)),
        "channel_correlation": np.clip(together / math.sqrt(left * right), -1, 1) if left and right else 0.0,
        "dynamics_db": loud - soft,
        "spectral_flatness": _flatness(spectra, sample_rate),
    }
    assert measures.keys() == NOTHING.keys()
    return {name: float(value) for name, value in measures.items()}, hash_of(spectra, sample_rate)


def _blocks(samples: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each `size` samples and the rest: how many, sums and sums of squares `[2, n]`, sums of left times right."""
    length = samples.shape[1]
    whole = length - length % size
    sizes, sums, squares, cross = [], [], [], []
    for part, width in ((samples[:, :whole], size), (samples[:, whole:], length - whole)):
        if part.size:
            blocks = part.reshape(2, -1, width)  # a view: nothing is copied
            sizes.append(np.full(blocks.shape[1], width))
            sums.append(blocks.sum(axis=2))
            squares.append(np.einsum("cns,cns->cn", blocks, blocks))
            cross.append(np.einsum("ns,ns->n", blocks[0], blocks[1]))
    return np.concatenate(sizes), _joined(sums), _joined(squares), _joined(cross)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts, axis=-1).astype(np.float64)


def _num_clipped(channel: np.ndarray, highest: float, lowest: float) -> int:
    """Samples in runs at full scale, or at exactly the channel's own highest or lowest level."""
    count = 0
    if highest >= _LOWEST_CLIPPED:
        count += _num_in_runs(channel >= min(highest, _FULL_SCALE))
    if lowest <= -_LOWEST_CLIPPED:
        count += _num_in_runs(channel <= max(lowest, -_FULL_SCALE))
    return count


def _num_in_runs(marked: np.ndarray) -> int:
    positions = np.flatnonzero(marked)
    ends = np.flatnonzero(np.diff(positions, append=-1) != 1)
    lengths = np.diff(ends, prepend=-1)
    return int(lengths[lengths >= _SHORTEST_RUN].sum())


def _flatness(spectra: np.ndarray, sample_rate: int) -> float:
    """Geometric by arithmetic mean of the spectrum averaged over moments: 1 for white noise, 0 for a tone."""
    hz = np.arange(spectra.shape[1]) * sample_rate / (2 * (spectra.shape[1] - 1))
    mean = spectra[:, (hz >= _AUDIBLE_HZ[0]) & (hz <= _AUDIBLE_HZ[1])].mean(axis=0, dtype=np.float64)
    if not mean.size or not mean.any():
        return 0.0
    return float(np.exp(np.log(np.maximum(mean, mean.max() * 1e-12)).mean()) / mean.mean())


def _stereo(given: np.ndarray) -> np.ndarray:
    """Float32 `[2, W]` of whatever was given; without samples where that makes no sense."""
    channels = given[None] if given.ndim == 1 else given
    if channels.ndim != 2 or channels.shape[0] not in (1, 2) or channels.dtype.kind not in "fiu":
        return np.zeros((2, 0), np.float32)
    with np.errstate(over="ignore"):
        samples = channels.astype(np.float32, copy=False)
    return samples if len(samples) == 2 else np.repeat(samples, 2, axis=0)


def _decibels(power: float) -> float:
    return max(SILENT_DB, 10 * math.log10(power)) if power > 0 else SILENT_DB


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
