"""The engine: what holds the warm model. Requests in, songs or named failures out, in the same order.

It cuts what it is given into batches that may share a pass, halves a batch that does not fit into memory and remembers
the budget, finishes the batch-mates of a request that fails, and refuses to go on when the device itself is broken.
Not thread-safe: one call at a time.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch

from acestep.batching import BatchItem, form_batches
from acestep.checkpoint import Checkpoint
from acestep.codec import MusicCodec
from acestep.conditioning import encode_condition
from acestep.device import best_device, best_dtype, dtype_name, is_out_of_memory, is_poisoned, parse_dtype, synchronize
from acestep.errors import ACEStepError, DeviceError, InvalidAudioError, OutOfMemoryError
from acestep.loading import load_part
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.transformer import ACEStepTransformer
from acestep.models.vocoder import Vocoder
from acestep.request import GenerationRequest
from acestep.resample import resample
from acestep.result import GenerationFailure, GenerationResult, ModelInfo
from acestep.sampling.denoise import Callback, denoise
from acestep.sampling.noise import BatchNoise
from acestep.source import Source, load_source
from acestep.tasks import edit_latents, edit_target, keep_source, num_frames_of, span_of, start_of
from acestep.tokens import RequestTokenizer, Tokens

logger = logging.getLogger(__name__)

FRAME_BUDGET = 16_384
"""Latent frames in one pass unless told otherwise: six songs of 240 s, or fifty of 30 s."""

MAX_BATCH_SIZE = 32

Outcome = GenerationResult | GenerationFailure


@dataclass(frozen=True, slots=True)
class Networks:
    """The four parts, on the device."""

    prompt_encoder: PromptEncoder
    transformer: ACEStepTransformer
    codec: MusicCodec


class Engine:
    """A warm model that makes songs in batches."""

    def __init__(
        self,
        networks: Networks,
        tokenizer: RequestTokenizer,
        model: ModelInfo,
        *,
        frame_budget: int = FRAME_BUDGET,
        max_batch_size: int = MAX_BATCH_SIZE,
    ):
        self.networks = networks
        self.tokenizer = tokenizer
        self.model = model
        self.frame_budget = frame_budget
        self.max_batch_size = max_batch_size
        self.device = networks.transformer.lyric_embs.weight.device

    @classmethod
    def load(
        cls,
        checkpoint: str | Checkpoint = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        lyric_vocab: str | None = None,
        storage_options: dict[str, Any] | None = None,
        frame_budget: int = FRAME_BUDGET,
        max_batch_size: int = MAX_BATCH_SIZE,
    ) -> Engine:
        """Load a checkpoint onto a device.

        Args:
            checkpoint: "tiny", a folder, a hub id, an fsspec URL, or one already opened.
            device: None: CUDA, else Apple's GPU, else the CPU.
            dtype: of the weights; None: bfloat16 on CUDA, else float32.

        Raises:
            CheckpointError: when it cannot be found or does not fit.
            ValueError: for a device or dtype that is not there.
        """
        started = time.perf_counter()
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.open(checkpoint, storage_options=storage_options, lyric_vocab=lyric_vocab)
        device = best_device(device)
        dtype = best_dtype(device) if dtype is None else parse_dtype(dtype)
        networks = Networks(
            cast(PromptEncoder, load_part(checkpoint, "text_encoder", dtype=dtype, device=device)),
            cast(ACEStepTransformer, load_part(checkpoint, "transformer", dtype=dtype, device=device)),
            MusicCodec(
                cast(MusicAutoencoder, load_part(checkpoint, "autoencoder", dtype=dtype, device=device)),
                cast(Vocoder, load_part(checkpoint, "vocoder", dtype=dtype, device=device)),
                LogMel.from_config(checkpoint.config("vocoder")).to(device),
            ),
        )
        name = dtype_name(dtype)
        model = ModelInfo(checkpoint.name, checkpoint.fingerprint(name), name, checkpoint.random_weights)
        logger.info("loaded %s on %s in %s, %.1f s", model.name, device, name, time.perf_counter() - started)
        if model.random_weights:
            logger.warning("checkpoint %r has random weights: what it makes is noise, not music", model.name)
        return cls(
            networks,
            RequestTokenizer.from_checkpoint(checkpoint),
            model,
            frame_budget=frame_budget,
            max_batch_size=max_batch_size,
        )

    def warm_up(self) -> float:
        """Make one short song and drop it, so that the first real one does not pay for start-up; returns seconds."""
        started = time.perf_counter()
        request = GenerationRequest(prompt="warm-up", lyrics="[verse]\nla", duration=1.0, seed=0, num_inference_steps=2)
        outcome = self.generate([request])[0]
        if isinstance(outcome, GenerationFailure):
            raise DeviceError(f"the warm-up failed: {outcome.message}")
        return time.perf_counter() - started

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        tokens: Sequence[Tokens] | None = None,
        sources: Sequence[Source | None] | None = None,
        callback: Callback | None = None,
        decode: bool = True,
    ) -> list[Outcome]:
        """Make songs; the outcome of each request stands at its place.

        Args:
            tokens: of the requests, when somebody has already made them.
            sources: of the requests that have one, when it is at hand; others are read from `request.source`.
            decode: False leaves the waveforms out: latents only.
            callback: called after each denoising step of each batch with (steps done, steps in all); an exception
                that it raises ends the call and reaches the caller.

        Raises:
            DeviceError: the device is broken; the process should end.
        """
        outcomes: list[Outcome | None] = [None] * len(requests)
        ready: dict[int, _Prepared] = {}
        for position, request in enumerate(requests):
            try:
                ready[position] = self._prepare(
                    request, tokens[position] if tokens else None, sources[position] if sources else None
                )
            except ACEStepError as error:
                outcomes[position] = _failure(request, error)
        watch = _CallerWatch(callback) if callback is not None else None
        for batch in self._batches(ready):
            made = self._run([ready[position] for position in batch], watch, decode)
            for position, outcome in zip(batch, made, strict=True):
                outcomes[position] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _prepare(self, request: GenerationRequest, tokens: Tokens | None, source: Source | None) -> _Prepared:
        if request.seed is None:
            request = request.model_copy(update={"seed": secrets.randbits(32)})
        request = request.resolved()
        tokens = tokens if tokens is not None else self.tokenizer(request)
        target = self.tokenizer(edit_target(request)) if request.task == "edit" else None
        if source is None and request.source is not None:
            source = load_source(request.source, self.networks.codec)
        if source is not None and request.task in ("repaint", "extend"):
            span_of(request, source)  # raises before anything is computed
        return _Prepared(request, tokens, source, target)

    def _batches(self, ready: dict[int, _Prepared]) -> list[list[int]]:
        items = [BatchItem(position, item.num_frames, item.request.batch_key()) for position, item in ready.items()]
        return form_batches(items, frame_budget=self.frame_budget, max_batch_size=self.max_batch_size)

    def _run(self, batch: list[_Prepared], watch: _CallerWatch | None, decode: bool) -> list[Outcome]:
        """One batch, made in smaller ones where it does not fit or somebody in it fails."""
        try:
            return self._run_whole(batch, watch, decode)
        except Exception as error:
            if watch is not None and watch.raised is error:
                raise
            if is_poisoned(error):
                raise DeviceError(f"the device {self.device} is broken: {error}") from error
            if len(batch) == 1:
                request = batch[0].request
                if is_out_of_memory(error):
                    message = f"{request.duration:g} s do not fit on {self.device}: {error}"
                    return [_failure(request, OutOfMemoryError(message))]
                logger.warning("request %r failed", request.id or request.prompt[:40], exc_info=True)
                return [_failure(request, error)]
            if is_out_of_memory(error):
                longest = max(item.num_frames for item in batch)
                self.frame_budget = max(longest, longest * len(batch) // 2)
                logger.warning("out of memory at %d songs; frame budget is now %d", len(batch), self.frame_budget)
                parts = [batch[: (len(batch) + 1) // 2], batch[(len(batch) + 1) // 2 :]]
            else:
                logger.warning("a batch of %d failed (%s); trying its songs one by one", len(batch), error)
                parts = [[item] for item in batch]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return [outcome for part in parts for outcome in self._run(part, watch, decode)]

    def _run_whole(self, batch: list[_Prepared], watch: _CallerWatch | None, decode: bool) -> list[Outcome]:
        timings = _Stopwatch(self.device)
        latents = self._sample(batch, timings, watch)
        with timings("decode"):
            frames = [self._frames_made(item) for item in batch]
            songs = [latents[row : row + 1, ..., :count] for row, count in enumerate(frames)]
            waveforms = [self._decode(song, item) if decode else None for song, item in zip(songs, batch, strict=True)]
        return [
            self._outcome(item, waveform, song[0].cpu(), timings.seconds, len(batch))
            for item, waveform, song in zip(batch, waveforms, songs, strict=True)
        ]

    def _sample(self, batch: list[_Prepared], timings: _Stopwatch, watch: _CallerWatch | None) -> torch.Tensor:
        """Latents `[B, 8, 16, T]` of a batch."""
        requests, sources = [item.request for item in batch], [item.source for item in batch]
        networks = self.networks
        with timings("condition"):
            tokens = [item.tokens for item in batch]
            condition = encode_condition(networks.prompt_encoder, networks.transformer, requests, tokens)
            target = None
            if batch[0].target is not None:
                twins = [edit_target(requests[0])], [batch[0].target]
                target = encode_condition(networks.prompt_encoder, networks.transformer, *twins)
        with timings("denoise"):
            seeds = [request.seed or 0 for request in requests]
            noise = BatchNoise(seeds, [item.num_frames for item in batch], self.device)
            if target is not None and sources[0] is not None:
                return edit_latents(networks.transformer, condition, target, requests[0], sources[0], noise, watch)
            start = start_of(requests, sources, noise)
            return denoise(networks.transformer, condition, requests, noise, watch, start)

    def _frames_made(self, item: _Prepared) -> int:
        if item.source is not None and item.request.task == "extend":
            return span_of(item.request, item.source).num_frames
        return item.num_frames

    def _decode(self, latents: torch.Tensor, item: _Prepared) -> torch.Tensor:
        """One song's waveform `[2, W]` on the CPU; alone, for the decoder attends over a song's whole length."""
        codec, request, source = self.networks.codec, item.request, item.source
        waveform = codec.decode(latents)[0]
        if source is not None and request.task in ("repaint", "extend"):
            own = source.waveform
            if own is None:
                own = codec.decode(source.latents.to(latents.device))[0]
            waveform = keep_source(waveform.cpu(), own.cpu(), span_of(request, source))
        if request.sample_rate != codec.sample_rate:
            waveform = resample(waveform, codec.sample_rate, request.sample_rate)
        return waveform.float().cpu()

    def _outcome(
        self,
        item: _Prepared,
        waveform: torch.Tensor | None,
        latents: torch.Tensor,
        timings: dict[str, float],
        size: int,
    ) -> Outcome:
        made = latents if waveform is None else waveform
        if not bool(torch.isfinite(made).all()):
            return _failure(item.request, InvalidAudioError("the song is not finite (NaN or infinity)"))
        return GenerationResult(
            request=item.request,
            waveform=waveform if waveform is not None else torch.zeros(2, 0),
            sample_rate=item.request.sample_rate,
            latents=latents,
            model=self.model,
            timings=dict(timings),
            batch_size=size,
            warnings=item.tokens.warnings,
        )


@dataclass(frozen=True, slots=True)
class _Prepared:
    request: GenerationRequest
    tokens: Tokens
    source: Source | None = None
    target: Tokens | None = None
    """What an edit is to become."""

    @property
    def num_frames(self) -> int:
        return num_frames_of(self.request, self.source)


class _CallerWatch:
    """Passes steps to the caller's callback and keeps what it raises apart from what the model raises."""

    def __init__(self, callback: Callback):
        self.raised: Exception | None = None
        self._callback = callback

    def __call__(self, done: int, total: int) -> None:
        try:
            self._callback(done, total)
        except Exception as error:
            self.raised = error
            raise


class _Stopwatch:
    """Seconds by stage, with the device's queue drained at each end."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        synchronize(self._device)
        self.seconds[stage] = time.perf_counter() - started


def _failure(request: GenerationRequest, error: Exception) -> GenerationFailure:
    error_class = error.error_class if isinstance(error, ACEStepError) else "internal"
    message = str(error) if isinstance(error, ACEStepError) else f"{type(error).__name__}: {error}"
    return GenerationFailure(request=request, error_class=error_class, message=message)
