"""The verdict on one song: what was found in it, and whether that is what its prompt says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from acestep.evaluation.instrument import find_instrument
from acestep.evaluation.key import GOAL, chroma
from acestep.evaluation.tempo import find_tempo, tempo_agrees
from acestep.frames import SAMPLE_RATE
from acestep.quality import QualityLimits, assess
from acestep.synth import Piece

_FAULTS = {
    ("silence_share", "over"): "silent",
    ("lufs", "under"): "silent",
    ("clipping_share", "over"): "clipped",
    ("non_finite_samples", "over"): "not finite",
}


@dataclass(frozen=True, slots=True)
class Heard:
    """What was found in a song, whatever was asked for.

    Attributes:
        tempo: beats a minute; 0: none.
        chroma: share of each of the 12 pitch classes, 0 = C.
        instrument: one of `acestep.synth.piece.INSTRUMENTS`.
        faults: "silent", "clipped", "not finite", and other checks of the quality gate that it failed.
        rms: of all samples, full scale is 1.
    """

    tempo: float
    chroma: tuple[float, ...]
    instrument: str
    faults: tuple[str, ...]
    rms: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a song is what its prompt says.

    Attributes:
        tempo, key, instrument: whether it agrees.
        key_share: of its tones, in the scale of the wanted key.
        best_key: whether no other scale holds more of its tones; `key` alone forgives a scale one fifth away.
    """

    tempo: bool
    key: bool
    instrument: bool
    key_share: float
    best_key: bool

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def listen(waveform: np.ndarray) -> Heard:
    """Measure a waveform `[2, W]` at 44.1 kHz."""
    samples = np.asarray(waveform, dtype=np.float32)
    problems = assess(samples, SAMPLE_RATE, QualityLimits()).problems
    faults = dict.fromkeys(_FAULTS.get((problem.check, problem.relation), problem.check) for problem in problems)
    rms = float(np.sqrt(np.mean(np.square(np.nan_to_num(samples, posinf=0.0, neginf=0.0)))))
    shares = tuple(float(share) for share in chroma(samples))
    return Heard(find_tempo(samples), shares, find_instrument(samples), tuple(faults), rms)


def judge(heard: Heard, wanted: Piece) -> Verdict:
    """Hold what was heard against the piece that the prompt tells of."""
    classes = wanted.pitch_classes
    shares = [sum(heard.chroma[(note + shift) % 12] for note in classes) for shift in range(12)]
    return Verdict(
        tempo=tempo_agrees(heard.tempo, wanted.tempo),
        key=shares[0] >= GOAL,
        instrument=heard.instrument == wanted.instrument,
        key_share=shares[0],
        best_key=shares[0] > 0 and shares[0] >= max(shares) - 0.01,
    )
