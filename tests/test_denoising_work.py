"""What a denoising run computes, and how often: work that belongs to a song is not done again at every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acestep.engine import Engine
from acestep.making import decoded_together
from acestep.request import GenerationRequest
from acestep.sampling.denoise import denoise
from acestep.sampling.noise import BatchNoise

STEPS = 8


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("tiny", device="cpu")


def requests(durations: Sequence[float] = (2.0, 1.0), **settings: Any) -> list[GenerationRequest]:
    same = {"num_inference_steps": STEPS, "prompt": "pop", "lyrics": "[verse]\nla la", **settings}
    return [GenerationRequest(duration=length, seed=n, **same).resolved() for n, length in enumerate(durations)]


class HostReads(TorchDispatchMode):
    """Counts what makes a GPU wait for the host: reading a number out of a tensor, or its shape out of its content."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("guidance", ["apg", "cfg", "cfg_star"])
@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
def test_no_step_waits_for_the_host(engine: Engine, guidance: str, scheduler: str) -> None:
    songs = requests(guidance=guidance, scheduler=scheduler)
    hidden = torch.randn(4, 9, engine.networks.transformer.config.inner_dim)
    mask = torch.arange(9) < torch.tensor([9, 5, 9, 5])[:, None]
    condition = engine.networks.transformer.condition(hidden, mask)
    noise = BatchNoise([0, 1], [song.num_frames for song in songs])
    with torch.inference_mode(), HostReads() as reads:
        per_step: list[int] = []
        denoise(
            engine.networks.transformer,
            condition,
            songs,
            noise,
            lambda done, total: per_step.append(reads.found.total()),
        )
    assert len(per_step) >= STEPS
    assert per_step == [per_step[0]] * len(per_step), "what is read once belongs before the first step"


def test_what_belongs_to_a_song_is_computed_once(engine: Engine) -> None:
    transformer = engine.networks.transformer
    calls: Counter[str] = Counter()
    watched = {
        "time": transformer.timestep_embedder,
        "modulation": transformer.t_block,
        "lyrics": transformer.lyric_encoder,
        "keys": transformer.transformer_blocks[0].cross_attn.to_k,
        "values": transformer.transformer_blocks[0].cross_attn.to_v,
        "queries": transformer.transformer_blocks[0].cross_attn.to_q,
    }
    rows: list[int] = []

    def count(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            calls[name] += 1
            if name == "queries":
                rows.append(len(output))

        return hook

    hooks = [module.register_forward_hook(count(name)) for name, module in watched.items()]
    try:
        engine.generate(requests(), decode=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == {"time": 1, "modulation": 1, "lyrics": 1, "keys": 1, "values": 1, "queries": STEPS}
    # Two songs; four rows on the steps of the guidance interval, the middle half, and nowhere else.
    assert rows == [2, 2, 4, 4, 4, 4, 2, 2]


def test_songs_of_one_length_are_decoded_together(engine: Engine) -> None:
    assert list(decoded_together({3: 100, 5: 200, 7: 100, 8: 100})) == [[3, 7, 8], [5]]
    assert list(decoded_together(dict.fromkeys(range(5), 200))) == [[0, 1], [2, 3], [4]]
    assert list(decoded_together({0: 2000, 1: 2000})) == [[0], [1]]

    sizes: list[int] = []
    hook = engine.networks.codec.vocoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    try:
        together = engine.generate(requests((2.0, 1.0, 2.0)))
    finally:
        hook.remove()
    assert sizes == [4, 2]  # stereo
    for song in together:
        (alone,) = engine.generate([song.request])
        assert (song.waveform - alone.waveform).abs().max() <= 1e-4 * alone.waveform.abs().max()
