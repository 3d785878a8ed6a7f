"""Whether the tasks do to a song what their names say: repaint, extend, retake, audio2audio, edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from acestep.evaluation.checks import OTHER_SEED
from acestep.evaluation.distances import log_mel_error
from acestep.evaluation.findings import Share
from acestep.evaluation.instrument import find_instrument
from acestep.evaluation.key import GOAL, find_scale, key_share
from acestep.evaluation.prompts import HeldOut
from acestep.evaluation.songs import Studio, samples_of
from acestep.evaluation.tempo import beat_phase, find_tempo, tempo_agrees
from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, num_latent_frames
from acestep.result import GenerationResult
from acestep.source import Source
from acestep.synth import Piece
from acestep.synth.piece import INSTRUMENTS
from acestep.task_fields import NEED_SOURCE
from acestep.tasks import BLEND_SAMPLES

LEAST_CHANGE = 0.2
"""Nats of log-mel error, from which on a span counts as another one; a song and another differ by about 1."""
LARGEST_ROUNDING = 1e-3
"""Of samples that were kept: they are decoded in another batch."""
_GOAL = 0.8
_PHASE_TOLERANCE = 0.125
"""Of a beat."""
_VARIANCES = (0.1, 0.9)
_STRENGTHS = (0.2, 0.5, 0.8)


@dataclass(frozen=True, slots=True)
class _Case:
    """A prompt's piece and the song made of it, which the tasks begin with."""

    item: HeldOut
    song: GenerationResult

    @property
    def piece(self) -> Piece:
        return self.item.piece

    @property
    def samples(self) -> np.ndarray:
        return samples_of(self.song)


_Own = Callable[[_Case], dict[str, Any]]
"""Settings of a song's own."""
_Made = tuple[_Case, np.ndarray]
"""A song, and what a task made of it `[2, W]`."""


class TaskChecks:
    """Songs of some prompts, and each task tried on all of them.

    Args:
        studio: with settings that hold `duration` in seconds.
    """

    SONGS_PER_PROMPT = 9

    def __init__(self, studio: Studio, items: Sequence[HeldOut]):
        self.studio = studio
        self._duration = float(studio.settings["duration"])
        plain = [replace(item, prompt=plain_prompt(item.piece)) for item in items]
        songs = studio.make([studio.request(item) for item in plain])
        self._cases = [
            _Case(item, song) for item, song in zip(plain, songs, strict=True) if isinstance(song, GenerationResult)
        ]

    def run(self) -> list[Share]:
        """Every task; each share is of the prompts whose song could be made."""
        return [*self.repaint(), *self.extend(), *self.retake(), *self.audio2audio(), *self.edit()]

    def repaint(self) -> list[Share]:
        """The middle half anew: the rest stays, the span changes, and goes on in the source's tempo, beat and key."""
        begin, end = self._duration / 4, self._duration * 3 / 4
        made = self._made("repaint", repaint_start=begin, repaint_end=end)
        first, last = _sample(begin), _sample(end)

        def kept(case: _Case, samples: np.ndarray) -> bool:
            before, after = slice(0, first - BLEND_SAMPLES), slice(last + BLEND_SAMPLES, None)
            return all(_equal(samples[:, part], case.samples[:, part]) for part in (before, after))

        def changed(case: _Case, samples: np.ndarray) -> bool:
            return log_mel_error(samples[:, first:last], case.samples[:, first:last]) >= LEAST_CHANGE

        return [
            self._share("repaint keeps the rest", made, kept, 1.0),
            self._share("repaint changes its span", made, changed, _GOAL),
            *self._goes_on("repaint", made, first, last),
        ]

    def extend(self) -> list[Share]:
        """Half as long again on the right: the source stays, and what is new goes on in its tempo, beat and key."""
        made = self._made("extend", extend_right=self._duration / 2)

        def kept(case: _Case, samples: np.ndarray) -> bool:
            size = case.samples.shape[1] - BLEND_SAMPLES
            return _equal(samples[:, :size], case.samples[:, :size])

        edge = _sample(self._duration)
        return [self._share("extend keeps the source", made, kept, 1.0), *self._goes_on("extend", made, edge, None)]

    def retake(self) -> list[Share]:
        """A variation at small variance is closer to the song than one at large variance."""
        near, far = (self._distances("retake", variance=variance) for variance in _VARIANCES)
        good = sum(small < large for small, large in zip(near, far, strict=True))
        return [Share("retake: small variance is closer", good, len(near), _GOAL)]

    def audio2audio(self) -> list[Share]:
        """The stronger the reference, the closer to it, under a prompt for another instrument."""
        columns = [
            self._distances("audio2audio", lambda case: {"prompt": plain_prompt(_other(case.piece))}, **changes)
            for changes in [{"reference_strength": strength} for strength in _STRENGTHS]
        ]
        good = sum(weak > middle > strong for weak, middle, strong in zip(*columns, strict=True))
        return [Share("audio2audio: stronger is closer", good, len(columns[0]), _GOAL)]

    def edit(self) -> list[Share]:
        """Another instrument in the words: it is heard, and tempo and key stay."""
        made = self._made("edit", lambda case: {"target_prompt": plain_prompt(_other(case.piece))})

        def follows(case: _Case, samples: np.ndarray) -> bool:
            return find_instrument(samples) == _other(case.piece).instrument

        return [
            self._share("edit follows the instrument", made, follows, _GOAL),
            self._share("edit keeps the tempo", made, _same_tempo),
            self._share("edit keeps the key", made, _same_scale),
        ]

    def _made(self, task: str, own: _Own = lambda case: {}, **changes: Any) -> list[_Made]:
        """The task done to every song; what could not be made is silence."""
        shift = 0 if task in ("retake", "edit") else OTHER_SEED
        requests, sources = [], []
        for case in self._cases:
            values = {"task": task, "seed": case.item.generation_seed + shift, **changes, **own(case)}
            if task in NEED_SOURCE:
                sources.append(Source.of_latents(case.song.latents))
                values["source"] = sources[-1].address
            requests.append(self.studio.request(case.item, **values))
        outcomes = self.studio.make(requests, sources or None)
        silence = np.zeros((2, _sample(2 * self._duration)), np.float32)
        return [
            (case, samples_of(outcome) if isinstance(outcome, GenerationResult) else silence)
            for case, outcome in zip(self._cases, outcomes, strict=True)
        ]

    def _distances(self, task: str, own: _Own = lambda case: {}, **changes: Any) -> list[float]:
        """The log-mel error of each song against what the task makes of it."""
        return [log_mel_error(samples, case.samples) for case, samples in self._made(task, own, **changes)]

    def _goes_on(self, task: str, made: Sequence[_Made], first: int, last: int | None) -> list[Share]:
        """Whether the new samples match the source they were made beside."""
        spans = [(case, samples[:, first:last]) for case, samples in made]

        def on_the_beat(case: _Case, span: np.ndarray) -> bool:
            tempo = case.piece.tempo
            moved = beat_phase(span, tempo) + first / SAMPLE_RATE * tempo / 60
            apart = (moved - beat_phase(case.samples, tempo)) % 1
            return min(apart, 1 - apart) <= _PHASE_TOLERANCE

        return [
            self._share(f"{task} keeps the tempo", spans, _same_tempo, _GOAL),
            self._share(f"{task} keeps the key", spans, _same_scale, _GOAL),
            self._share(f"{task} stays on the beat", spans, on_the_beat),
        ]

    def _share(
        self,
        name: str,
        made: Sequence[_Made],
        good: Callable[[_Case, np.ndarray], bool],
        goal: float | None = None,
    ) -> Share:
        return Share(name, sum(bool(good(case, samples)) for case, samples in made), len(made), goal)


def plain_prompt(piece: Piece) -> str:
    """A prompt that says what is judged and whether there are drums."""
    return f"{piece.instrument}, {piece.key}, {piece.tempo} bpm, {'drums' if piece.drums else 'no drums'}"


def _other(piece: Piece) -> Piece:
    """The same piece on an instrument that is not like its own."""
    place = INSTRUMENTS.index(piece.instrument)
    return replace(piece, instrument=INSTRUMENTS[(place + 3) % len(INSTRUMENTS)])


def _sample(seconds: float) -> int:
    """Where a time of a request falls: on a whole latent frame."""
    return num_latent_frames(seconds) * SAMPLES_PER_FRAME


def _equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max(initial=0.0) <= LARGEST_ROUNDING)


def _same_tempo(case: _Case, samples: np.ndarray) -> bool:
    return tempo_agrees(find_tempo(samples), find_tempo(case.samples))


def _same_scale(case: _Case, samples: np.ndarray) -> bool:
    return key_share(samples, find_scale(case.samples)) >= GOAL
