"""Weights into networks: all of them, cast, from whatever files, or an error that lists everything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from acestep import tiny
from acestep.checkpoint import FOLDERS, Checkpoint, Part
from acestep.errors import CheckpointError
from acestep.loading import build_network, load_part
from acestep.models.weight_norm import fold_weight_norm
from acestep.weight_files import TensorInfo
from acestep.weights import build_module, load_weights, misfits
from tests.recipe import published_config, published_shapes

PUBLISHED: dict[Part, str] = {part: FOLDERS[part] for part in ("transformer", "autoencoder", "vocoder")}


class Toy(nn.Module):
    """A bit of everything: convolution, norm, table, parameter of its own, stored and computed buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 5)
        self.norm = nn.LayerNorm(4)
        self.table = nn.Embedding(7, 4, padding_idx=0)
        self.scale = nn.Parameter(torch.zeros(4))
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("ramp", torch.arange(4.0) / 3, persistent=False)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {name: torch.randn(tensor.shape) for name, tensor in Toy().state_dict().items()}
    return state | {"steps": torch.tensor([3, 4])}


def save_sharded(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Two files and an index, as diffusers writes them."""
    weight_map = {}
    for number in (1, 2):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        shard = {name: tensor for index, (name, tensor) in enumerate(state.items()) if index % 2 == number - 1}
        save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_single(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("save", [save_single, save_sharded])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_files_of_every_kind_fill_a_module(
    tmp_path: Path,
    state: dict[str, torch.Tensor],
    save: Callable[[Path, dict[str, torch.Tensor]], None],
    stored: torch.dtype,
    wanted: torch.dtype | None,
) -> None:
    stored_state = {name: t.to(stored) if t.is_floating_point() else t for name, t in state.items()}
    save(tmp_path, stored_state)
    toy = build_module(Toy)
    assert toy.conv.weight.is_meta
    load_weights(toy, tmp_path, dtype=wanted)
    for name, tensor in toy.state_dict().items():
        expected = stored_state[name]
        assert tensor.dtype == (expected.dtype if name == "steps" else wanted or stored)
        assert torch.equal(tensor, expected.to(tensor.dtype)), name
    assert torch.equal(toy.ramp, torch.arange(4.0) / 3)  # computed, and still float32


def test_weights_outlive_their_file(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_single(tmp_path, state)
    toy = build_module(Toy)
    load_weights(toy, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * (tmp_path / "model.safetensors").stat().st_size)
    assert torch.equal(toy.conv.weight, state["conv.weight"])


def test_unused_tensors_are_not_read(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_single(tmp_path, state | {"projectors.0.weight": torch.ones(3), "norm.extra": torch.ones(1)})
    load_weights(build_module(Toy), tmp_path, unused=[r"projectors\.", r"norm\.ex"])
    with pytest.raises(CheckpointError, match=r"unexpected \(1\): projectors\.0\.weight \[3\]"):
        load_weights(build_module(Toy), tmp_path, unused=[r"weight", r"norm\.ex"])  # matched from the start


def test_one_error_lists_everything(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    del state["norm.bias"], state["scale"]
    state |= {"conv.weight": torch.zeros(4, 3, 6), "new": torch.zeros(2, 2)}
    save_single(tmp_path, state)
    with pytest.raises(CheckpointError) as caught:
        load_weights(build_module(Toy), tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "missing (2): scale [4]; norm.bias [4]" in message
    assert "unexpected (1): new [2, 2]" in message
    assert "of another shape (1): conv.weight [4, 3, 6], the model has [4, 3, 5]" in message


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    save_file({f"other.{index}": torch.zeros(1) for index in range(500)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected \(500\): .*; and 480 more") as caught:
        load_weights(build_module(Toy), tmp_path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("first", "second"),
    [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")],
)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weight_norms_are_folded(
    tmp_path: Path, state: dict[str, torch.Tensor], first: str, second: str, stored: torch.dtype
) -> None:
    direction = state.pop("conv.weight")
    state |= {f"conv.{first}": torch.rand(4, 1, 1), f"conv.{second}": direction}
    save_sharded(tmp_path, {name: t.to(stored) if t.is_floating_point() else t for name, t in state.items()})
    toy = build_module(Toy)
    load_weights(toy, tmp_path, dtype=torch.float32, transform=fold_weight_norm)
    length = direction.flatten(1).norm(dim=1)[:, None, None]
    expected = direction * state[f"conv.{first}"] / length
    assert (toy.conv.weight - expected).abs().max() <= (1e-6 if stored == torch.float32 else 2e-2)


def test_half_a_weight_norm_is_an_error(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state["conv.weight_g"] = state.pop("conv.weight")
    save_single(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"conv\.weight_g has no conv\.weight_v"):
        load_weights(build_module(Toy), tmp_path, transform=fold_weight_norm)


@pytest.mark.parametrize(
    "names", [["shared.weight"], ["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]]
)
def test_the_tied_table_of_the_text_encoder_loads_under_either_name(tmp_path: Path, names: list[str]) -> None:
    model = UMT5EncoderModel(UMT5Config(**tiny.TEXT_ENCODER))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = state.pop("shared.weight")
    del state["encoder.embed_tokens.weight"]
    save_single(tmp_path, state | {name: table.clone() for name in names} | {"decoder.final.weight": torch.ones(1)})
    network = build_network("text_encoder", tiny.TEXT_ENCODER)
    load_weights(network.weights_of, tmp_path, unused=network.unused)
    loaded = network.weights_of
    assert loaded.shared.weight is loaded.encoder.embed_tokens.weight
    assert torch.equal(loaded.shared.weight, table)


def test_a_missing_tied_table_is_one_line(tmp_path: Path) -> None:
    save_file({"decoder.x": torch.ones(1)}, tmp_path / "model.safetensors")
    network = build_network("text_encoder", tiny.TEXT_ENCODER)
    with pytest.raises(CheckpointError, match=r"shared\.weight or encoder\.embed_tokens\.weight \["):
        load_weights(network.weights_of, tmp_path, unused=network.unused)


@pytest.mark.parametrize("part", PUBLISHED)
def test_the_published_tensors_fit_exactly(part: Part) -> None:
    network = build_network(part, published_config(PUBLISHED[part]))
    shapes = published_shapes(PUBLISHED[part])
    used = {
        name: TensorInfo("F32", shape, Path())
        for name, shape in shapes.items()
        if not any(re.match(pattern, name) for pattern in network.unused)
    }
    assert sum(parameter.numel() for parameter in network.module.parameters()) > 10_000_000
    assert misfits(network.weights_of, used, network.transform) == []
    assert all(parameter.is_meta for name, parameter in network.module.named_parameters() if parameter.numel() > 10**6)


def test_a_config_that_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"music_vocoder/config\.json .*dims"):
        build_network("vocoder", {name: value for name, value in tiny.VOCODER.items() if name != "dims"})


@pytest.mark.parametrize("part", list(FOLDERS))
def test_parts_come_ready_to_generate(part: Part) -> None:
    module = load_part(Checkpoint.open("tiny"), part, dtype=torch.bfloat16)
    assert not module.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in module.parameters())
