"""Leaving a running batch: who goes is told when, who stays comes out as if nobody had gone, and for less work."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from acestep.conditioning import encode_condition
from acestep.engine import Engine, Outcome
from acestep.errors import CancelledError
from acestep.request import GenerationRequest
from acestep.result import GenerationFailure, GenerationResult
from acestep.sampling.denoise import denoise
from acestep.sampling.leaving import Company
from acestep.sampling.noise import BatchNoise
from acestep.sampling.tasks import repaint
from acestep.source import Source
from tests.golden import relative_error

STEPS = 4
ROUNDING = 1e-5
GUIDANCE: dict[str, dict[str, Any]] = {
    "apg": {"guidance": "apg"},
    "cfg": {"guidance": "cfg"},
    "cfg_star": {"guidance": "cfg_star", "use_erg_diffusion": False},
    "double": {"guidance_scale_text": 5.0, "guidance_scale_lyric": 1.5},
    "none": {"guidance_scale": 1.0},
}
SONGS: tuple[dict[str, Any], ...] = (
    {"duration": 1.2, "omega_scale": 10.0},
    {"duration": 3, "prompt": "a longer prompt, with drums and a choir", "lyrics": "[verse]\nOne light, two lights"},
    {"duration": 2, "omega_scale": -5.0, "min_guidance_scale": 1.0, "lyrics": "[chorus]\nHold on\nhold on\nto me"},
    {"duration": 2, "prompt": "techno"},
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("tiny", device="cpu")


@pytest.fixture(autouse=True)
def _keep_budget(engine: Engine) -> Iterator[None]:
    budget = engine.frame_budget
    yield
    engine.frame_budget = budget


def request(seed: int = 1, **changes: object) -> GenerationRequest:
    values = {"prompt": "piano, calm", "duration": 1.5, "num_inference_steps": STEPS, "seed": seed} | changes
    return GenerationRequest.parse(values)


def ragged(**changes: object) -> list[GenerationRequest]:
    """Four songs of one batch that differ in all that they may differ in."""
    scales = {"guidance_scale": 3.0, "guidance_interval": 0.8, "guidance_interval_decay": 0.5}
    return [
        request(seed, **(scales | {"guidance_scale": 3.0 + seed} | song | changes)) for seed, song in enumerate(SONGS)
    ]


class Leavers:
    """A caller whose songs are cancelled at set times: positions to the steps done by then, counted over the call."""

    def __init__(self, times: dict[int, int]):
        self.times = times
        self.steps: list[tuple[int, int]] = []

    def callback(self, done: int, total: int) -> None:
        self.steps.append((done, total))

    def cancelled(self) -> Collection[int]:
        return [position for position, time in self.times.items() if len(self.steps) >= time]


def leave(engine: Engine, requests: list[GenerationRequest], times: dict[int, int], **options: Any) -> list[Outcome]:
    caller = Leavers(times)
    return engine.generate(requests, callback=caller.callback, cancelled=caller.cancelled, **options)


def told(outcome: Outcome) -> tuple[str, str]:
    assert isinstance(outcome, GenerationFailure)
    return outcome.error_class, outcome.message


def song(outcome: Outcome) -> GenerationResult:
    assert isinstance(outcome, GenerationResult), outcome
    return outcome


@functools.cache
def undisturbed(engine: Engine, scheduler: str, guidance: str) -> list[Outcome]:
    return engine.generate(ragged(scheduler=scheduler, **GUIDANCE[guidance]), decode=False)


@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
@pytest.mark.parametrize("guidance", GUIDANCE)
@settings(max_examples=5)
@given(data=st.data())
def test_who_stays_comes_out_as_if_nobody_left(
    engine: Engine, scheduler: str, guidance: str, data: st.DataObject
) -> None:
    evaluations = 2 * STEPS - 1 if scheduler == "heun" else STEPS
    times = data.draw(st.dictionaries(st.integers(0, len(SONGS) - 1), st.integers(0, evaluations), max_size=3))
    requests = ragged(scheduler=scheduler, **GUIDANCE[guidance])
    outcomes = leave(engine, requests, times, decode=False)
    for position, (outcome, expected) in enumerate(
        zip(outcomes, undisturbed(engine, scheduler, guidance), strict=True)
    ):
        assert outcome.request == requests[position].resolved()
        if position not in times:
            assert relative_error(song(outcome).latents, song(expected).latents) <= ROUNDING
        elif time := times[position]:
            assert told(outcome) == ("cancelled", f"cancelled at step {time} of {evaluations}")
        else:
            assert told(outcome) == ("cancelled", "cancelled before it began")


def test_the_steps_that_follow_cost_less(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    forward = engine.networks.transformer.forward

    def watched(latents: torch.Tensor, *args: Any) -> torch.Tensor:
        shapes.append((latents.shape[0], latents.shape[-1]))
        return forward(latents, *args)

    monkeypatch.setattr(engine.networks.transformer, "forward", watched)
    requests = ragged(guidance_interval=1.0)
    frames = [each.num_frames for each in requests]
    leave(engine, requests, {1: 2, 3: 3}, decode=False)
    assert shapes == [(8, frames[1]), (8, frames[1]), (6, frames[2]), (4, frames[2])]


def test_when_all_leave_nothing_more_is_done(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.networks.codec, "decode", None)
    caller = Leavers({0: 1, 1: 2, 2: 2})
    outcomes = engine.generate(
        [request(1), request(2), request(3)], callback=caller.callback, cancelled=caller.cancelled
    )
    assert caller.steps == [(1, STEPS), (2, STEPS)]
    assert [told(outcome)[1] for outcome in outcomes] == [
        f"cancelled at step 1 of {STEPS}",
        *[f"cancelled at step 2 of {STEPS}"] * 2,
    ]


def test_a_batch_that_nobody_wants_does_not_begin_and_the_next_one_does(engine: Engine) -> None:
    requests = [request(1, duration=2), request(2, num_inference_steps=3), request(3, duration=2)]  # longest go first
    caller = Leavers({0: 0, 2: 0})
    outcomes = engine.generate(requests, callback=caller.callback, cancelled=caller.cancelled)
    assert caller.steps == [(1, 3), (2, 3), (3, 3)]
    assert told(outcomes[0]) == told(outcomes[2]) == ("cancelled", "cancelled before it began")
    assert song(outcomes[1]).seed == 2


def test_who_is_named_once_is_gone_from_later_batches_too(engine: Engine) -> None:
    answers = iter([[1], [], [2, 3]])
    requests = [*(request(seed, duration=2) for seed in (1, 2, 3)), request(4, num_inference_steps=3)]
    outcomes = engine.generate(requests, cancelled=lambda: next(answers, ()))
    assert told(outcomes[1])[1] == told(outcomes[3])[1] == "cancelled before it began"
    assert told(outcomes[2])[1] == f"cancelled at step 2 of {STEPS}"
    assert (song(outcomes[0]).seed, song(outcomes[0]).batch_size) == (1, 2)


def test_songs_leave_before_they_are_decoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, decoded, unwanted = engine.networks.codec.decode, [], set[int]()

    def counted(latents: torch.Tensor) -> torch.Tensor:
        decoded.append(latents)
        unwanted.add(1)
        return decode(latents)

    requests = [request(seed, duration=seed) for seed in (1, 2, 3)]  # decoded apart, for none is like another
    expected = engine.generate(requests)
    monkeypatch.setattr(engine.networks.codec, "decode", counted)
    outcomes = engine.generate(requests, cancelled=lambda: unwanted)
    assert len(decoded) == 2
    assert told(outcomes[1])[1] == f"cancelled at step {STEPS} of {STEPS}"
    for position in (0, 2):
        assert torch.equal(song(outcomes[position]).waveform, song(expected[position]).waveform)


def test_positions_hold_in_the_halves_of_a_batch_that_does_not_fit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tight(*args: Any) -> torch.Tensor:
        if len(args[2]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return denoise(*args)

    monkeypatch.setattr("acestep.making.denoise", tight)
    outcomes = leave(engine, [request(seed) for seed in range(5)], {0: 0, 3: STEPS + 1}, decode=False)
    assert told(outcomes[0])[1] == "cancelled before it began"
    assert told(outcomes[3])[1] == f"cancelled at step 1 of {STEPS}"
    assert [song(outcomes[position]).seed for position in (1, 2, 4)] == [1, 2, 4]


def test_positions_hold_when_songs_are_tried_one_by_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def brittle(*args: Any) -> torch.Tensor:
        latents = denoise(*args)
        if len(args[2]) > 1:
            raise RuntimeError("together they fall")
        return latents

    monkeypatch.setattr("acestep.making.denoise", brittle)
    outcomes = leave(engine, [request(seed) for seed in range(4)], {2: 3, 1: STEPS + STEPS + 2}, decode=False)
    assert told(outcomes[2])[1] == f"cancelled at step 3 of {STEPS}", "it was tried again"
    assert told(outcomes[1])[1] == f"cancelled at step 2 of {STEPS}"
    assert [song(outcomes[position]).seed for position in (0, 3)] == [0, 3]


def test_the_last_one_left_is_tried_again_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def brittle(*args: Any) -> torch.Tensor:
        latents = denoise(*args)
        if len(args[2]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return latents

    monkeypatch.setattr("acestep.making.denoise", brittle)
    outcomes = leave(engine, [request(1), request(2)], {0: 2}, decode=False)
    assert told(outcomes[0])[1] == f"cancelled at step 2 of {STEPS}"
    assert song(outcomes[1]).seed == 2


def test_an_edit_stops_between_two_steps(engine: Engine) -> None:
    source = Source.of_latents(song(engine.generate([request(1)], decode=False)[0]).latents)
    edit = request(2, task="edit", source="kept", target_prompt="drums")
    caller = Leavers({0: 2})
    outcomes = engine.generate(
        [edit, request(3)],
        sources=[source, None],
        decode=False,
        callback=caller.callback,
        cancelled=caller.cancelled,
    )
    assert told(outcomes[0]) == ("cancelled", f"cancelled at step 2 of {STEPS}")
    assert song(outcomes[1]).seed == 3
    assert len(caller.steps) == 2 + STEPS


@torch.inference_mode()
def test_beside_kept_frames_songs_leave_too(engine: Engine) -> None:
    requests, networks = [request(seed) for seed in range(3)], engine.networks
    frames, source = requests[0].num_frames, torch.randn(3, 8, 16, requests[0].num_frames)

    def sample(company: Company | None) -> torch.Tensor:
        tokens = [engine.tokenizer(each) for each in requests]
        condition = encode_condition(networks.prompt_encoder, networks.transformer, requests, tokens)
        noise = BatchNoise([1, 2, 3], [frames] * 3)
        start = repaint(source, noise.draw(), noise.draw(), range(3, 7), STEPS, 1.0)
        return denoise(networks.transformer, condition, requests, noise, None, start, company)

    company = Company(range(3), lambda: [1])
    stayed, expected = sample(company), sample(None)
    assert company.members == [0, 2]
    assert relative_error(stayed, expected[[0, 2]]) <= ROUNDING
    assert torch.equal(stayed[..., 7:], source[[0, 2], ..., 7:])


def test_what_the_question_raises_reaches_the_caller(engine: Engine) -> None:
    def stop() -> Collection[int]:
        raise CancelledError("enough")

    with pytest.raises(CancelledError, match="enough"):
        engine.generate([request(1), request(2)], cancelled=stop)


class _Operations(TorchDispatchMode):
    """Counts what is computed; copies to the host are among it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_to_ask_computes_nothing(engine: Engine) -> None:
    def operations(**options: Any) -> list[str]:
        with _Operations() as counted:
            engine.generate(ragged(), decode=False, **options)
        return counted.names

    plain = operations()
    assert operations(cancelled=lambda: ()) == plain
    assert operations(cancelled=lambda: [7]) == plain


def test_tasks_and_sources_are_not_mixed(engine: Engine) -> None:
    source = Source.of_latents(song(engine.generate([request(1, duration=3)], decode=False)[0]).latents)
    requests = [
        request(1),
        request(1, task="retake", variance=0.9),
        request(1, task="repaint", source="kept", repaint_end=1),
        request(1, task="repaint", source="kept", repaint_start=2),
    ]
    sources = [None, None, source, source]
    together = engine.generate(requests, sources=sources, decode=False)
    for asked, its_source, outcome in zip(requests, sources, together, strict=True):
        alone = song(engine.generate([asked], sources=[its_source], decode=False)[0])
        assert torch.equal(song(outcome).latents, alone.latents)
