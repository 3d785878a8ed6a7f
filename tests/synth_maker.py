"""An engine that plays what it is asked for with the synthesiser, as a perfect model would, or spoils it if told to."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from acestep.evaluation.prompts import held_out
from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME, num_latent_frames
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult, ModelInfo
from acestep.source import Source
from acestep.synth import Piece, random_piece, render
from acestep.synth.piece import INSTRUMENTS, ROOTS

_PLAIN = re.compile(r"(.+), (\S+) (major|minor), (\d+) bpm, (no )?drums")


class SynthMaker:
    """Songs by the words of the prompt.

    Args:
        spoil: what becomes of each waveform `[2, W]` before it is handed out; may raise to fail a song.
        deaf: play some piece or other, whatever the prompt says, where there is no guidance or are few steps.
    """

    model = ModelInfo("synthesiser", "0" * 16, "float32")

    def __init__(
        self,
        spoil: Callable[[GenerationRequest, np.ndarray], np.ndarray] = lambda request, waveform: waveform,
        deaf: Callable[[GenerationRequest], bool] = lambda request: False,
    ):
        self.spoil, self.deaf = spoil, deaf
        self.calls: list[int] = []
        self._songs: list[np.ndarray] = []

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        sources: Sequence[Source | None] | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> list[GenerationResult | GenerationFailure]:
        self.calls.append(len(requests))
        outcomes: list[GenerationResult | GenerationFailure] = []
        for position, request in enumerate(requests):
            source = sources[position] if sources else None
            try:
                outcomes.append(self._result(request, self.spoil(request, self._play(request, source))))
            except RuntimeError as error:
                outcomes.append(GenerationFailure(request=request, error_class="internal", message=str(error)))
            if callback is not None:
                callback(position + 1, len(requests))
        return outcomes

    def _result(self, request: GenerationRequest, waveform: np.ndarray) -> GenerationResult:
        self._songs.append(waveform)
        # The latents are only the song's number: what a source is known by.
        latents = torch.full((8, 16, waveform.shape[1] // SAMPLES_PER_FRAME), float(len(self._songs) - 1))
        return GenerationResult(
            request=request,
            waveform=torch.from_numpy(np.array(waveform)),
            sample_rate=SAMPLE_RATE,
            latents=latents,
            model=self.model,
        )

    def _play(self, request: GenerationRequest, source: Source | None) -> np.ndarray:
        piece = self._piece(request)
        if source is None:
            song = _render(piece, request.duration)
            if request.task == "retake":
                assert request.variance is not None
                return _mixed(song, _render(_other_tune(piece), request.duration), request.variance)
            return song
        before = self._songs[int(source.latents.flatten()[0])]
        if request.task == "repaint":
            assert request.repaint_start is not None and request.repaint_end is not None
            edges = [_frame(seconds) for seconds in (request.repaint_start, request.repaint_end)]
            song = before.copy()
            song[:, edges[0] : edges[1]] = _render(_other_tune(piece), request.duration)[:, edges[0] : edges[1]]
            return song
        if request.task == "extend":
            assert request.extend_right is not None
            longer = _render(piece, request.duration + request.extend_right)
            longer[:, : before.shape[1]] = before
            return longer
        if request.task == "audio2audio":
            assert request.reference_strength is not None
            return _mixed(before, _render(piece, request.duration), 1 - request.reference_strength)
        return _render(piece, before.shape[1] / SAMPLE_RATE)

    def _piece(self, request: GenerationRequest) -> Piece:
        seed = request.seed or 0
        if self.deaf(request):
            return random_piece(seed)
        prompt = request.target_prompt or request.prompt
        known: dict[str, Piece] = {item.prompt: item.piece for item in held_out()}
        if prompt in known:
            return dataclasses.replace(known[prompt], seed=seed)
        match = _PLAIN.fullmatch(prompt)
        assert match is not None and match[1] in INSTRUMENTS, prompt
        values: dict[str, Any] = {"instrument": match[1], "root": ROOTS.index(match[2]), "mode": match[3]}
        values |= {"tempo": int(match[4]), "drums": not match[5], "seed": seed}
        return dataclasses.replace(random_piece(seed), **values)


def _render(piece: Piece, seconds: float) -> np.ndarray:
    return render(piece, num_latent_frames(seconds) * SAMPLES_PER_FRAME / SAMPLE_RATE)


def _other_tune(piece: Piece) -> Piece:
    return dataclasses.replace(piece, seed=piece.seed + 7)


def _mixed(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    size = min(first.shape[1], second.shape[1])
    return (1 - share) * first[:, :size] + share * second[:, :size]


def _frame(seconds: float) -> int:
    return num_latent_frames(seconds) * SAMPLES_PER_FRAME
