"""Adapters in training: what they change, what stays as it was, and the file that they become."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from acestep import ACEStepPipeline
from acestep.errors import CheckpointError
from acestep.lora import Adapter
from acestep.lora_files import ORIGINAL_NAME
from acestep.lora_scaling import EMBEDDED
from acestep.lora_stack import AdapterStack
from acestep.models.transformer import ACEStepTransformer
from acestep.training.flow_matching import FlowMatchingConfig, FlowMatchingTraining
from acestep.training.lora import LoRAConfig, add_lora, load_lora_for_training, lora_factors, save_lora
from acestep.training.optimization import OptimizationConfig
from acestep.training.trainer import Trainer
from tests.small_training import make_batch, make_prompt_encoder, make_transformer, velocity_of

EVERYTHING = LoRAConfig(
    rank=3,
    alpha=6,
    target_modules=(
        *("speaker_embedder", "genre_embedder", "lyric_proj", "linear_[qkv]", "to_[qkv]", "to_out.0"),
        *("ff.inverted_conv.conv", "ff.point_conv.conv"),
    ),
)


def drawn(transformer: ACEStepTransformer, config: LoRAConfig = EVERYTHING, seed: int = 1) -> ACEStepTransformer:
    """With an adapter that says something."""
    generator = torch.Generator().manual_seed(seed)
    add_lora(transformer, config, generator)
    for name, factor in lora_factors(transformer).items():
        if name.endswith("lora_B.weight"):
            factor.data = 0.2 * torch.randn(factor.shape, generator=generator)
    return transformer


def state_of(transformer: ACEStepTransformer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in transformer.state_dict().items() if ".lora_" not in name}


@pytest.fixture
def transformer() -> ACEStepTransformer:
    return make_transformer()


def test_at_first_nothing_changes(transformer: ACEStepTransformer) -> None:
    batch, before, names = make_batch(), state_of(transformer), list(transformer.state_dict())
    expected = velocity_of(transformer, batch)
    add_lora(transformer, EVERYTHING)
    after = state_of(transformer)
    assert list(after) == names
    assert all(torch.equal(after[name], before[name]) for name in names)
    assert torch.equal(velocity_of(transformer, batch), expected)


def test_the_first_factors_are_a_function_of_the_generator() -> None:
    def factors(seed: int) -> dict[str, Tensor]:
        made = make_transformer()
        add_lora(made, EVERYTHING, torch.Generator().manual_seed(seed))
        return dict(lora_factors(made))

    one, again, other = factors(1), factors(1), factors(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    for name, factor in one.items():
        assert factor.dtype == torch.float32
        if "lora_B" in name:
            assert not factor.any()
        else:
            assert not torch.equal(factor, other[name])
            assert factor.abs().max() <= 1 / math.sqrt(factor.shape[1])


def test_the_targets_are_those_that_are_named(transformer: ACEStepTransformer) -> None:
    add_lora(
        transformer,
        LoRAConfig(target_modules=("genre_embedder", r"transformer_blocks.1.attn.to_[qk]", "point_conv.conv")),
    )
    modules = {name.partition(".lora_")[0] for name in lora_factors(transformer)}
    convolutions = {f"transformer_blocks.{index}.ff.point_conv.conv" for index in (0, 1)}
    blocks = {"transformer_blocks.1.attn.to_q", "transformer_blocks.1.attn.to_k"}
    assert modules == {"genre_embedder", *blocks, *convolutions}


def test_the_defaults_are_all_attention(transformer: ACEStepTransformer) -> None:
    add_lora(transformer, LoRAConfig())
    modules = {name.partition(".lora_")[0] for name in lora_factors(transformer)}
    blocks = {f"transformer_blocks.{index}.{kind}" for index in (0, 1) for kind in ("attn", "cross_attn")}
    expected = {f"{block}.{layer}" for block in blocks for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert modules == expected | {f"lyric_encoder.encoders.0.self_attn.linear_{layer}" for layer in "qkv"}


@pytest.mark.parametrize(
    ("target", "hint"),
    [("to_w", "did you mean 'to_"), ("depth_conv.conv", "did you mean '"), ("xyz", "such as to_q"), ("q", "")],
)
def test_a_target_that_matches_nothing_is_named(transformer: ACEStepTransformer, target: str, hint: str) -> None:
    before = {name: p.requires_grad for name, p in transformer.named_parameters()}
    with pytest.raises(ValueError, match=rf"target_modules: '{target}' matches no layer.*{hint}"):
        add_lora(transformer, LoRAConfig(target_modules=("to_q", target)))
    assert {name: p.requires_grad for name, p in transformer.named_parameters()} == before


def test_settings_that_cannot_be_meant_are_refused(transformer: ACEStepTransformer) -> None:
    for wrong in ({"rank": 0}, {"alpha": 0}, {"target_modules": ()}, {"target_modules": ("to_(",)}, {"r": 8}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LoRAConfig(**wrong)  # type: ignore[arg-type]
    add_lora(transformer, LoRAConfig())
    with pytest.raises(ValueError, match="already"):
        add_lora(transformer, LoRAConfig())


def test_only_factors_have_gradients(transformer: ACEStepTransformer) -> None:
    drawn(transformer)
    task = FlowMatchingTraining(transformer, make_prompt_encoder(), FlowMatchingConfig(text_dropout=0, lyric_dropout=0))
    task(make_batch(speaker=True), torch.Generator().manual_seed(0))["loss"].backward()
    factors = lora_factors(transformer)
    assert {name for name, p in transformer.named_parameters() if p.requires_grad} == factors.keys()
    for name, parameter in transformer.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in factors), name


@pytest.mark.parametrize("use_rslora", [True, False])
def test_the_file_says_what_was_trained(tmp_path: Path, use_rslora: bool) -> None:
    config = EVERYTHING.model_copy(update={"use_rslora": use_rslora})
    assert config.scale == pytest.approx(6 / math.sqrt(3) if use_rslora else 2)
    trained, loaded, batch = drawn(make_transformer(), config), make_transformer(), make_batch(speaker=True)
    path = save_lora(trained, config, tmp_path / "style")
    assert path == tmp_path / "style" / ORIGINAL_NAME
    adapter = Adapter.load(path)
    assert {update.scale for update in adapter.updates.values()} == {config.scale}
    stack = AdapterStack(loaded)
    stack.add(adapter)
    untouched = velocity_of(loaded, batch)
    stack.activate({adapter.name: 1.0})
    expected = velocity_of(trained, batch)
    assert (untouched - expected).abs().max() > 0.05, "the adapter says something"
    torch.testing.assert_close(velocity_of(loaded, batch), expected, atol=1e-5, rtol=1e-5)


def test_names_shapes_and_settings_are_pefts(tmp_path: Path, transformer: ACEStepTransformer) -> None:
    with safe_open(save_lora(drawn(transformer), EVERYTHING, tmp_path), framework="pt") as file:
        settings = json.loads(file.metadata()[EMBEDDED])
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
    assert settings == {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 6,
        "use_rslora": True,
        "target_modules": list(EVERYTHING.target_modules),
    }
    width = transformer.config.inner_dim
    assert shapes["transformer_blocks.0.attn.to_q.lora_A.weight"] == [3, width]
    assert shapes["transformer_blocks.0.cross_attn.to_out.0.lora_B.weight"] == [width, 3]
    hidden = int(width * transformer.config.mlp_ratio)
    assert shapes["transformer_blocks.1.ff.point_conv.conv.lora_A.weight"] == [3, hidden, 1]
    assert shapes["transformer_blocks.1.ff.inverted_conv.conv.lora_B.weight"] == [2 * hidden, 3, 1]


def test_other_factors_can_be_saved(tmp_path: Path, transformer: ACEStepTransformer) -> None:
    drawn(transformer)
    half = {name: factor.detach() / 2 for name, factor in lora_factors(transformer).items()}
    path = save_lora(transformer, EVERYTHING, tmp_path, half)
    again = make_transformer()
    load_lora_for_training(again, path)
    assert all(torch.equal(factor, half[name]) for name, factor in lora_factors(again).items())
    half.popitem()
    with pytest.raises(ValueError, match="1 names differ"):
        save_lora(transformer, EVERYTHING, tmp_path, half)


def test_training_can_go_on_from_a_file(tmp_path: Path) -> None:
    first, second, batch = drawn(make_transformer()), make_transformer(), make_batch(speaker=True)
    path = save_lora(first, EVERYTHING, tmp_path / "one")
    config = load_lora_for_training(second, path)
    assert (config.rank, config.scale) == (3, pytest.approx(EVERYTHING.scale))
    torch.testing.assert_close(velocity_of(second, batch), velocity_of(first, batch), atol=1e-5, rtol=1e-5)
    again = save_lora(second, config, tmp_path / "two")
    assert Adapter.load(again).updates.keys() == Adapter.load(path).updates.keys()
    third = make_transformer()
    load_lora_for_training(third, again)
    torch.testing.assert_close(velocity_of(third, batch), velocity_of(first, batch), atol=1e-5, rtol=1e-5)


def test_an_adapter_of_other_layers_cannot_be_gone_on_with(tmp_path: Path) -> None:
    path = save_lora(drawn(make_transformer()), EVERYTHING, tmp_path)
    other = make_transformer(inner_dim=64, num_attention_heads=4)
    with pytest.raises(CheckpointError, match=r"of another shape \(\d+\): genre_embedder"):
        load_lora_for_training(other, path)
    assert not lora_factors(other)
    with pytest.raises(CheckpointError, match=r"modules that cannot be trained \(10\): transformer_blocks.1"):
        load_lora_for_training(make_transformer(num_layers=1), path)


def test_an_adapter_learns_a_batch_and_the_base_stays() -> None:
    transformer = make_transformer(inner_dim=128, num_attention_heads=8)
    # What a trained network has: a last layer that can be heard through.
    torch.nn.init.normal_(transformer.final_layer.linear.weight, std=0.15)
    add_lora(transformer, EVERYTHING, torch.Generator().manual_seed(0))
    before, batch = state_of(transformer), make_batch(lengths=(12, 12))
    batch = replace(batch, latents=torch.full_like(batch.latents, 2.0))
    task = FlowMatchingTraining(transformer, make_prompt_encoder(), FlowMatchingConfig(text_dropout=0, lyric_dropout=0))
    config = OptimizationConfig(steps=25, learning_rate=0.02, warmup_steps=5, weight_decay=0)
    losses = [metrics["loss"] for metrics in Trainer(task, lambda step, rank, world_size: batch, config).run()]
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert last < 0.6 * first, losses
    after = state_of(transformer)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_it_trains_in_bfloat16(transformer: ACEStepTransformer) -> None:
    """With a base in bfloat16, as published, and with one in float32 under autocast."""
    generator, batch = torch.Generator(), make_batch()
    for dtype in (torch.bfloat16, torch.float32):
        cast = drawn(copy.deepcopy(transformer).to(dtype))
        encoder = make_prompt_encoder().to(dtype)
        task = FlowMatchingTraining(cast, encoder, FlowMatchingConfig(text_dropout=0, lyric_dropout=0))
        with torch.autocast("cpu", torch.bfloat16):
            loss = task(batch, generator.manual_seed(0))["loss"]
        loss.backward()
        assert math.isfinite(float(loss))
        for name, factor in lora_factors(cast).items():
            assert factor.dtype == torch.float32
            if "speaker" not in name:
                assert factor.grad is not None and factor.grad.isfinite().all() and factor.grad.any(), name


def test_gradient_checkpointing_changes_no_gradient(transformer: ACEStepTransformer) -> None:
    drawn(transformer)
    task = FlowMatchingTraining(transformer, make_prompt_encoder(), FlowMatchingConfig())
    gradients = []
    for on in (False, True):
        transformer.gradient_checkpointing = on
        task(make_batch(), torch.Generator().manual_seed(0))["loss"].backward()
        gradients.append({name: factor.grad for name, factor in lora_factors(transformer).items()})
        transformer.zero_grad(set_to_none=True)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_the_pipeline_sounds_as_the_trained_transformer_does(tmp_path: Path) -> None:
    pipe = ACEStepPipeline.from_pretrained("tiny", device="cpu")
    transformer, config = pipe.engine.networks.transformer, LoRAConfig(rank=4, alpha=4)
    path = save_lora(drawn(copy.deepcopy(transformer), config), config, tmp_path / "style")
    # Guidance would make differences of rounding fifteen times as large.
    settings = {"prompt": "piano", "duration": 2, "num_inference_steps": 4, "seed": 3, "guidance_scale": 1.0}
    merged = pipe(**settings, lora=str(path.parent))
    base = pipe(**settings)
    drawn(transformer, config)
    own = pipe(**settings)
    assert (base.latents - own.latents).abs().max() > 1e-2
    torch.testing.assert_close(merged.latents, own.latents, atol=1e-5, rtol=1e-5)
