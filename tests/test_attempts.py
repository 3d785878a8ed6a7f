"""The gate, rerolls and the best of several: what is kept, what is given up, and that it depends on the seeds alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.frames import num_samples
from acestep.request import GenerationRequest, derived_seed
from acestep.result import GenerationFailure, GenerationResult, ModelInfo
from pipelines.attempts import Attempts, Outcome
from pipelines.sections import BestOfSection, QualitySection

MODEL = ModelInfo("none", "0", "float32")


def song(request: GenerationRequest, level: float = 0.5, pitch: float | None = None) -> GenerationResult:
    count = num_samples(request.duration)
    pitch = pitch or 100 + (request.seed or 0) % 4000
    tone = level * np.sin(np.arange(count) * 2 * np.pi * pitch / 44100)
    waveform: Any = np.stack([tone, tone]).astype(np.float32)
    latents: Any = None
    return GenerationResult(request=request, waveform=waveform, sample_rate=44100, latents=latents, model=MODEL)


def requests(count: int = 1, seed: int = 7) -> list[GenerationRequest]:
    return [GenerationRequest(id=f"s{n}", prompt="x", seed=seed + n, duration=2) for n in range(count)]


def attempts(rerolls: int = 2, candidates: int = 1, enabled: bool = True) -> Attempts:
    return Attempts(QualitySection(rerolls=rerolls, enabled=enabled), BestOfSection(candidates=candidates))


class Engine:
    """Counts its calls; songs with a seed in `silent` have no sound."""

    def __init__(self, silent: Callable[[GenerationRequest], bool] = lambda request: False):
        self.silent = silent
        self.calls: list[list[int | None]] = []

    def __call__(self, asked: list[GenerationRequest]) -> list[Outcome]:
        self.calls.append([request.seed for request in asked])
        return [song(request, 0.0 if self.silent(request) else 0.5) for request in asked]


def test_a_good_song_is_kept_as_it_is() -> None:
    engine = Engine()
    verdicts = attempts().make(requests(3), [None] * 3, engine)
    assert engine.calls == [[7, 8, 9]]
    for verdict in verdicts:
        assert isinstance(verdict.outcome, GenerationResult)
        assert (verdict.attempt, verdict.evidence, verdict.rejected) == (1, [], None)
        assert verdict.assessment is not None
        assert verdict.assessment.passed


def test_a_bad_song_is_made_again_with_a_derived_seed_and_only_that_one() -> None:
    engine = Engine(lambda request: request.seed == 8)
    verdicts = attempts().make(requests(3), [None] * 3, engine)
    assert engine.calls == [[7, 8, 9], [derived_seed("reroll", 8, 2)]]
    assert [verdict.attempt for verdict in verdicts] == [1, 2, 1]
    (evidence,) = verdicts[1].evidence
    assert (evidence["attempt"], evidence["seed"]) == (1, 8)
    assert any("silence" in problem for problem in evidence["problems"])
    assert isinstance(verdicts[1].outcome, GenerationResult)
    assert verdicts[1].outcome.seed == derived_seed("reroll", 8, 2)


def test_what_is_never_good_is_given_up_with_the_evidence() -> None:
    engine = Engine(lambda request: True)
    (verdict,) = attempts(rerolls=2).make(requests(1), [None], engine)
    assert isinstance(verdict.outcome, GenerationFailure)
    assert verdict.outcome.error_class == "quality"
    assert verdict.outcome.message.startswith("after 3 attempts: ")
    assert [each["attempt"] for each in verdict.evidence] == [1, 2, 3]
    assert verdict.rejected is not None
    assert len(engine.calls) == 3


@pytest.mark.parametrize(("enabled", "calls"), [(True, 3), (False, 1)])
def test_the_gate_can_be_switched_off_but_not_for_what_is_no_song(enabled: bool, calls: int) -> None:
    def make(asked: list[GenerationRequest]) -> list[Outcome]:
        made.append(len(asked))
        bad = song(asked[0])
        np.asarray(bad.waveform)[0, 3] = np.nan
        return [bad]

    made: list[int] = []
    (verdict,) = attempts(enabled=enabled).make(requests(1), [None], make)
    assert isinstance(verdict.outcome, GenerationFailure)
    assert len(made) == calls
    engine = Engine(lambda request: True)
    (verdict,) = attempts(enabled=False).make(requests(1), [None], engine)
    assert isinstance(verdict.outcome, GenerationResult)


def test_other_failures_are_not_rerolled() -> None:
    def make(asked: list[GenerationRequest]) -> list[Outcome]:
        calls.append(len(asked))
        return [GenerationFailure(request=each, error_class="out_of_memory", message="no") for each in asked]

    calls: list[int] = []
    verdicts = attempts().make(requests(2), [None] * 2, make)
    assert calls == [2]
    assert [verdict.outcome.error_class for verdict in verdicts] == ["out_of_memory"] * 2  # type: ignore[union-attr]


def test_songs_of_one_row_must_differ_and_others_need_not() -> None:
    def make(asked: list[GenerationRequest]) -> list[Outcome]:
        calls.append([each.id for each in asked])
        return [song(each, pitch=440 if len(calls) == 1 else 777) for each in asked]

    calls: list[Any] = []
    verdicts = attempts().make(requests(4), ["a", "a", "b", None], make)
    assert calls == [["s0", "s1", "s2", "s3"], ["s1"]]
    assert "near_duplicate: 1.000 like 's0' is over 0.98" in verdicts[1].evidence[0]["problems"]
    assert [verdict.attempt for verdict in verdicts] == [1, 2, 1, 1]


def test_songs_of_a_sweep_have_one_seed_and_may_sound_the_same() -> None:
    asked = [each.model_copy(update={"seed": 7, "guidance_scale": 5.0 + n}) for n, each in enumerate(requests(3))]
    verdicts = attempts().make(asked, ["a"] * 3, lambda asked: [song(each, pitch=440) for each in asked])
    assert [(verdict.attempt, verdict.outcome.request.seed) for verdict in verdicts] == [(1, 7)] * 3


def test_the_best_of_several_is_kept_and_the_others_scores_are_recorded() -> None:
    engine = Engine(lambda request: request.seed == 7)
    (verdict,) = attempts(candidates=4).make(requests(1), [None], engine)
    seeds = [7, *(derived_seed("candidate", 7, number) for number in (1, 2, 3))]
    assert engine.calls == [seeds]
    assert isinstance(verdict.outcome, GenerationResult)
    assert verdict.outcome.seed in seeds[1:]
    assert verdict.score is not None
    assert sorted([verdict.outcome.seed, *(each["seed"] for each in verdict.candidates)]) == sorted(seeds)
    scores = [each["score"] for each in verdict.candidates if each["seed"] != 7]
    assert all(score is not None and score <= verdict.score for score in scores)
    (silent,) = [each for each in verdict.candidates if each["seed"] == 7]
    assert silent["score"] is None
    assert silent["problems"]


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 3), st.sets(st.integers(0, 40)))
def test_every_request_has_a_verdict_and_the_same_calls_are_made_again(
    seed: int, candidates: int, rerolls: int, silent: set[int]
) -> None:
    def run() -> tuple[list[Any], list[Any]]:
        engine = Engine(lambda request: (request.seed or 0) % 41 in silent)
        asked = [each.model_copy(update={"duration": 1.0}) for each in requests(3, seed)]
        verdicts = attempts(rerolls, candidates).make(asked, [None] * 3, engine)
        kept = [getattr(verdict.outcome, "seed", verdict.outcome.request.seed) for verdict in verdicts]
        return engine.calls, [
            (verdict.outcome.request.id, verdict.attempt, seed) for verdict, seed in zip(verdicts, kept, strict=True)
        ]

    first = run()
    assert first == run()
    assert [id for id, _, _ in first[1]] == ["s0", "s1", "s2"]
    assert len(first[0]) <= rerolls + 1
