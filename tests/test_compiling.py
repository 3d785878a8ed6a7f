"""Compiled blocks: after the warm-up nothing is compiled again, whatever comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from acestep.compiling import compile_blocks
from acestep.engine import Engine
from acestep.request import GenerationRequest
from acestep.result import GenerationResult

LYRICS = "[verse]\nla la la\n" * 3


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Compiled by a backend that runs what it is given: what is compiled when is up to what comes before it."""
    torch._dynamo.reset()
    engine = Engine.load("tiny", device="cpu")
    compile_blocks(engine.networks.transformer.transformer_blocks, backend="eager")
    engine.networks.compiled = True
    engine.warm_up()
    return engine


def request(duration: float, **settings: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "pop", "duration": duration, "seed": 1, "num_inference_steps": 4, **settings})


@pytest.mark.parametrize(
    "batch",
    [
        [request(3.0)],
        [request(1.3, lyrics=LYRICS)],
        [request(2.0)] * 3,
        [request(2.5, lyrics=LYRICS), request(1.0, prompt="a much longer prompt, with piano, slow, sad")],
        [request(2.5), request(1.0), request(1.5, lyrics=LYRICS), request(2.5, lyrics="[verse]\nla")],
        [request(1.5, guidance_scale=1.0)],
        [request(1.5, guidance_scale=1.0, lyrics=LYRICS), request(2.5, guidance_scale=1.0)],
        [request(1.5, scheduler="heun", guidance="cfg"), request(1.5, scheduler="heun", guidance="cfg")],
    ],
    ids=["one", "with lyrics", "alike", "two lengths", "four", "unguided", "unguided two", "heun"],
)
def test_nothing_is_compiled_after_the_warm_up(engine: Engine, batch: list[GenerationRequest]) -> None:
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    for outcome in engine.generate(batch, decode=False):
        assert isinstance(outcome, GenerationResult), outcome
    assert counters["stats"]["unique_graphs"] == compiled


def test_blocks_share_what_is_compiled(engine: Engine) -> None:
    assert len(engine.networks.transformer.transformer_blocks) > 1
    kinds = 10  # of calls that the warm-up makes
    assert counters["stats"]["unique_graphs"] <= kinds * 2
