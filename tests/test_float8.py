"""float8 layers: near to float32, the same in any company, with adapters and compiled; and what they are called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from acestep.checkpoint import Checkpoint
from acestep.device import FLOAT8, dtype_name, parse_dtype, require_dtype
from acestep.engine import Engine
from acestep.loading import load_part
from acestep.lora import Adapter
from acestep.lora_files import ORIGINAL_NAME
from acestep.lora_stack import AdapterStack
from acestep.models import float8
from acestep.models.float8 import (
    SMALLEST_SCALE,
    Float8Convolution,
    Float8Linear,
    plain_product,
    quantise,
    scaled_product,
    to_float8,
)
from acestep.models.transformer import ACEStepTransformer
from acestep.request import GenerationRequest
from acestep.result import GenerationResult
from pipelines.config import RunConfig
from pipelines.engines import describe_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def make_layer(inner: int = 256, out: int = 128, bias: bool = True) -> Float8Linear:
    return Float8Linear(
        random(out, inner, seed=1, scale=inner**-0.5), nn.Parameter(random(out, seed=2), False) if bias else None
    )


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of the whole, relative to its size."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture(scope="module")
def transformer() -> ACEStepTransformer:
    found = load_part(Checkpoint.open("tiny"), "transformer", dtype=torch.bfloat16)
    assert isinstance(found, ACEStepTransformer)
    return found


@pytest.fixture
def converted(transformer: ACEStepTransformer) -> ACEStepTransformer:
    found = copy.deepcopy(transformer)
    to_float8(found)
    return found


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("tiny", device="cpu", dtype="float8")


ROW = st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=1, max_size=16)


@given(ROW)
def test_every_number_is_within_half_a_step(row: list[float]) -> None:
    x = torch.tensor([row])
    values, scale = quantise(x)
    assert values.dtype == FLOAT8 and scale.dtype == torch.float32 and scale.shape == (1, 1)
    found = values.double() * scale.double()
    # Three bits of mantissa, down to 2**-6 of the scale; below that, steps of 2**-9.
    allowed = torch.maximum(x.double().abs() * 2**-4, scale.double() * 2**-10) * (1 + 1e-6)
    assert bool(((found - x.double()).abs() <= allowed).all())


def test_zeros_stay_zeros_and_what_is_not_finite_is_seen() -> None:
    values, scale = quantise(torch.tensor([[0.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]]))
    assert values[0].float().tolist() == [0, 0] and scale[0].item() == pytest.approx(SMALLEST_SCALE)
    found = values.float() * scale
    assert not bool(found[1].isfinite().any()) and not bool(found[2].isfinite().all())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_a_layer_is_as_near_to_float32_as_its_format_is(device: str, bias: bool) -> None:
    layer, x = make_layer(bias=bias).to(device), random(3, 50, 256, seed=3).to(device)
    y = layer(x)
    assert y.shape == (3, 50, 128) and y.dtype == torch.bfloat16
    offset = 0 if layer.bias is None else layer.bias.float()
    product = y.float() - offset
    exact = x.float() @ layer.original.to(device).float().t()
    # Rounding to three bits of mantissa is off by 2.6% on average, here twice: of the weight and of the activation.
    assert 0.02 < error_of(product, exact) < 0.05
    weight = layer.weight.float() * layer.scale.t()
    values, scale = quantise(x)
    quantised = (values.float() * scale) @ weight.t() + offset
    assert error_of(y, quantised) < 2**-8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_on_the_device_is_the_plain_one(device: str, bias: bool) -> None:
    layer = make_layer(bias=bias).to(device)
    operands = (*quantise(random(40, 256, seed=3).to(device)), layer.weight, layer.scale, layer.bias)
    try:
        found = scaled_product(*operands)
    except (RuntimeError, NotImplementedError) as error:
        if device == "cuda":
            raise
        pytest.skip(f"this build of torch has none for the CPU: {error}")
    # Each is rounded to bfloat16 once; fast sums keep fewer bits than float32.
    assert error_of(found, plain_product(*operands)) < (2**-8 if device == "cpu" else 0.005)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("of_convolution", [True, False])
@pytest.mark.parametrize(("rows", "frames"), [(2, 50), (1, 50), (1, 1)])
def test_what_the_gpu_is_given_is_laid_out_as_it_wants(
    rows: int, frames: int, of_convolution: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: torch's own checks of shapes and strides, on tensors without numbers."""
    operands: list[torch.Tensor | None] = []
    monkeypatch.setattr(float8, "plain_product", lambda *given: operands.extend(given) or plain_product(*given))
    x = random(rows, 256, frames).transpose(1, 2) if of_convolution else random(rows, frames, 256)
    assert make_layer(bias=bias)(x).shape == (rows, frames, 128)
    with FakeTensorMode():
        product = scaled_product(
            *(
                each
                if each is None
                else torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda")
                for each in operands
            )
        )
    assert product.shape == (rows * frames, 128) and product.dtype == torch.bfloat16


@pytest.mark.parametrize("device", DEVICES)
def test_a_token_is_the_same_in_any_company(device: str) -> None:
    layer, x = make_layer().to(device), random(4, 37, 256, seed=3).to(device)
    x[1] *= 100
    x[2, 20:] = 0
    together = layer(x)
    for row in range(4):
        assert error_of(layer(x[row : row + 1]), together[row : row + 1]) < 2**-9
    assert error_of(layer(x.transpose(0, 1).contiguous().transpose(0, 1)), together) < 2**-9


def test_sizes_without_a_product_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype: 'float8' is not allowed for a layer of 24 x 64; .* multiples of 16"):
        Float8Linear(random(24, 64), None)


def test_exactly_the_large_layers_of_the_blocks_are_float8(
    transformer: ACEStepTransformer, converted: ACEStepTransformer
) -> None:
    names = {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.inverted_conv.conv", "ff.point_conv.conv"}
    names |= {"cross_attn.to_q", "cross_attn.to_out.0"}
    wanted = {f"transformer_blocks.{number}.{name}" for number in range(5) for name in names}
    found = {name for name, module in converted.named_modules() if isinstance(module, Float8Linear)}
    assert found == wanted
    before, after = dict(transformer.named_parameters()), dict(converted.named_parameters())
    assert before.keys() == after.keys()
    for name, parameter in after.items():
        expected = FLOAT8 if name.removesuffix(".weight") in wanted and name.endswith(".weight") else torch.bfloat16
        assert parameter.dtype == expected, name
        assert not parameter.requires_grad
    matrices = [
        name for name, parameter in before.items() if name.startswith("transformer_blocks") and parameter.ndim > 1
    ]
    left = {name.split(".", 2)[2].removesuffix(".weight") for name in matrices} - names
    assert left == {"scale_shift_table", "ff.depth_conv.conv", "cross_attn.to_k", "cross_attn.to_v"}


def test_the_velocity_is_near_that_of_float32(transformer: ACEStepTransformer, converted: ACEStepTransformer) -> None:
    latents, hidden, frames = random(2, 8, 16, 30, seed=4), random(2, 12, 64, seed=5), torch.ones(2, 30)
    frames[1, 20:] = 0
    latents[1, ..., 20:] = 0

    def velocity(network: ACEStepTransformer) -> torch.Tensor:
        dtype = network.final_layer.linear.weight.dtype
        condition = network.condition(hidden.to(dtype), torch.ones(2, 12, dtype=torch.bool))
        return network(latents.to(dtype), torch.tensor([500.0]), condition, frames)

    exact, found = velocity(copy.deepcopy(transformer).float()), velocity(converted)
    assert error_of(velocity(transformer), exact) < error_of(found, exact) < 0.1
    assert not bool(found[1, ..., 20:].any())


def song(engine: Engine, *requests: GenerationRequest) -> list[GenerationResult]:
    outcomes = engine.generate(requests)
    assert all(isinstance(outcome, GenerationResult) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, GenerationResult)]


def test_a_song_in_float8(engine: Engine) -> None:
    request = GenerationRequest(
        prompt="tango", lyrics="[verse]\nla", duration=2, num_inference_steps=4, guidance_scale=1.0, seed=1
    )
    made = song(engine, request)[0]
    assert made.model.dtype == "float8"
    exact = song(Engine.load("tiny", device="cpu", dtype="float32"), request)[0]
    assert 0.001 < error_of(torch.as_tensor(made.latents), torch.as_tensor(exact.latents)) < 0.12


def test_songs_in_a_batch_are_near_to_themselves_alone(engine: Engine) -> None:
    song_of = partial(GenerationRequest, prompt="tango", num_inference_steps=3, guidance_scale=1.0)
    requests = [song_of(duration=length, seed=length) for length in (1, 2, 3)]
    together = song(engine, *requests)
    assert {made.batch_size for made in together} == {3}
    for request, made in zip(requests, together, strict=True):
        alone = song(engine, request)[0]
        # Sums of another order end at the other side of a step now and then.
        assert error_of(torch.as_tensor(made.latents), torch.as_tensor(alone.latents)) < 0.03


def test_it_compiles_as_one_graph_for_any_number_of_tokens() -> None:
    layer = Float8Convolution(nn.Conv1d(64, 32, 1).bfloat16().requires_grad_(False))
    compiled = torch.compile(lambda x: layer.as_linear(x), backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (2, 5, 9):
        x = random(rows, 7, 64, seed=rows)
        assert torch.equal(compiled(x), layer.as_linear(x))
    layer.conv.write(layer.conv.original.flip(0))
    x = random(3, 7, 64)
    assert torch.equal(compiled(x), layer.as_linear(x)), "a compiled graph sees an adapter's switch"


MODULES = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.point_conv.conv", "speaker_embedder")


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[str, float], Adapter]:
    def make(name: str, size: float) -> Adapter:
        """An adapter whose updates are of `size` relative to the weights."""
        entries = {}
        shapes = {"to_q": (64, 64), "conv": (64, 160, 1), "speaker_embedder": (64, 64)}
        for seed, module in enumerate(MODULES):
            out, inner, *kernel = shapes[module.rsplit(".", 1)[-1]]
            down, up = random(4, inner, *kernel, seed=seed).float(), random(out, 4, *kernel, seed=9 + seed).float()
            entries[f"{module}.lora_A.weight"] = down * (size / (4 * inner) ** 0.5)
            entries[f"{module}.lora_B.weight"] = up
        folder = tmp_path / name
        folder.mkdir()
        save_file(entries, folder / ORIGINAL_NAME)
        return Adapter.load(folder)

    return make


def bits_of(transformer: ACEStepTransformer) -> dict[str, bytes]:
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    state = transformer.state_dict()
    return {name: tensor.view(views[tensor.element_size()]).numpy().tobytes() for name, tensor in state.items()}


def test_switching_adapters_and_back_restores_every_bit(
    converted: ACEStepTransformer, adapter: Callable[[str, float], Adapter]
) -> None:
    base, places = bits_of(converted), {name: value.data_ptr() for name, value in converted.named_parameters()}
    stack = AdapterStack(converted)
    stack.add(adapter("one", 0.3))
    stack.add(adapter("two", 0.1))
    seen: dict[str, dict[str, bytes]] = {}
    for weights in ({"one": 1.0}, {"one": 1.0, "two": 0.5}, {}, {"two": 0.5}, {"one": 1.0}, {}):
        stack.activate(weights)
        now = bits_of(converted)
        assert now == seen.setdefault(str(weights), now)
        changed = {name for name in base if now[name] != base[name]}
        assert {name for name in changed if name.endswith("weight")} == {
            f"{each}.weight" for each in MODULES if weights
        }
    assert bits_of(converted) == base
    assert {name: value.data_ptr() for name, value in converted.named_parameters()} == places


@pytest.mark.parametrize("size", [0.002, 0.01, 0.05])
def test_small_updates_are_not_lost_among_the_steps(
    converted: ACEStepTransformer, adapter: Callable[[str, float], Adapter], size: float
) -> None:
    stack = AdapterStack(converted)
    style = adapter("style", size)
    stack.add(style)
    for module in MODULES[:2]:
        layer = converted.get_submodule(module)
        assert isinstance(layer, Float8Linear)
        before = layer.weight.float() * layer.scale.t()
        stack.activate({"style": 1.0})
        change = layer.weight.float() * layer.scale.t() - before
        stack.activate(None)
        wanted = torch.zeros(layer.weight.shape)
        style.updates[module].add_to(wanted, 1.0)
        share = float((change * wanted).sum() / wanted.square().sum())
        assert share == pytest.approx(1, abs=0.35)


def test_it_is_called_float8_everywhere(engine: Engine) -> None:
    assert parse_dtype("float8") == parse_dtype(FLOAT8) == FLOAT8
    assert dtype_name(FLOAT8) == "float8"
    with pytest.raises(ValueError, match="'float9' is not allowed; allowed: float32, bfloat16, float16, float8"):
        parse_dtype("float9")
    config = RunConfig.load(None, ["model.dtype=float8"])
    assert config.dtype == "float8"
    assert describe_model(config) == engine.model
    checkpoint = Checkpoint.open("tiny")
    assert engine.model.fingerprint == checkpoint.fingerprint("float8") != checkpoint.fingerprint("bfloat16")


def test_only_the_transformer_is_in_float8(engine: Engine) -> None:
    networks = engine.networks
    for part in (networks.prompt_encoder, networks.codec.autoencoder, networks.codec.vocoder):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in networks.transformer.parameters()} == {torch.bfloat16, FLOAT8}


def test_a_gpu_without_float8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"dtype: 'float8' is not allowed on NVIDIA A100.*float32, bfloat16, float16$"):
        require_dtype(FLOAT8, device)
    require_dtype(torch.bfloat16, device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    require_dtype(FLOAT8, device)
    require_dtype(FLOAT8, torch.device("cpu"))
    with pytest.raises(ValueError, match="not allowed on mps"):
        require_dtype(FLOAT8, torch.device("mps"))
