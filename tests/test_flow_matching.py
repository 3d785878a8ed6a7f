"""What the transformer is taught: the velocity, by hand; each item alone; what is dropped, and how often."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep.models.repa import RepaHeads, repa_loss
from acestep.sampling.denoise import ERG_SCALE
from acestep.training import flow_matching
from acestep.training.flow_matching import FlowMatchingConfig, FlowMatchingTraining, LatentBatch
from acestep.training.optimization import OptimizationConfig
from acestep.training.teachers import heads_for
from acestep.training.trainer import Trainer
from tests.small_training import make_batch, make_prompt_encoder, make_transformer

WHOLE: dict[str, Any] = {"text_dropout": 0, "lyric_dropout": 0, "speaker_dropout": 0}


def make_task(repa: RepaHeads | None = None, encoder_layers: int = 1, **config: Any) -> FlowMatchingTraining:
    return FlowMatchingTraining(
        make_transformer(), make_prompt_encoder(encoder_layers), FlowMatchingConfig(**WHOLE | config), repa
    )


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def item(batch: LatentBatch, index: int) -> LatentBatch:
    """One item alone, without its padding."""

    def cut(rows: Tensor, mask: Tensor) -> Tensor:
        return rows[index : index + 1, ..., : max(1, int(mask[index].sum()))]

    return LatentBatch(
        latents=cut(batch.latents, batch.frame_mask),
        frame_mask=cut(batch.frame_mask, batch.frame_mask),
        prompt_ids=cut(batch.prompt_ids, batch.prompt_mask),
        prompt_mask=cut(batch.prompt_mask, batch.prompt_mask),
        lyric_ids=cut(batch.lyric_ids, batch.lyric_mask),
        lyric_mask=cut(batch.lyric_mask, batch.lyric_mask),
        speaker=None if batch.speaker is None else batch.speaker[index : index + 1],
        targets=[[of_items[index]] for of_items in batch.targets],
    )


def targets_for(batch: LatentBatch, *dims: int) -> list[list[Tensor]]:
    """Of as many teachers, each with frames of its own."""
    lengths = batch.frame_mask.sum(dim=1).long().tolist()
    return [
        [torch.randn(round(length * (1.5 + 2 * number)), dim, generator=seeded(length)) for length in lengths]
        for number, dim in enumerate(dims)
    ]


class Seen:
    """What the transformer is called with, while it works as ever."""

    def __init__(self, task: FlowMatchingTraining):
        self.encode: Any = None
        self.latents = self.timestep = torch.empty(0)
        encode = task.transformer.encode

        def watched(text: Tensor, text_mask: Tensor, lyric_ids: Tensor, lyric_mask: Tensor, *rest: Any) -> Any:
            names = ("text", "text_mask", "lyric_ids", "lyric_mask", "speaker", "scale")
            self.encode = SimpleNamespace(
                **dict(zip(names, (text, text_mask, lyric_ids, lyric_mask, *rest), strict=True))
            )
            return encode(text, text_mask, lyric_ids, lyric_mask, *rest)

        task.transformer.encode = watched  # type: ignore[method-assign,assignment]
        task.transformer.register_forward_pre_hook(self._keep)

    def _keep(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.latents, self.timestep = inputs[:2]


@pytest.mark.parametrize("timesteps", ["logit-normal", "uniform"])
def test_points_velocities_and_loss_by_hand(timesteps: Any) -> None:
    task, batch = make_task(timesteps=timesteps, logit_mean=0.3, logit_deviation=0.8), make_batch()
    with torch.no_grad():
        task.transformer.final_layer.linear.weight.zero_()
        task.transformer.final_layer.linear.bias.fill_(0.25)
    seen = Seen(task)
    losses = task(batch, seeded())
    generator = seeded()
    if timesteps == "uniform":
        drawn = torch.rand(2, generator=generator).tolist()
    else:
        drawn = [1 / (1 + math.exp(-(0.3 + 0.8 * z))) for z in torch.randn(2, generator=generator).tolist()]
    sigmas = [3 * x / (1 + 2 * x) for x in drawn]
    noise = torch.randn(batch.latents.shape, generator=generator)
    errors = []
    for index, (sigma, length) in enumerate(zip(sigmas, (9, 12), strict=True)):
        own, own_noise = batch.latents[index, ..., :length], noise[index, ..., :length]
        torch.testing.assert_close(seen.latents[index, ..., :length], (1 - sigma) * own + sigma * own_noise)
        assert not seen.latents[index, ..., length:].any()
        assert float(seen.timestep[index]) == pytest.approx(1000 * sigma, rel=1e-5)
        errors.append(float((0.25 - (own_noise - own)).square().mean()))
    assert float(losses["loss"]) == pytest.approx(sum(errors) / 2, rel=1e-5)
    assert losses.keys() == {"loss", "flow"} and losses["flow"] == losses["loss"]


def test_a_perfect_velocity_has_no_loss() -> None:
    task, batch = make_task(), make_batch((6, 6))
    batch = replace(batch, latents=torch.full_like(batch.latents, 1.5))

    def perfect(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        latents, timestep = inputs[:2]
        return (latents - 1.5) / (timestep[:, None, None, None] / 1000)  # x = (1 - s) l + s n, so n - l = (x - l) / s

    task.transformer.register_forward_hook(perfect)
    assert float(task(batch, seeded())["loss"]) < 1e-8


def fixed_noise(monkeypatch: pytest.MonkeyPatch, batch: LatentBatch, points: Tensor) -> Callable[[slice], None]:
    """Let items draw what is theirs, whether in a batch or alone; it returns who says which items come next."""
    noise = torch.randn(batch.latents.shape, generator=seeded(3))
    rows = slice(None)

    def choose(chosen: slice) -> None:
        nonlocal rows
        rows = chosen

    monkeypatch.setattr(flow_matching.torch, "randn", lambda shape, generator: noise[rows][..., : shape[-1]])
    monkeypatch.setattr(flow_matching.torch, "rand", lambda count, generator: points[rows])
    return choose


@pytest.mark.parametrize("speaker", [False, True])
def test_the_loss_of_a_batch_is_the_mean_of_its_items_alone(monkeypatch: pytest.MonkeyPatch, speaker: bool) -> None:
    batch = make_batch((5, 12, 9), (3, 1, 6), (0, 7, 2), speaker=speaker)
    batch = replace(batch, targets=targets_for(batch, 5, 8))
    task = make_task(heads_for(make_transformer(), [5, 8], 1), timesteps="uniform", repa_weight=0.7)
    points = torch.tensor([0.2, 0.5, 0.9])

    def gradients() -> dict[str, Tensor]:
        found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
        task.zero_grad()
        return found

    with monkeypatch.context() as patch:
        choose = fixed_noise(patch, batch, points)
        together = task(batch)
        together["loss"].backward()
        from_batch = gradients()
        alone = []
        for index in range(3):
            choose(slice(index, index + 1))
            losses = task(item(batch, index))
            (losses["loss"] / 3).backward()
            alone.append({name: float(value) for name, value in losses.items()})
        from_items = gradients()
    assert together.keys() == {"loss", "flow", "repa_0", "repa_1"}
    for name, value in together.items():
        assert float(value) == pytest.approx(sum(losses[name] for losses in alone) / 3, rel=1e-5), name
    parts = together["flow"] + 0.7 * (together["repa_0"] + together["repa_1"])
    assert float(together["loss"]) == pytest.approx(float(parts), rel=1e-6)
    assert len({round(losses["loss"], 4) for losses in alone}) == 3
    assert from_batch.keys() == from_items.keys()
    for name, gradient in from_batch.items():
        torch.testing.assert_close(gradient, from_items[name], atol=1e-5, rtol=1e-3, msg=name)


@settings(max_examples=8)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**32))
def test_all_that_is_random_comes_from_the_generator(lengths: list[int], seed: int) -> None:
    task = make_task(text_dropout=0.5, lyric_dropout=0.5, speaker_dropout=0.5, weakened_dropout=0.3)
    batch = make_batch(lengths, lengths, [0, *lengths[1:]], speaker=True)
    with torch.no_grad():
        first = task(batch, seeded(seed))["loss"]
        torch.rand(1)
        assert task(batch, seeded(seed))["loss"] == first
        assert task(batch, seeded(seed + 1))["loss"] != first
    assert math.isfinite(first)


MANY = 1500


@pytest.fixture(scope="module")
def dropped() -> Any:
    """What a crowd of one-frame songs is encoded from, and the crowd."""
    task = make_task(text_dropout=0.15, lyric_dropout=0.4, speaker_dropout=0.7)
    batch = make_batch([1] * MANY, [2] * MANY, [2] * MANY, speaker=True)
    seen = Seen(task)
    with torch.no_grad():
        task(batch, seeded())
    return SimpleNamespace(encode=seen.encode, batch=batch, task=task)


def test_as_much_is_dropped_as_is_said_and_each_by_itself(dropped: Any) -> None:
    gone = {
        0.15: ~dropped.encode.text.flatten(1).any(dim=1),
        0.4: ~dropped.encode.lyric_mask.any(dim=1),
        0.7: ~dropped.encode.speaker.any(dim=1),
    }
    for share, rows in gone.items():
        assert float(rows.float().mean()) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / MANY))
    correlation = torch.corrcoef(torch.stack([rows.float() for rows in gone.values()]))
    assert (correlation - torch.eye(3)).abs().max() < 4 / math.sqrt(MANY)


def test_what_is_dropped_is_as_guidance_has_it_and_the_rest_is_whole(dropped: Any) -> None:
    encode, batch = dropped.encode, dropped.batch
    text = dropped.task.prompt_encoder(batch.prompt_ids, batch.prompt_mask)
    kept = encode.text.flatten(1).any(dim=1)
    torch.testing.assert_close(encode.text[kept], text[kept])
    assert torch.equal(encode.text_mask, batch.prompt_mask), "zeros stand where the prompt stood"
    kept = encode.lyric_mask.any(dim=1)
    assert torch.equal(encode.lyric_mask[kept], batch.lyric_mask[kept])
    kept = encode.speaker.any(dim=1)
    assert torch.equal(encode.speaker[kept], batch.speaker[kept])
    assert encode.scale is None


def test_nothing_is_dropped_at_0_and_everything_at_1() -> None:
    batch = make_batch(speaker=True)
    for share in (0, 1):
        task = make_task(text_dropout=share, lyric_dropout=share, speaker_dropout=share)
        seen = Seen(task)
        task(batch, seeded())
        found = (seen.encode.text, seen.encode.lyric_mask, seen.encode.speaker)
        assert [bool(tensor.any()) for tensor in found] == [not share] * 3


def test_the_weakened_prompt_is_anothers() -> None:
    count = 16
    generator = seeded(1)
    lengths = torch.randint(1, 5, (3, count), generator=generator).tolist()
    batch = make_batch([2] * count, lengths[0], lengths[1])
    task = make_task(encoder_layers=10, weakened_dropout=0.5)
    seen = Seen(task)
    with torch.no_grad():
        task(batch, seeded())
        encode = seen.encode
        weak = encode.scale < 1
        assert 3 <= int(weak.sum()) <= 13
        assert torch.equal(encode.scale, torch.where(weak, ERG_SCALE, 1.0))
        for index in range(count):
            source = index - 1 if weak[index] else index
            for name in ("lyric_ids", "lyric_mask"):
                assert torch.equal(getattr(encode, name)[index], getattr(batch, name)[source])
            assert torch.equal(encode.text_mask[index], batch.prompt_mask[source])
            ids, mask = batch.prompt_ids[source][None], batch.prompt_mask[source][None]
            expected = task.prompt_encoder(ids, mask, encode.scale[index : index + 1])[0]
            own = mask[0].bool()
            torch.testing.assert_close(encode.text[index][own], expected[own], atol=1e-5, rtol=1e-4)
            plain = task.prompt_encoder(ids, mask)[0]
            assert (plain[own] - expected[own]).abs().max() < 1e-6 or weak[index]
        strong = task.prompt_encoder(batch.prompt_ids.roll(1, 0), batch.prompt_mask.roll(1, 0))
    assert (strong - encode.text)[weak].abs().max() > 1e-3, "weakened queries make another text"


@pytest.mark.parametrize("trainable", [False, True])
def test_gradients_reach_the_prompt_encoder_where_it_is_trained(trainable: bool) -> None:
    task = make_task()
    task.prompt_encoder.requires_grad_(trainable)
    seen = Seen(task)
    task(make_batch(), seeded())["loss"].backward()
    assert seen.encode.text.requires_grad == trainable
    for name, parameter in task.prompt_encoder.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trainable, name
    without = {name for name, p in task.transformer.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"speaker_embedder.weight"}, "it only ever saw zeros"


def test_alignment_reaches_the_blocks_before_its_head_and_no_others() -> None:
    batch = make_batch()
    batch = replace(batch, targets=targets_for(batch, 6))
    heads = heads_for(make_transformer(), [6], 0)

    def gradients(weight: float) -> tuple[Tensor, Tensor, Tensor]:
        task = make_task(heads, repa_weight=weight)
        task.zero_grad()
        task(batch, seeded())["loss"].backward()
        first, second = (block.ff.point_conv.conv.weight.grad for block in task.transformer.transformer_blocks)
        return first, second, heads.projectors[0][-1].weight.grad

    without, aligned = gradients(0.0), gradients(1.0)
    assert (aligned[0] - without[0]).abs().max() > 1e-6
    torch.testing.assert_close(aligned[1], without[1], atol=1e-7, rtol=1e-5)
    assert not without[2].any() and aligned[2].any()


def test_the_angle_to_a_teacher_narrows() -> None:
    batch = make_batch((12, 12))
    batch = replace(batch, targets=[[torch.randn(1, 6, generator=seeded(index)).expand(18, 6) for index in range(2)]])
    task = make_task(heads_for(make_transformer(), [6]), repa_weight=1.0)
    config = OptimizationConfig(steps=10, learning_rate=3e-3, warmup_steps=2)
    angles = [metrics["repa_0"] for metrics in Trainer(task, lambda step, rank, world_size: batch, config).run()]
    assert angles[0] > 0.4 and angles[-1] < 0.5 * angles[0], angles


def test_repa_loss_by_hand() -> None:
    projection = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    assert float(repa_loss(projection, torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]))) == pytest.approx(0, abs=1e-6)
    assert float(repa_loss(projection, torch.tensor([[[0.0, 1.0], [0.0, -1.0]]]))) == pytest.approx(1.5)
    assert float(repa_loss(projection, torch.tensor([[[1.0, 2.0]]]))) == pytest.approx(0, abs=1e-6), "one frame of two"


def test_targets_that_nobody_listens_to_do_no_harm() -> None:
    batch = make_batch()
    expected = make_task()(batch, seeded())
    losses = make_task()(replace(batch, targets=targets_for(batch, 4)), seeded())
    assert losses.keys() == {"loss", "flow"} and losses["loss"] == expected["loss"]


def test_attention_as_plain_products_is_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome() -> tuple[float, dict[str, Tensor]]:
        task = make_task()
        loss = task(make_batch(), seeded())["loss"]
        loss.backward()
        return float(loss), {name: p.grad for name, p in task.named_parameters() if p.grad is not None}

    plain, plain_gradients = outcome()
    monkeypatch.setattr(flow_matching, "_attention_for", lambda *_: nullcontext())
    usual, usual_gradients = outcome()
    assert plain == pytest.approx(usual, rel=1e-5)
    for name, gradient in usual_gradients.items():
        torch.testing.assert_close(plain_gradients[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_it_trains_under_bfloat16_autocast() -> None:
    batch = make_batch((8, 11), speaker=True)
    batch = replace(batch, targets=targets_for(batch, 6))
    task = make_task(heads_for(make_transformer(), [6]))
    task.prompt_encoder.requires_grad_(True)
    exact = task(batch, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task(batch, seeded())
    for name, value in rounded.items():
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(exact[name]), rel=0.03), name
    rounded["loss"].backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in task.parameters())
    assert {p.grad.dtype for p in task.parameters() if p.grad is not None} == {torch.float32}


def test_a_batch_moves_whole() -> None:
    batch = make_batch(speaker=True)
    moved = replace(batch, targets=targets_for(batch, 4, 5)).to(torch.device("meta"))
    for field in fields(moved):
        value = getattr(moved, field.name)
        tensors = [value] if isinstance(value, Tensor) else [target for of_items in value for target in of_items]
        assert tensors and all(tensor.is_meta for tensor in tensors), field.name
    assert make_batch().to(torch.device("meta")).speaker is None


@pytest.mark.parametrize("wrong", [{"text_dropout": 1.1}, {"timesteps": "cosine"}, {"logit_deviation": 0}, {"drop": 1}])
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FlowMatchingConfig(**wrong)
