"""Making one batch: from prepared requests that share a pass to their songs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from acestep.codec import CHUNK_FRAMES
from acestep.conditioning import encode_condition
from acestep.device import synchronize
from acestep.networks import Networks
from acestep.request import GenerationRequest
from acestep.resample import resample
from acestep.sampling.denoise import Callback, denoise
from acestep.sampling.leaving import Company
from acestep.sampling.noise import BatchNoise
from acestep.source import Source
from acestep.tasks import edit_latents, edit_target, keep_source, span_of, start_of
from acestep.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with everything that can be known before the device is asked."""

    request: GenerationRequest
    """Resolved: nothing is left open."""
    tokens: Tokens
    source: Source | None = None
    target: Tokens | None = None
    """What an edit is to become."""

    @property
    def noise_frames(self) -> int:
        """Latent frames that noise is drawn for: the source's, where there is one."""
        return self.request.num_frames if self.source is None else self.source.num_frames

    @property
    def num_frames(self) -> int:
        """Latent frames of the song."""
        if self.source is not None and self.request.task == "extend":
            return span_of(self.request, self.source).num_frames
        return self.noise_frames


@dataclass(frozen=True, slots=True)
class Made:
    """A song as it comes from the networks."""

    latents: torch.Tensor
    """float32 `[8, 16, T]` on the CPU."""
    waveform: torch.Tensor
    """float32 `[2, W]` on the CPU; empty if it was not asked for."""


class Stopwatch:
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


def make_batch(
    networks: Networks,
    batch: Mapping[int, Prepared],
    company: Company,
    stopwatch: Stopwatch,
    callback: Callback,
    decode: bool,
) -> dict[int, Made]:
    """The songs of a batch whose members are the company; of those who stay in it to the end.

    Raises:
        CancelledError: when nobody did.
    """
    latents = sample(networks, [batch[member] for member in company.members], company, stopwatch, callback)
    songs = {member: latents[row, ..., : batch[member].num_frames] for row, member in enumerate(company.members)}
    waveforms = dict.fromkeys(songs, torch.zeros(2, 0))
    if decode:
        with stopwatch("decode"), networks.at_work(networks.codec):
            for group in decoded_together({member: song.shape[-1] for member, song in songs.items()}):
                company.ask()
                staying = [member for member in group if member in company.members]
                if staying:
                    alike = torch.stack([songs[member] for member in staying])
                    decoded = decode_songs(networks, alike, [batch[member] for member in staying])
                    waveforms |= zip(staying, decoded, strict=True)
    return {member: Made(songs[member].cpu(), waveforms[member]) for member in company.members}


def decoded_together(num_frames: Mapping[int, int]) -> Iterator[list[int]]:
    """Members by songs of one length, for the decoder attends over all of it, and no more than make a chunk."""
    alike: dict[int, list[int]] = {}
    for member, frames in num_frames.items():
        alike.setdefault(frames, []).append(member)
    for frames, members in alike.items():
        size = max(1, CHUNK_FRAMES // frames)
        yield from (members[start : start + size] for start in range(0, len(members), size))


def sample(
    networks: Networks, batch: Sequence[Prepared], company: Company, stopwatch: Stopwatch, callback: Callback
) -> torch.Tensor:
    """Latents `[B, 8, 16, T]` on the device, of the members who stay."""
    requests, sources = [item.request for item in batch], [item.source for item in batch]
    first, prompts, transformer = batch[0], networks.prompt_encoder, networks.transformer
    with networks.at_work(transformer):
        with stopwatch("condition"), networks.at_work(prompts):
            condition = encode_condition(prompts, transformer, requests, [item.tokens for item in batch])
            target = None
            if first.target is not None:
                target = encode_condition(prompts, transformer, [edit_target(first.request)], [first.target])
        with stopwatch("denoise"):
            seeds = [request.seed or 0 for request in requests]
            noise = BatchNoise(seeds, [item.noise_frames for item in batch], networks.device)
            if target is None or first.source is None:
                start = start_of(requests, sources, noise)
                return denoise(transformer, condition, requests, noise, callback, start, company)

            def after_step(done: int, total: int) -> None:  # An edit is alone: to leave is to end it.
                callback(done, total)
                company.after_step(done, total)

            return edit_latents(transformer, condition, target, first.request, first.source, noise, after_step)


def decode_songs(networks: Networks, latents: torch.Tensor, items: Sequence[Prepared]) -> list[torch.Tensor]:
    """Waveforms `[2, W]` on the CPU of songs `[B, 8, 16, T]` of one length."""
    waveforms = networks.codec.decode(latents)
    return [_finished(networks, waveform, item) for waveform, item in zip(waveforms, items, strict=True)]


def _finished(networks: Networks, waveform: torch.Tensor, item: Prepared) -> torch.Tensor:
    """The decoded song with what it keeps of its source, at the rate that was asked for."""
    codec, request, source = networks.codec, item.request, item.source
    if source is not None and request.task in ("repaint", "extend"):
        own = source.waveform
        if own is None:
            own = codec.decode(source.latents.to(waveform.device))[0]
        waveform = keep_source(waveform.cpu(), own.cpu(), span_of(request, source))
    if request.sample_rate != codec.sample_rate:
        waveform = resample(waveform, codec.sample_rate, request.sample_rate, request.resampler)
    return waveform.float().cpu()
