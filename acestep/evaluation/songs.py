"""Making songs of held-out prompts with one engine, and judging each as it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from acestep.evaluation.judge import Heard, Verdict, judge, listen
from acestep.evaluation.prompts import HeldOut
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult, ModelInfo
from acestep.sampling.denoise import Callback
from acestep.source import Source

Outcome = GenerationResult | GenerationFailure
_NOTHING = Verdict(tempo=False, key=False, instrument=False, key_share=0.0, best_key=False)


class Maker(Protocol):
    """What is judged: `acestep.Engine`, or whatever makes songs as it does."""

    model: ModelInfo

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        sources: Sequence[Source | None] | None = None,
        callback: Callback | None = None,
    ) -> list[Outcome]:
        """The outcome of each request at its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Song:
    """One song and what was found in it.

    Attributes:
        heard: None where it could not be made.
        sha256: of its samples as float32; "" where it could not be made.
        failure: why it could not be made.
    """

    item: HeldOut
    request: GenerationRequest
    heard: Heard | None
    verdict: Verdict
    sha256: str
    failure: str | None

    def row(self) -> dict[str, Any]:
        """For a line of JSON."""
        wanted, heard = self.item.piece, self.heard
        return {
            "id": self.item.id,
            "prompt": self.item.prompt,
            "seed": self.request.seed,
            "wanted": {"tempo": wanted.tempo, "key": wanted.key, "instrument": wanted.instrument},
            "heard": heard and {"tempo": round(heard.tempo, 2), "instrument": heard.instrument},
            "chroma": heard and [round(share, 4) for share in heard.chroma],
            "rms": heard and round(heard.rms, 5),
            "faults": list(heard.faults) if heard else ["not made"],
            "agrees": self.verdict.row(),
            "sha256": self.sha256,
            "failure": self.failure,
        }


class Studio:
    """An engine and the settings that every song is made with.

    Args:
        settings: fields of `GenerationRequest` for all songs, such as duration.
        batch_size: songs handed to the engine at once.
        advance: told how many denoising steps of songs were done since it was last told.
    """

    def __init__(
        self,
        maker: Maker,
        settings: dict[str, Any],
        batch_size: int = 16,
        advance: Callable[[int], object] = lambda steps: None,
    ):
        self.maker = maker
        self.settings = settings
        self.batch_size = batch_size
        self.advance = advance

    def request(self, item: HeldOut, **changes: Any) -> GenerationRequest:
        """What asks for the song of a prompt.

        Raises:
            InvalidRequestError: for settings that are out of range.
        """
        own = {"id": item.id, "prompt": item.prompt, "seed": item.generation_seed}
        return GenerationRequest.parse(own | self.settings | changes)

    def make(self, requests: Sequence[GenerationRequest], sources: Sequence[Source] | None = None) -> Iterator[Outcome]:
        """The outcomes in the order of the requests, made a batch at a time; one at a time where they have sources."""
        size = 1 if sources else self.batch_size
        for begin in range(0, len(requests), size):
            batch = requests[begin : begin + size]
            meter = _Meter(sum(request.num_inference_steps for request in batch), self.advance)
            beside = sources[begin : begin + size] if sources else None
            yield from self.maker.generate(batch, sources=beside, callback=meter)
            meter(1, 1)

    def songs(
        self,
        items: Sequence[HeldOut],
        on_song: Callable[[Song, Outcome], object] = lambda song, outcome: None,
        **changes: Any,
    ) -> list[Song]:
        """Make and judge the song of each prompt; `on_song` gets each with its sound, which is not kept."""
        requests = [self.request(item, **changes) for item in items]
        songs = []
        for item, request, outcome in zip(items, requests, self.make(requests), strict=True):
            songs.append(judged(item, request, outcome))
            on_song(songs[-1], outcome)
        return songs


def judged(item: HeldOut, request: GenerationRequest, outcome: Outcome) -> Song:
    """The song that an outcome is; nothing agrees with its prompt where it could not be made."""
    if isinstance(outcome, GenerationFailure):
        return Song(item=item, request=request, heard=None, verdict=_NOTHING, sha256="", failure=outcome.message)
    samples = samples_of(outcome)
    heard = listen(samples)
    digest = hashlib.sha256(samples.tobytes()).hexdigest()
    return Song(item=item, request=request, heard=heard, verdict=judge(heard, item.piece), sha256=digest, failure=None)


def samples_of(result: GenerationResult) -> np.ndarray:
    """The waveform as float32 `[2, W]`."""
    return np.ascontiguousarray(result.waveform.numpy(force=True), dtype=np.float32)


class _Meter:
    """Turns an engine's reports, which begin anew with every batch it forms, into steps that only rise."""

    def __init__(self, total: int, advance: Callable[[int], object]):
        self._total, self._advance = total, advance
        self._told = 0

    def __call__(self, done: int, total: int) -> None:
        reached = self._total * done // total
        if reached > self._told:
            self._advance(reached - self._told)
            self._told = reached
