"""Making a batch until each of its songs is good or out of attempts: the quality gate, rerolls and the best of n.

Attempt 1 has the planned seed, attempt k one derived from it and k; candidate c of an attempt, one derived from the
attempt's and c. All of it happens within one batch, so what is made depends on the plan alone: a job that was killed
and started again makes the same attempts. Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from acestep.acoustic_hash import similarity
from acestep.frames import num_samples
from acestep.quality import Assessment, assess
from acestep.request import GenerationRequest, derived_seed
from acestep.result import GenerationFailure, GenerationResult
from pipelines.sections import BestOfSection, QualitySection

if TYPE_CHECKING:
    from acestep.scoring import Scorer

Outcome = GenerationResult | GenerationFailure
MakeBatch = Callable[[list[GenerationRequest]], Sequence[Outcome]]

_ALWAYS = ("shape", "non_finite_samples", "length")
"""Checks that no config can turn off: what fails them is no song."""


@dataclass(slots=True)
class Verdict:
    """What became of one request.

    Attributes:
        outcome: the song that is kept; or the failure.
        rejected: the last song that did not pass, where none did: the evidence for a person's ear.
        attempt: how often it was made, 1 when the first was good.
        candidates: `{seed, score, problems}` of each that was made in the last attempt and not kept.
        evidence: `{attempt, seed, problems, quality}` of each that did not pass.
    """

    outcome: Outcome
    rejected: GenerationResult | None = None
    attempt: int = 1
    assessment: Assessment | None = None
    score: float | None = None
    candidates: list[dict[str, Any]] = field(default_factory=list)
    evidence: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Candidate:
    outcome: Outcome
    seed: int
    assessment: Assessment | None = None
    problems: list[str] = field(default_factory=list)
    score: float | None = None
    scorer_error: str | None = None

    @property
    def passed(self) -> bool:
        return isinstance(self.outcome, GenerationResult) and not self.problems

    @property
    def may_be_rerolled(self) -> bool:
        return isinstance(self.outcome, GenerationResult) or self.outcome.error_class == "quality"

    def shown(self) -> dict[str, Any]:
        shown = {"seed": self.seed, "score": self.score, "problems": self.problems}
        return shown | ({"scorer_error": self.scorer_error} if self.scorer_error else {})


class Attempts:
    """Makes batches as often as their songs need.

    Raises:
        ValueError: for a scorer that there is not.
    """

    def __init__(self, quality: QualitySection, best_of: BestOfSection):
        self._quality = quality
        self._num_candidates = best_of.candidates
        self._scorer: Scorer | None = None
        if best_of.candidates > 1:
            from acestep.scoring import load_scorer

            self._scorer = load_scorer(best_of.scorer, best_of.options)

    def make(
        self, requests: Sequence[GenerationRequest], parents: Sequence[str | None], make_batch: MakeBatch
    ) -> list[Verdict]:
        """A verdict for each request, in their order.

        Args:
            parents: what row each came from, None where it is the only one: songs of a row must not sound the same.
            make_batch: the engine; outcomes in the order of its requests.
        """
        verdicts: dict[int, Verdict] = {}
        evidence: dict[int, list[dict[str, Any]]] = {position: [] for position in range(len(requests))}
        left = list(range(len(requests)))
        last = 1 + (self._quality.rerolls if self._quality.enabled else 0)
        for attempt in range(1, last + 1):
            for position, candidates in self._made(left, requests, attempt, make_batch).items():
                best = min(candidates, key=_rank)
                if best.passed:
                    self._compare(best, position, requests, parents, verdicts)
                if not best.passed and best.may_be_rerolled:
                    evidence[position] += [_evidence(attempt, each) for each in candidates if not each.passed]
                verdicts[position] = Verdict(
                    best.outcome,
                    attempt=attempt,
                    assessment=best.assessment,
                    score=best.score,
                    candidates=[each.shown() for each in candidates if each is not best],
                    evidence=evidence[position],
                )
                if best.passed or not best.may_be_rerolled:
                    left.remove(position)
                elif attempt == last:
                    verdicts[position] = _failed(requests[position], best, verdicts[position])
            if not left:
                break
        return [verdicts[position] for position in range(len(requests))]

    def _made(
        self, left: Sequence[int], requests: Sequence[GenerationRequest], attempt: int, make_batch: MakeBatch
    ) -> dict[int, list[_Candidate]]:
        seeds = {position: self._seeds(requests[position], attempt) for position in left}
        asked = [requests[place].model_copy(update={"seed": seed}) for place in left for seed in seeds[place]]
        outcomes = iter(make_batch(asked))
        return {
            position: [self._judged(requests[position], seed, next(outcomes)) for seed in seeds[position]]
            for position in left
        }

    def _seeds(self, request: GenerationRequest, attempt: int) -> list[int]:
        assert request.seed is not None, "planned requests have seeds"
        first = request.seed if attempt == 1 else derived_seed("reroll", request.seed, attempt)
        return [first, *(derived_seed("candidate", first, number) for number in range(1, self._num_candidates))]

    def _judged(self, request: GenerationRequest, seed: int, outcome: Outcome) -> _Candidate:
        candidate = _Candidate(outcome, seed)
        if isinstance(outcome, GenerationFailure):
            candidate.problems = [outcome.message]
            return candidate
        waveform = np.asarray(outcome.waveform, dtype=np.float32)
        # A source has a length of its own.
        expected = None if request.source is not None else num_samples(request.duration, outcome.sample_rate)
        found = assess(waveform, outcome.sample_rate, self._quality.limits, expected)
        candidate.assessment = found
        candidate.problems = [
            str(problem) for problem in found.problems if self._quality.enabled or problem.check in _ALWAYS
        ]
        if self._scorer is not None and candidate.passed:
            from acestep.scoring import scored

            candidate.score, candidate.scorer_error = scored(
                self._scorer, waveform, outcome.sample_rate, request, found
            )
        return candidate

    def _compare(
        self,
        best: _Candidate,
        position: int,
        requests: Sequence[GenerationRequest],
        parents: Sequence[str | None],
        verdicts: dict[int, Verdict],
    ) -> None:
        """Fail a song that sounds like one of the same row that was kept before.

        Songs of a sweep have one seed on purpose: between those, little is to differ.
        """
        parent = parents[position]
        if parent is None or best.assessment is None or not self._quality.enabled:
            return
        for other, verdict in verdicts.items():
            if other == position or parents[other] != parent or verdict.assessment is None:
                continue
            if requests[other].seed == requests[position].seed:
                continue
            if isinstance(verdict.outcome, GenerationFailure) or verdict.rejected is not None:
                continue
            alike = similarity(best.assessment.acoustic_hash, verdict.assessment.acoustic_hash)
            if alike > self._quality.limits.max_similarity:
                name = verdict.outcome.request.id
                best.problems.append(
                    f"near_duplicate: {alike:.3f} like {name!r} is over {self._quality.limits.max_similarity:g}"
                )
                return


def _rank(candidate: _Candidate) -> tuple[bool, bool, float, int]:
    """Passed before not, scored before not, high scores first, then fewest problems; the first of equals wins."""
    score = candidate.score
    return not candidate.passed, score is None, -(score or 0.0), len(candidate.problems)


def _evidence(attempt: int, candidate: _Candidate) -> dict[str, Any]:
    measures = candidate.assessment.measures if candidate.assessment else {}
    return {"attempt": attempt, "seed": candidate.seed, "problems": candidate.problems, "quality": measures}


def _failed(request: GenerationRequest, last: _Candidate, verdict: Verdict) -> Verdict:
    verdict.rejected = last.outcome if isinstance(last.outcome, GenerationResult) else None
    times = f"after {verdict.attempt} attempts: " if verdict.attempt > 1 else ""
    message = times + "; ".join(last.problems)
    verdict.outcome = GenerationFailure(request=request, error_class="quality", message=message)
    return verdict
