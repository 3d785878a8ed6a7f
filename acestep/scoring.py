"""Scorers: what judges several candidates of a song, of which the best is kept. Plug-ins by entry point.

A package offers one in the group `acestep.scorers`; `docs/quality.md` shows a whole one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

import numpy as np

from acestep.problems import nearest
from acestep.quality import Assessment, QualityLimits
from acestep.request import GenerationRequest

GROUP = "acestep.scorers"
BUILT_IN = {"clean": "acestep.scoring:Clean"}
"""Found without the package being installed; an entry point of the same name does not replace them."""


class Scorer(Protocol):
    """Judges one song. Made once for each process, with the options of the config as keyword arguments.

    What is random in it must depend on the request's seed alone: a job that was killed and started again makes the
    same choice.
    """

    name: str

    def __call__(
        self, waveform: np.ndarray, sample_rate: int, request: GenerationRequest, assessment: Assessment
    ) -> float:
        """A finite number, the higher the better.

        Args:
            waveform: float32 `[2, W]`, as the model made it; not to be changed.
            sample_rate: Hz.
            request: with prompt, lyrics and settings; nothing left open.
            assessment: what the quality gate measured; the song passed it.
        """


class Clean:
    """How far a song is from every technical fault: 0 to 1, from the gate's own measures.

    The mean of eight parts, each 0 to 1 and each with a weight that is an option (1 unless given):

    - `silence`, `clipping`, `dc`, `balance`: 1 without any of it, 0 at the gate's default limit;
    - `loudness`: 1 from -30 to -8 LUFS, falling to 0 at the gate's default limits on both sides;
    - `dynamics`: 1 when loud moments are 6 dB or more above soft ones, 0 for a steady hiss or tone;
    - `tonality`: 1 less the spectral flatness: 0 for white noise;
    - `phase`: 1 unless the channels cancel each other in mono, then down to 0.

    It has no taste and hears no music: it does not know the prompt, the words, or whether a tune is any good. It keeps
    the candidate with the fewest defects, and says nothing of two songs that have none.

    Raises:
        ValueError: for weights that are negative, not finite, or all 0.
    """

    name = "clean"

    def __init__(
        self,
        *,
        silence: float = 1,
        clipping: float = 1,
        dc: float = 1,
        balance: float = 1,
        loudness: float = 1,
        dynamics: float = 1,
        tonality: float = 1,
        phase: float = 1,
    ):
        self._weights = {
            "silence": silence,
            "clipping": clipping,
            "dc": dc,
            "balance": balance,
            "loudness": loudness,
            "dynamics": dynamics,
            "tonality": tonality,
            "phase": phase,
        }
        for part, weight in self._weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"{part}: {weight!r} is not allowed; a weight must be a number of at least 0")
        if not any(self._weights.values()):
            raise ValueError("every weight is 0; one at least must be more")

    def __call__(
        self, waveform: np.ndarray, sample_rate: int, request: GenerationRequest, assessment: Assessment
    ) -> float:
        parts = self.parts(assessment.measures)
        total = sum(self._weights.values())
        return sum(weight * parts[part] for part, weight in self._weights.items()) / total

    @staticmethod
    def parts(measures: Mapping[str, float]) -> dict[str, float]:
        """Each part by its name, 0 to 1, before any weight."""
        limits = QualityLimits()
        lufs = measures["lufs"]
        parts = {
            "silence": 1 - measures["silence_share"] / limits.max_silence_share,
            "clipping": 1 - measures["clipping_share"] / limits.max_clipping_share,
            "dc": 1 - measures["dc"] / limits.max_dc,
            "balance": 1 - measures["imbalance_db"] / limits.max_imbalance_db,
            "loudness": min((lufs - limits.min_lufs) / (-30 - limits.min_lufs), (limits.max_lufs - lufs) / 8),
            "dynamics": measures["dynamics_db"] / 6,
            "tonality": 1 - measures["spectral_flatness"],
            "phase": 1 + min(0.0, measures["channel_correlation"]),
        }
        return {part: min(1.0, max(0.0, value)) for part, value in parts.items()}


def scorer_names() -> list[str]:
    """The names of all installed scorers, in alphabetical order; none of them is imported."""
    return sorted({*BUILT_IN, *_entry_points()})


def load_scorer(name: str, options: Mapping[str, Any] | None = None) -> Scorer:
    """Make the scorer called `name`; this is where one with weights of its own loads them.

    Raises:
        ValueError: for a name that is not installed, a scorer that cannot be imported, or options that it refuses.
    """
    made = _class_of(name, options or {})
    try:
        scorer = made(**(options or {}))
    except Exception as error:
        raise ValueError(f"the scorer {name!r} cannot be made: {_said(error)}") from error
    if not callable(scorer):
        raise ValueError(f"the scorer {name!r} cannot be called; it needs a method __call__")
    return scorer


def check_scorer(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Find out early whether `load_scorer` can work, without loading any weights: the name, its import, its options.

    Raises:
        ValueError: as `load_scorer`; values that are of the right name and still wrong come to light only there.
    """
    _class_of(name, options or {})


def scored(
    scorer: Scorer, waveform: np.ndarray, sample_rate: int, request: GenerationRequest, assessment: Assessment
) -> tuple[float | None, str | None]:
    """The score and None; or None and what went wrong, for a scorer that fails must not end the song."""
    name = getattr(scorer, "name", type(scorer).__name__)
    try:
        score = float(scorer(waveform, sample_rate, request, assessment))
    except Exception as error:
        return None, f"{name}: {_said(error)}"
    return (score, None) if math.isfinite(score) else (None, f"{name}: the score {score} is not finite")


def _class_of(name: str, options: Mapping[str, Any]) -> Any:
    """What makes the scorer, known to take options of these names."""
    point = EntryPoint(name, BUILT_IN[name], GROUP) if name in BUILT_IN else _entry_points().get(name)
    if point is None:
        names = scorer_names()
        hint = nearest(name, names)
        known = f"installed: {', '.join(names)}"
        raise ValueError(f"there is no scorer {name!r}; {hint + ' ' if hint else ''}{known}")
    try:
        made = point.load()
    except Exception as error:
        raise ValueError(f"the scorer {name!r} ({point.value}) cannot be imported: {_said(error)}") from error
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # it is written in C
        return made
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise ValueError(f"the scorer {name!r} does not take these options: {error}; its options: {known}") from error
    return made


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
