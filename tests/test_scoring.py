"""Scorers: found by name, built in or as a plug-in; options; a scorer that fails; what the built-in one prefers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep import GenerationRequest
from acestep.quality import NOTHING, Assessment, QualityLimits, assess
from acestep.scoring import BUILT_IN, Clean, check_scorer, load_scorer, scored, scorer_names
from tests.test_quality import clipped, music, noise, one_sided, sine, with_silence

RATE = 48_000
REQUEST = GenerationRequest(prompt="rock", seed=1)

PLUG_IN = """
class Bright:
    name = "bright"

    def __init__(self, boost=1.0):
        if boost < 0:
            raise ValueError("boost must not be negative")
        self.boost = boost

    def __call__(self, waveform, sample_rate, request, assessment):
        return self.boost * len(request.prompt)

class Strict:
    def __call__(self, waveform, sample_rate, request, assessment):
        raise RuntimeError("out of weights")

def infinite():
    return lambda *song: float("inf")

def nothing():
    return None
"""
POINTS = {
    "bright": "bright_scorer:Bright",
    "strict": "bright_scorer:Strict",
    "infinite": "bright_scorer:infinite",
    "nothing": "bright_scorer:nothing",
    "gone": "no_such_package:Scorer",
    "clean": "bright_scorer:Bright",
}


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with scorers, as pip would leave it behind."""
    (tmp_path / "bright_scorer.py").write_text(PLUG_IN)
    info = tmp_path / "bright_scorer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-scorer\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join(["[acestep.scorers]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))


def judged(song: np.ndarray, **options: float) -> float:
    score, error = scored(Clean(**options), song, RATE, REQUEST, assess(song, RATE, QualityLimits()))
    assert error is None
    assert score is not None
    return score


@pytest.mark.usefixtures("plug_in")
def test_a_plug_in_is_found_made_once_and_asked() -> None:
    assert {"bright", "clean"} <= set(scorer_names())
    check_scorer("bright", {"boost": 3.0})
    scorer = load_scorer("bright", {"boost": 3.0})
    song = noise()
    assert scored(scorer, song, RATE, REQUEST, assess(song, RATE, QualityLimits())) == (12.0, None)
    assert type(load_scorer("clean")) is Clean  # no package replaces it


@pytest.mark.usefixtures("plug_in")
def test_a_scorer_that_fails_leaves_no_score_and_a_reason() -> None:
    song = noise()
    found = assess(song, RATE, QualityLimits())
    assert scored(load_scorer("strict"), song, RATE, REQUEST, found) == (None, "Strict: RuntimeError: out of weights")
    score, error = scored(load_scorer("infinite"), song, RATE, REQUEST, found)
    assert score is None
    assert error is not None and error.endswith("the score inf is not finite")


@pytest.mark.usefixtures("plug_in")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("brigth", {}, "there is no scorer 'brigth'; did you mean 'bright'? installed: bright, clean, gone"),
        ("clap", {}, "there is no scorer 'clap'; "),
        ("gone", {}, "the scorer 'gone' (no_such_package:Scorer) cannot be imported: ModuleNotFoundError"),
        ("bright", {"bost": 1}, "the scorer 'bright' does not take these options: got an unexpected keyword"),
        ("bright", {"bost": 1}, "its options: boost"),
        ("bright", {"boost": -1}, "the scorer 'bright' cannot be made: ValueError: boost must not be negative"),
        ("nothing", {}, "the scorer 'nothing' cannot be called"),
        ("clean", {"silense": 1}, "its options: silence, clipping, dc,"),
        ("clean", {"silence": -1}, "silence: -1 is not allowed; a weight must be"),
        ("clean", {"silence": "much"}, "silence: 'much' is not allowed"),
        ("clean", {"dc": float("inf")}, "dc: inf is not allowed"),
    ],
)
def test_what_cannot_be_loaded_says_why(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_scorer(name, options)
    assert message in str(caught.value)


@pytest.mark.usefixtures("plug_in")
def test_checking_makes_nothing() -> None:
    check_scorer("bright", {"boost": -1})  # comes to light when it is made
    for name, options in (("brigth", {}), ("gone", {}), ("bright", {"bost": 1}), ("clean", {"silense": 1})):
        with pytest.raises(ValueError, match=name):
            check_scorer(name, options)


def test_built_in_scorers_need_no_installed_package() -> None:
    code = (
        "import importlib.metadata as m; m.entry_points = lambda **_: []\n"
        "import sys; from acestep.scoring import load_scorer, scorer_names\n"
        "print(scorer_names(), load_scorer('clean').name, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.strip() == f"{list(BUILT_IN)} clean False"


@pytest.mark.parametrize(
    "worse",
    [
        with_silence(0.3),
        clipped(0.009),
        music() + np.float32(0.04),
        one_sided(15),
        music() * np.float32(0.05),
        noise(),
        sine(),
        np.stack([music()[0], -music()[0]]),
    ],
    ids=["silence", "clipping", "dc", "balance", "loudness", "noise", "tone", "phase"],
)
def test_a_song_with_a_defect_scores_less_than_a_sound_one(worse: np.ndarray) -> None:
    assert judged(music()) > 0.95
    assert judged(worse) < judged(music()) - 0.01


def test_weights_are_options_and_need_one_above_zero() -> None:
    hiss = noise()
    others = {"silence": 0, "clipping": 0, "dc": 0, "balance": 0, "loudness": 0, "dynamics": 0, "phase": 0}
    assert judged(hiss, **others) < 0.1 < 0.5 < judged(hiss) < judged(hiss, tonality=0, dynamics=0)
    with pytest.raises(ValueError, match="every weight is 0"):
        Clean(**others, tonality=0)


@given(st.fixed_dictionaries(dict.fromkeys(NOTHING, st.floats(-1e6, 1e6))))
def test_any_measures_score_from_0_to_1_and_repeat(measures: dict[str, float]) -> None:
    found = Assessment((), measures, "")
    score = Clean()(np.zeros((2, 0), np.float32), RATE, REQUEST, found)
    assert 0 <= score <= 1
    assert score == Clean()(np.zeros((2, 0), np.float32), RATE, REQUEST, found)
