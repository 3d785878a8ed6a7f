"""`ACEStepPipeline`: the engine's friendly face, for one person at one machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, overload

import torch

from acestep.engine import Engine
from acestep.errors import GenerationError, InvalidRequestError
from acestep.original_names import translated
from acestep.problems import Problem
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from acestep.sampling.denoise import Callback
from acestep.source import Source
from acestep.task_fields import variance_of_alpha


class ACEStepPipeline:
    """Text tags and lyrics in, music out.

    pipe = ACEStepPipeline.from_pretrained("ACE-Step/ACE-Step-v1-3.5B", torch_dtype=torch.bfloat16, device="cuda")
    result = pipe(prompt="lo-fi hip-hop beat, soft piano", duration=30, num_inference_steps=27, seed=42)
    result.save("output.mp3")
    """

    def __init__(self, engine: Engine):
        self.engine = engine

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike[str] = "tiny",
        *,
        torch_dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        lyric_vocab: str | None = None,
        storage_options: dict[str, Any] | None = None,
        cpu_offload: bool = False,
        torch_compile: bool = False,
    ) -> ACEStepPipeline:
        """Load a model.

        Args:
            checkpoint: "tiny" (built in, random weights), a folder in the published layout, a hub id such as
                "ACE-Step/ACE-Step-v1-3.5B", or an fsspec URL ("s3://bucket/model").
            torch_dtype: None: bfloat16 on CUDA, float32 elsewhere.
            device: None: the best there is.
            lyric_vocab: path or URL of the lyric vocabulary, for checkpoints that do not hold it.
            storage_options: for fsspec, when `checkpoint` is a URL.
            cpu_offload: keep each network in host memory but for its own stage.
            torch_compile: compile the transformer; the first batches take minutes.

        Raises:
            CheckpointError: when the checkpoint cannot be found, reached or loaded.
            ValueError: for a device or dtype that is not there.
        """
        engine = Engine.load(
            os.fspath(checkpoint),
            device=device,
            dtype=torch_dtype,
            lyric_vocab=lyric_vocab,
            storage_options=storage_options,
            cpu_offload=cpu_offload,
            torch_compile=torch_compile,
        )
        return cls(engine)

    @overload
    def __call__(self, prompt: str, **settings: Any) -> GenerationResult: ...

    @overload
    def __call__(self, prompt: Sequence[str], **settings: Any) -> list[GenerationResult]: ...

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        source: Any = None,
        alpha: float | None = None,
        output: Literal["waveform", "latents"] = "waveform",
        callback: Callback | None = None,
        **settings: Any,
    ) -> GenerationResult | list[GenerationResult]:
        """Make one song, or one for each of several prompts.

        Args:
            prompt: tags or a sentence; a list makes a batch.
            source: for `task="repaint"`, "extend", "edit" and "audio2audio": a path, a URL, an earlier result (nothing
                is decoded in between), latents `[8, 16, T]`, or (waveform, sample rate); a list, one for each prompt.
            alpha: another way to say `variance`: 0.9 is very similar, 0.1 very different.
            output: "latents" leaves decoding out.
            callback: called after each step with (steps done, steps in all); raise in it to cancel.
            settings: fields of `GenerationRequest`, or the original's names for them. With several prompts each may be
                a list of the same length; a single `seed` then counts up from song to song, so that equal prompts do
                not make equal songs.

        Raises:
            InvalidRequestError: with every problem of every field, before anything is computed.
            GenerationError: when the model could not make a song.
        """
        settings = translated(settings)
        source = settings.pop("source", source)
        one = isinstance(prompt, str)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if alpha is not None:
            settings["variance"] = variance_of_alpha(alpha)
        given = source if isinstance(source, list) and not one else [source] * len(prompts)
        sources = [self._source(item) for item in given]
        settings["source"] = [item.address if isinstance(item, Source) else item for item in sources]
        if one:
            settings["source"] = settings["source"][0]
        spread = _spread(settings, len(prompts), one)
        requests = _parse_all([{"prompt": text} | row for text, row in zip(prompts, spread, strict=True)], one)
        outcomes = self.engine.generate(
            requests,
            sources=[item if isinstance(item, Source) else None for item in sources],
            callback=callback,
            decode=output == "waveform",
        )
        for outcome in outcomes:
            if isinstance(outcome, GenerationFailure):
                raise GenerationError(outcome.message, outcome.error_class)
        results = [outcome for outcome in outcomes if isinstance(outcome, GenerationResult)]
        return results[0] if one else results

    def _source(self, value: Any) -> Source | str | None:
        if value is None or isinstance(value, (str, os.PathLike)):
            return None if value is None else os.fspath(value)
        return Source.of(value, self.engine.networks.codec)


def _spread(settings: dict[str, Any], count: int, one: bool) -> list[dict[str, Any]]:
    """The settings of each of `count` songs."""
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in settings.items():
        if not one and isinstance(value, (list, tuple)):
            if len(value) != count:
                raise InvalidRequestError([Problem(name, value, f"give one value, or {count}: one for each prompt")])
            values = list(value)
        else:
            counts_up = name == "seed" and isinstance(value, Integral) and not isinstance(value, bool)
            values = [value + index if counts_up else value for index in range(count)]
        for row, item in zip(rows, values, strict=True):
            row[name] = item
    return rows


def _parse_all(rows: list[dict[str, Any]], one: bool) -> list[GenerationRequest]:
    requests: list[GenerationRequest] = []
    problems: list[Problem] = []
    for index, row in enumerate(rows):
        try:
            requests.append(GenerationRequest.parse(row))
        except InvalidRequestError as error:
            where = "" if one else f"[{index}]."
            problems += [Problem(where + problem.field, problem.value, problem.allowed) for problem in error.problems]
    if problems:
        raise InvalidRequestError(problems)
    return requests
