"""The engine: what holds the warm model. Requests in, songs or named failures out, in the same order.

It cuts what it is given into batches that may share a pass, switches adapters between them, halves a batch that does
not fit into memory and remembers the budget, finishes the batch-mates of a request that fails, and refuses to go on
when the device itself is broken. Not thread-safe: one call at a time.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from acestep.batching import BatchItem, form_batches
from acestep.checkpoint import Checkpoint
from acestep.device import (
    best_device,
    best_dtype,
    device_name,
    dtype_name,
    is_out_of_memory,
    is_poisoned,
    parse_dtype,
    require_dtype,
)
from acestep.errors import ACEStepError, CancelledError, DeviceError, InvalidAudioError, OutOfMemoryError
from acestep.lora import Adapter
from acestep.lora_stack import AdapterStack
from acestep.making import Made, Prepared, Stopwatch, make_batch
from acestep.networks import Networks
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult, ModelInfo
from acestep.sampling.denoise import Callback
from acestep.sampling.leaving import Cancelled, Company
from acestep.source import Source, load_source
from acestep.tasks import edit_target, span_of
from acestep.tokens import RequestTokenizer, Tokens

logger = logging.getLogger(__name__)

FRAME_BUDGET = 16_384
"""Latent frames in one pass unless told otherwise: six songs of 240 s, or fifty of 30 s."""

MAX_BATCH_SIZE = 32

MAX_ADAPTERS = 8
"""Adapters held in host memory between calls; of more, the one loaded first goes."""

Outcome = GenerationResult | GenerationFailure


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
        self.adapters = AdapterStack(networks.transformer)

    @classmethod
    def load(
        cls,
        checkpoint: str | Checkpoint = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        lyric_vocab: str | None = None,
        storage_options: dict[str, Any] | None = None,
        cpu_offload: bool = False,
        torch_compile: bool = False,
        frame_budget: int = FRAME_BUDGET,
        max_batch_size: int = MAX_BATCH_SIZE,
    ) -> Engine:
        """Load a checkpoint onto a device.

        Args:
            checkpoint: "tiny", a folder, a hub id, an fsspec URL, or one already opened.
            device: None: CUDA, else Apple's GPU, else the CPU.
            dtype: of the weights; None: bfloat16 on CUDA, else float32. float8: the transformer's large layers in it,
                the rest in bfloat16.
            cpu_offload, torch_compile: see `Networks`.

        Raises:
            CheckpointError: when it cannot be found or does not fit.
            ValueError: for a device or dtype that is not there.
        """
        started = time.perf_counter()
        device = best_device(device)
        dtype = best_dtype(device) if dtype is None else parse_dtype(dtype)
        require_dtype(dtype, device)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.open(checkpoint, storage_options=storage_options, lyric_vocab=lyric_vocab)
        networks = Networks.load(checkpoint, device, dtype, cpu_offload=cpu_offload, torch_compile=torch_compile)
        name = dtype_name(dtype)
        model = ModelInfo(checkpoint.name, checkpoint.fingerprint(name), name, checkpoint.random_weights)
        logger.info("loaded %s on %s in %s, %.1f s", model.name, device, name, time.perf_counter() - started)
        if model.random_weights:
            logger.warning("checkpoint %r has random weights: what it makes is noise, not music", model.name)
        tokenizer = RequestTokenizer.from_checkpoint(checkpoint)
        return cls(networks, tokenizer, model, frame_budget=frame_budget, max_batch_size=max_batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.networks.device

    @property
    def device_name(self) -> str:
        """What that is called, for records."""
        return device_name(self.networks.device)

    def warm_up(self) -> float:
        """Make short songs and drop them, so that the first real one does not pay for start-up; returns seconds.

        One song; if the network is compiled, also batches of every kind that is compiled apart: of songs equally long
        or not, with lyrics of one length or not. Numbers of songs, frames and tokens are all different, for torch
        takes equal ones to be always equal.
        """
        started = time.perf_counter()
        same: dict[str, Any] = {"seed": 0, "num_inference_steps": 4, "guidance_interval": 0.5}
        song = GenerationRequest(prompt="warm-up", lyrics="[verse]\nla", duration=1.0, **same)
        batches = [[song]]
        if self.networks.compiled:
            song, longer = (song.model_copy(update={"duration": seconds}) for seconds in (3.1, 4.7))
            wordy = song.model_copy(update={"lyrics": "[verse]\n" + "la " * 24})
            batches = [[song], [song] * 3, [song, song, longer], [song, song, wordy], [longer, song, wordy]]
        for batch in batches:
            for outcome in self.generate(batch):
                if isinstance(outcome, GenerationFailure):
                    raise DeviceError(f"the warm-up failed: {outcome.message}")
        seconds = time.perf_counter() - started
        logger.info("warmed up in %.1f s%s", seconds, ", compiled" if self.networks.compiled else "")
        return seconds

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        tokens: Sequence[Tokens] | None = None,
        sources: Sequence[Source | None] | None = None,
        callback: Callback | None = None,
        cancelled: Cancelled | None = None,
        decode: bool = True,
    ) -> list[Outcome]:
        """Make songs; the outcome of each request stands at its place.

        Args:
            tokens: of the requests, when somebody has already made them.
            sources: of the requests that have one, when it is at hand; others are read from `request.source`.
            decode: False leaves the waveforms out: latents only.
            callback: called after each denoising step of each batch with (steps done, steps in all); an exception
                that it raises ends the call and reaches the caller.
            cancelled: asked before each batch, after each of its steps (after `callback`) and before songs of it are
                decoded; returns positions in `requests` that nobody wants any more, at once or bit by bit. A song
                named before its batch is over leaves it and becomes a failure of class "cancelled"; the others go on,
                faster. What it raises is as with `callback`.

        Raises:
            DeviceError: the device is broken; the process should end.
        """
        outcomes: list[Outcome | None] = [None] * len(requests)
        ready: dict[int, Prepared] = {}
        for position, request in enumerate(requests):
            own_tokens, source = tokens[position] if tokens else None, sources[position] if sources else None
            try:
                ready[position] = self._prepare(request, own_tokens, source)
            except Exception as error:
                outcomes[position] = self._failure(request, error)
        caller = _Caller(callback, cancelled)
        for batch in self._batches(ready):
            made = self._run({position: ready[position] for position in batch}, caller, decode)
            for position, outcome in made.items():
                outcomes[position] = outcome
        self._trim_adapters()
        return [outcome for outcome in outcomes if outcome is not None]

    def _prepare(self, request: GenerationRequest, tokens: Tokens | None, source: Source | None) -> Prepared:
        if request.seed is None:
            request = request.model_copy(update={"seed": secrets.randbits(32)})
        request = request.resolved()
        tokens = tokens if tokens is not None else self.tokenizer(request)
        target = self.tokenizer(edit_target(request)) if request.task == "edit" else None
        if source is None and request.source is not None:
            with self.networks.at_work(self.networks.codec):
                source = load_source(request.source, self.networks.codec)
        if source is not None and request.task in ("repaint", "extend"):
            span_of(request, source)  # raises before anything is computed
        if request.lora is not None and request.lora not in self.adapters.adapters:
            self.adapters.add(Adapter.load(request.lora, name=request.lora))
        return Prepared(request, tokens, source, target)

    def _trim_adapters(self) -> None:
        """Let go of the adapters held for longest, down to `MAX_ADAPTERS`."""
        for name in list(self.adapters.adapters)[: max(0, len(self.adapters.adapters) - MAX_ADAPTERS)]:
            self.adapters.unload(name)

    def _batches(self, ready: dict[int, Prepared]) -> list[list[int]]:
        def key(position: int) -> tuple:
            item = ready[position]  # A source that was handed over is not in the request, and has a start of its own.
            return (position,) if item.source is not None else item.request.batch_key()

        items = [BatchItem(position, item.num_frames, key(position)) for position, item in ready.items()]
        return form_batches(items, frame_budget=self.frame_budget, max_batch_size=self.max_batch_size)

    def _run(self, batch: dict[int, Prepared], caller: _Caller, decode: bool) -> dict[int, Outcome]:
        """One batch by positions, made in smaller ones where it does not fit or somebody in it fails."""
        company, size = Company(batch, caller.cancelled), len(batch)
        outcomes: dict[int, Outcome] = {}
        parts: list[list[int]] = []
        try:
            company.ask()
            stopwatch, first, size = Stopwatch(self.device), next(iter(batch.values())).request, len(company.members)
            self.adapters.activate({first.lora: first.lora_weight} if first.lora is not None else None)
            songs = make_batch(self.networks, batch, company, stopwatch, caller.callback, decode)
            outcomes = {
                position: self._outcome(batch[position], song, stopwatch.seconds, size)
                for position, song in songs.items()
            }
        except Exception as error:
            if caller.raised is error:
                raise
            if size == 1 or is_poisoned(error):
                outcomes = {position: self._failure(batch[position].request, error) for position in company.members}
            elif company.members:
                parts = self._smaller(batch, company.members, size, error)
        for position, message in company.left.items():
            outcomes[position] = self._failure(batch[position].request, CancelledError(message))
        if parts and self.device.type == "cuda":
            torch.cuda.empty_cache()
        for part in parts:
            outcomes |= self._run({position: batch[position] for position in part}, caller, decode)
        return outcomes

    def _smaller(self, batch: dict[int, Prepared], members: list[int], size: int, error: Exception) -> list[list[int]]:
        """How to try again after a batch that began with `size` songs failed, for those of it who are still there."""
        if not is_out_of_memory(error):
            logger.warning("a batch of %d failed (%s); trying its songs one by one", size, error)
            return [[position] for position in members]
        longest = max(item.num_frames for item in batch.values())
        self.frame_budget = max(longest, longest * size // 2)
        logger.warning("out of memory at %d songs; frame budget is now %d", size, self.frame_budget)
        middle = (len(members) + 1) // 2
        return [part for part in (members[:middle], members[middle:]) if part]

    def _outcome(self, item: Prepared, song: Made, timings: dict[str, float], size: int) -> Outcome:
        if not (torch.isfinite(song.waveform).all() and torch.isfinite(song.latents).all()):
            return self._failure(item.request, InvalidAudioError("the song is not finite (NaN or infinity)"))
        return GenerationResult(
            request=item.request,
            waveform=song.waveform,
            sample_rate=item.request.sample_rate,
            latents=song.latents,
            model=self.model,
            timings=dict(timings),
            batch_size=size,
            warnings=item.tokens.warnings,
        )

    def _failure(self, request: GenerationRequest, error: Exception) -> GenerationFailure:
        """The outcome of a request that an exception ended.

        Raises:
            DeviceError: when the exception says that the device is broken.
        """
        if is_poisoned(error):
            raise DeviceError(f"the device {self.device} is broken: {error}") from error
        if is_out_of_memory(error):
            error = OutOfMemoryError(f"{request.duration:g} s do not fit on {self.device}: {error}")
        if isinstance(error, ACEStepError):
            return GenerationFailure(request=request, error_class=error.error_class, message=str(error))
        logger.warning("request %r failed", request.id or request.prompt[:40], exc_info=error)
        return GenerationFailure(request=request, error_class="internal", message=f"{type(error).__name__}: {error}")


class _Caller:
    """What the caller wants to be asked and told; what that raises is kept apart from what the model raises."""

    def __init__(self, callback: Callback | None, cancelled: Cancelled | None):
        self.raised: Exception | None = None
        self._callback, self._cancelled = callback, cancelled
        self._unwanted: set[int] = set()

    def callback(self, done: int, total: int) -> None:
        """Tell of a step."""
        if self._callback is not None:
            with self._watched():
                self._callback(done, total)

    def cancelled(self) -> Collection[int]:
        """All positions that were ever named."""
        if self._cancelled is not None:
            with self._watched():
                self._unwanted.update(self._cancelled())
        return self._unwanted

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.raised = error
            raise
