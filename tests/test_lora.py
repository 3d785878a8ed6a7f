"""LoRA adapters: every file format and scale, what is refused, and switching that leaves nothing behind."""

from __future__ import annotations

import gc
import json
import math
import re
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from acestep import lora_stack
from acestep.errors import CheckpointError, InvalidRequestError
from acestep.lora import Adapter
from acestep.lora_files import CONFIG_NAME, ORIGINAL_NAME, PEFT_NAME, LoraFiles
from acestep.lora_stack import AdapterStack
from acestep.models.transformer import ACEStepTransformer, TransformerConfig

RANK = 4
WIDTH = 32
CONFIG = TransformerConfig(
    inner_dim=WIDTH,
    attention_head_dim=16,
    num_attention_heads=2,
    num_layers=2,
    text_embedding_dim=16,
    speaker_embedding_dim=16,
    lyric_encoder_vocab_size=20,
    lyric_hidden_size=16,
    lyric_encoder_num_layers=1,
    lyric_encoder_num_heads=2,
    lyric_encoder_ff_size=24,
    patch_embed_size=64,
)
TO_Q = "transformer_blocks.0.attn.to_q"
TO_K = "transformer_blocks.1.cross_attn.to_k"
POINT_CONV = "transformer_blocks.0.ff.point_conv.conv"
MODULES = (TO_Q, TO_K, POINT_CONV, "lyric_encoder.encoders.0.self_attn.linear_q", "speaker_embedder")

Tensors = dict[str, torch.Tensor]


def make_transformer(dtype: torch.dtype = torch.float32) -> ACEStepTransformer:
    torch.manual_seed(0)
    return ACEStepTransformer(CONFIG).to(dtype).eval().requires_grad_(False)


@pytest.fixture
def transformer() -> ACEStepTransformer:
    return make_transformer()


def matrices(*modules: str, seed: int = 1, rank: int = RANK) -> Tensors:
    """Entries of an adapter for these modules, by the original's names."""
    generator = torch.Generator().manual_seed(seed)
    entries: Tensors = {}
    for module in modules or MODULES:
        out, inner, *kernel = make_transformer().get_submodule(module).weight.shape
        entries[f"{module}.lora_A.weight"] = torch.randn(rank, inner, *kernel, generator=generator)
        entries[f"{module}.lora_B.weight"] = torch.randn(out, rank, *[1 for _ in kernel], generator=generator)
    return entries


def save(folder: Path, entries: Tensors, file: str = ORIGINAL_NAME, **metadata: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries = {name: tensor.clone().contiguous() for name, tensor in entries.items()}
    save_file(entries, folder / file, metadata or None)
    return folder


def product(entries: Tensors, module: str) -> torch.Tensor:
    down, up = (entries[f"{module}.lora_{side}.weight"].float() for side in "AB")
    weight = up.flatten(1) @ down.flatten(1)
    return weight.view(up.shape[0], *down.shape[1:])


def weights_of(transformer: ACEStepTransformer) -> Tensors:
    return {name: parameter.clone() for name, parameter in transformer.named_parameters()}


def same_bits(one: Tensors, other: Tensors) -> bool:
    views = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
    return all(
        torch.equal(one[name].view(views[one[name].dtype]), other[name].view(views[other[name].dtype])) for name in one
    )


def held(transformer: ACEStepTransformer, *adapters: Adapter) -> AdapterStack:
    stack = AdapterStack(transformer)
    for adapter in adapters:
        stack.add(adapter)
    return stack


@pytest.fixture
def one(tmp_path: Path) -> Adapter:
    return Adapter.load(save(tmp_path / "one", matrices(seed=1)))


@pytest.fixture
def two(tmp_path: Path) -> Adapter:
    """Touches one module that `one` touches, and one that it does not."""
    return Adapter.load(save(tmp_path / "two", matrices(TO_K, "genre_embedder", seed=2)))


def renamed(entries: Tensors, prefix: str = "", middle: str = "") -> Tensors:
    return {prefix + name.replace(".weight", f"{middle}.weight"): tensor for name, tensor in entries.items()}


def as_kohya(entries: Tensors) -> Tensors:
    result = {}
    for name, tensor in entries.items():
        module, side, _ = name.rsplit(".", 2)
        kind = {"lora_A": "lora_down", "lora_B": "lora_up"}[side]
        result[f"lora_unet_{module.replace('.', '_')}.{kind}.weight"] = tensor
    return result


def as_first_diffusers(entries: Tensors) -> Tensors:
    sides = (("lora_A", "lora.down"), ("lora_B", "lora.up"))
    return {name.replace(*next(side for side in sides if side[0] in name)): t for name, t in entries.items()}


FORMATS = {
    "original": lambda entries: entries,
    "prefixed": lambda entries: renamed(entries, "transformer."),
    "diffusion_model": lambda entries: renamed(entries, "diffusion_model."),
    "peft": lambda entries: renamed(entries, "base_model.model."),
    "peft in memory": lambda entries: renamed(entries, "base_model.model.", ".default"),
    "peft of diffusers": lambda entries: renamed(entries, "base_model.model.transformer.", ".ace_step_lora"),
    "kohya": as_kohya,
    "diffusers before peft": as_first_diffusers,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_format_means_the_same(
    tmp_path: Path, transformer: ACEStepTransformer, name: str, dtype: torch.dtype
) -> None:
    entries = {key: tensor.to(dtype) for key, tensor in matrices().items()}
    before = weights_of(transformer)
    stack = held(transformer, Adapter.load(save(tmp_path / "style", FORMATS[name](entries))))
    assert stack.activate({"style": 0.5})
    after = weights_of(transformer)
    for module in MODULES:
        expected = before[f"{module}.weight"] + 0.5 * product(entries, module)
        torch.testing.assert_close(after.pop(f"{module}.weight"), expected)
    assert same_bits(after, before), "only the adapter's modules change"


def test_a_merged_module_computes_what_a_branch_beside_it_would(
    transformer: ACEStepTransformer, one: Adapter, tmp_path: Path
) -> None:
    entries = matrices(seed=1)
    x = torch.randn(3, 7, WIDTH)
    linear = transformer.transformer_blocks[0].attn.to_q
    narrow = x @ entries[f"{TO_Q}.lora_A.weight"].T @ entries[f"{TO_Q}.lora_B.weight"].T
    expected = linear(x) + 0.7 * narrow
    held(transformer, one).activate({"one": 0.7})
    torch.testing.assert_close(linear(x), expected, atol=1e-4, rtol=1e-4)


def test_convolutions_and_tables_can_be_adapted(tmp_path: Path, transformer: ACEStepTransformer) -> None:
    patch = "proj_in.early_conv_layers.0"
    entries = matrices(patch)
    table_a, table_b = torch.randn(RANK, 20), torch.randn(16, RANK)
    flat = {name: tensor.flatten(1) for name, tensor in matrices(POINT_CONV).items()}  # As if it were a Linear.
    tables = {"lyric_embs.lora_embedding_A": table_a, "lyric_embs.lora_embedding_B": table_b}
    before = weights_of(transformer)
    held(transformer, Adapter.load(save(tmp_path / "x", entries | flat | tables))).activate({"x": 1})
    after = weights_of(transformer)
    torch.testing.assert_close(after[f"{patch}.weight"], before[f"{patch}.weight"] + product(entries, patch))
    torch.testing.assert_close(after["lyric_embs.weight"], before["lyric_embs.weight"] + (table_b @ table_a).T)
    expected = before[f"{POINT_CONV}.weight"] + product(flat, POINT_CONV)[..., None]
    torch.testing.assert_close(after[f"{POINT_CONV}.weight"], expected)


PEFT_SETTINGS = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "use_rslora": False}


def embedded(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({prefix + key: value for key, value in settings.items()})}


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({}, 1),
        ({"format": "pt"}, 1),
        ({"lora_alpha": "8"}, 2),
        ({"alpha": "2.0"}, 0.5),
        ({"alpha": "8", "use_rslora": "True"}, 4),
        ({"alpha": "8", "use_rslora": "false"}, 2),
        ({"use_rslora": "true"}, 1),
        (embedded(PEFT_SETTINGS), 4),
        (embedded(PEFT_SETTINGS, "transformer."), 4),
        (embedded(PEFT_SETTINGS | {"use_rslora": True}, "transformer."), 8),
        (embedded({"text_encoder.lora_alpha": 9}), 1),
    ],
)
def test_the_scale_is_read_from_the_metadata(tmp_path: Path, metadata: dict[str, str], scale: float) -> None:
    adapter = Adapter.load(save(tmp_path, matrices(), **metadata))
    assert {update.scale for update in adapter.updates.values()} == {scale}


def test_the_scale_is_read_from_pefts_settings(tmp_path: Path) -> None:
    save(tmp_path, renamed(matrices(), "base_model.model."), PEFT_NAME)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(PEFT_SETTINGS | {"use_rslora": True}))
    for source in (tmp_path, tmp_path / PEFT_NAME, f"file://{tmp_path}"):
        adapter = Adapter.load(source)
        assert adapter.name == tmp_path.name
        assert {update.scale for update in adapter.updates.values()} == {16 / math.sqrt(RANK)}


def test_modules_may_have_ranks_and_alphas_of_their_own(tmp_path: Path) -> None:
    entries = matrices("genre_embedder", TO_K) | matrices(TO_Q, "lyric_proj", rank=8)
    save(tmp_path, entries | {f"{TO_Q}.alpha": torch.tensor(24.0)}, PEFT_NAME)
    patterns = {"rank_pattern": {r"attn\.to_q": 8, "^lyric_proj": 8}, "alpha_pattern": {"to_k": 2, "proj": 99}}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(PEFT_SETTINGS | patterns))
    scales = {module: update.scale for module, update in Adapter.load(tmp_path).updates.items()}
    # `proj` is not the last part of `lyric_proj`, so it has the alpha of all.
    assert scales == {"genre_embedder": 16 / 4, TO_K: 2 / 4, TO_Q: 24 / 8, "lyric_proj": 16 / 8}


def test_kohyas_alpha_stands_beside_the_matrices(tmp_path: Path) -> None:
    entries = as_kohya(matrices(TO_Q, TO_K))
    entries[f"lora_unet_{TO_Q.replace('.', '_')}.alpha"] = torch.tensor(2.0, dtype=torch.bfloat16)
    scales = [update.scale for update in Adapter.load(save(tmp_path, entries)).updates.values()]
    assert sorted(scales) == [0.5, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": "a lot"}, "lora_alpha 'a lot'"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"use_rslora": "maybe"}, "use_rslora 'maybe'"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"r": 16}, rf"of another rank \(5\): .*{TO_Q} has 4, its settings say 16"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    save(tmp_path, matrices(), PEFT_NAME)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(PEFT_SETTINGS | settings))
    with pytest.raises(CheckpointError, match=message):
        Adapter.load(tmp_path)


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lora_adapter_metadata is not a JSON object"):
        Adapter.load(save(tmp_path, matrices(), lora_adapter_metadata="[1]"))


def test_everything_in_a_file_that_is_not_a_lora_is_named(tmp_path: Path) -> None:
    entries = matrices()
    del entries[f"{TO_Q}.lora_B.weight"]
    entries |= {
        f"{TO_K}.lora_magnitude_vector": torch.ones(4),
        f"{TO_K}.lora_B.bias": torch.ones(4),
        f"transformer.{TO_K}.lora_B.weight": torch.ones(4, 4),
        "genre_embedder.alpha": torch.tensor(1.0),
        "final_layer.linear.weight": torch.ones(2, 2),
    }
    entries["speaker_embedder.lora_A.weight"][0, 0] = torch.inf
    with pytest.raises(CheckpointError) as caught:
        Adapter.load(save(tmp_path, entries))
    text = str(caught.value)
    assert "not entries of a LoRA (3): " in text
    for name in (f"{TO_K}.lora_magnitude_vector [4]", f"{TO_K}.lora_B.bias [4]", "final_layer.linear.weight [2, 2]"):
        assert name in text
    assert f"incomplete (2): {TO_Q} has A only; genre_embedder has alpha only" in text
    assert re.search(rf"given twice \(1\): (transformer\.)?{TO_K}\.lora_B\.weight", text)
    assert "not finite floating-point numbers (1): speaker_embedder.lora_A.weight" in text


def test_wrong_names_and_shapes_are_all_named(tmp_path: Path, transformer: ACEStepTransformer) -> None:
    wide, narrow = torch.ones(RANK, 99), torch.ones(WIDTH, RANK)
    entries = matrices(POINT_CONV) | {
        f"{TO_Q}.lora_A.weight": wide,
        f"{TO_Q}.lora_B.weight": narrow,
        f"{TO_K}.lora_A.weight": torch.ones(RANK, WIDTH),
        f"{TO_K}.lora_B.weight": torch.ones(WIDTH, RANK + 1),
    }
    for index in range(30):
        entries[f"single_blocks.{index}.linear.lora_A.weight"] = wide
        entries[f"single_blocks.{index}.linear.lora_B.weight"] = narrow
    stack = AdapterStack(transformer)
    with pytest.raises(CheckpointError) as caught:
        stack.add(Adapter.load(save(tmp_path / "other", entries)))
    text = str(caught.value)
    assert text.startswith("adapter 'other' cannot be used:")
    assert "modules that the model does not have (30): single_blocks.0.linear; " in text
    assert text.count("single_blocks") == 20
    assert "; and 10 more" in text
    assert f"{TO_Q} A [4, 99], B [32, 4] for a weight of [32, 32]" in text
    assert f"{TO_K} A [4, 32], B [32, 5] for a weight of [32, 32]" in text
    assert not stack.adapters


@pytest.mark.parametrize("form", [lambda entries: entries, as_kohya])
def test_modules_that_generating_does_not_use_are_left_out(
    tmp_path: Path, transformer: ACEStepTransformer, form: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", lora_stack.__name__)
    unused = [f"transformer_blocks.1.cross_attn.{name}" for name in ("add_q_proj", "add_v_proj", "to_add_out")]
    entries = matrices(TO_K)
    for module in [*unused, "projectors.0.2"]:
        entries[f"{module}.lora_A.weight"] = torch.ones(RANK, WIDTH)
        entries[f"{module}.lora_B.weight"] = torch.ones(WIDTH, RANK)
    stack = held(transformer, Adapter.load(save(tmp_path / "style", form(entries))))
    assert len([record for record in caplog.records if "not used when generating" in record.message]) == 4
    before = weights_of(transformer)
    stack.activate({"style": 1})
    changed = [name for name, weight in weights_of(transformer).items() if not torch.equal(weight, before[name])]
    assert changed == [f"{TO_K}.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_switching_and_back_restores_every_bit(dtype: torch.dtype, one: Adapter, two: Adapter) -> None:
    transformer = make_transformer(dtype)
    places = {name: parameter.data_ptr() for name, parameter in transformer.named_parameters()}
    stack, base = held(transformer, one, two), weights_of(transformer)
    seen: dict[str, Tensors] = {}
    sets: list[dict[str, float]] = [{"one": 1}, {"two": 0.3}, {"one": 1, "two": 0.3}, {"one": -2.5}, {}]
    for weights in [*sets, *reversed(sets), *sets]:
        stack.activate(weights)
        assert stack.active == weights
        now = weights_of(transformer)
        assert same_bits(now, seen.setdefault(str(weights), now)), "a set gives the same bits whatever was before"
    assert len(seen) == 5
    assert same_bits(weights_of(transformer), base)
    assert not stack.activate(None)
    assert {name: parameter.data_ptr() for name, parameter in transformer.named_parameters()} == places
    assert {parameter.dtype for parameter in transformer.parameters()} == {dtype}


def test_bfloat16_weights_are_rounded_once(one: Adapter, two: Adapter) -> None:
    transformer = make_transformer(torch.bfloat16)
    base = transformer.get_parameter(f"{TO_K}.weight").float()
    held(transformer, one, two).activate({"one": 0.01, "two": 0.02})
    entries = matrices(seed=1), matrices(TO_K, "genre_embedder", seed=2)
    exact = base + 0.01 * product(entries[0], TO_K) + 0.02 * product(entries[1], TO_K)
    torch.testing.assert_close(transformer.get_parameter(f"{TO_K}.weight"), exact.bfloat16(), atol=0, rtol=2**-8)


def test_adapters_add_up_in_any_order(transformer: ACEStepTransformer, one: Adapter, two: Adapter) -> None:
    stack, base = held(transformer, one, two), weights_of(transformer)
    stack.activate({"one": 1, "two": 2})
    first = weights_of(transformer)
    expected = base[f"{TO_K}.weight"] + product(matrices(seed=1), TO_K)
    expected += 2 * product(matrices(TO_K, "genre_embedder", seed=2), TO_K)
    torch.testing.assert_close(first[f"{TO_K}.weight"], expected)
    assert not stack.activate({"two": 2, "one": 1})
    stack.activate({})
    stack.activate({"two": 2, "one": 1})
    assert same_bits(weights_of(transformer), first)


def test_the_same_set_again_does_nothing(
    transformer: ACEStepTransformer, one: Adapter, two: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = held(transformer, one, two)
    assert not stack.activate({})
    assert not stack.activate({"one": 0.0})
    assert stack.activate({"one": 1})
    monkeypatch.setattr(stack, "_write", lambda *_: pytest.fail("a weight was written"))
    assert not stack.activate({"one": 1.0, "two": 0})
    assert stack.active == {"one": 1.0}


def test_unloading_frees_and_loading_again_works(tmp_path: Path, transformer: ACEStepTransformer) -> None:
    base = weights_of(transformer)
    folder = save(tmp_path / "style", matrices())
    stack = held(transformer, Adapter.load(folder))
    stack.activate({"style": 1})
    merged = weights_of(transformer)
    watched = [weakref.ref(update.down) for update in stack.adapters["style"].updates.values()]
    watched += [weakref.ref(kept) for kept in stack._bases.values()]
    assert len(watched) == 2 * len(MODULES)
    stack.unload("style")
    gc.collect()
    assert same_bits(weights_of(transformer), base)
    assert (stack.active, dict(stack.adapters)) == ({}, {})
    assert [reference() for reference in watched] == [None] * len(watched)
    with pytest.raises(InvalidRequestError, match="'style' is not allowed; held: none"):
        stack.activate({"style": 1})
    stack.add(Adapter.load(folder))
    assert stack.activate({"style": 1})
    assert same_bits(weights_of(transformer), merged)


def test_unloading_one_leaves_the_other_as_it_was(transformer: ACEStepTransformer, one: Adapter, two: Adapter) -> None:
    stack = held(transformer, one, two)
    stack.activate({"two": 1})
    alone = weights_of(transformer)
    stack.activate({"one": 1, "two": 1})
    stack.unload("one")
    assert stack.active == {"two": 1}
    assert same_bits(weights_of(transformer), alone)
    assert set(stack._bases) == {f"{TO_K}.weight", "genre_embedder.weight"}


def test_an_interrupted_switch_is_made_good_by_the_next(
    transformer: ACEStepTransformer, one: Adapter, two: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, base = held(transformer, one, two), weights_of(transformer)
    stack.activate({"two": 1})
    write, left = stack._write, iter(range(3))

    def fail_later(*args: Any) -> None:
        if next(left, None) is None:
            raise torch.OutOfMemoryError
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stack, "_write", fail_later)
        with pytest.raises(torch.OutOfMemoryError):
            stack.activate({"one": 1})
    assert not same_bits(weights_of(transformer), base)
    assert stack.activate({})
    assert same_bits(weights_of(transformer), base)


def test_what_cannot_be_activated_is_named_and_changes_nothing(transformer: ACEStepTransformer, one: Adapter) -> None:
    stack = held(transformer, one)
    stack.activate({"one": 1})
    with pytest.raises(InvalidRequestError, match="'onee' is not allowed; held: one; did you mean 'one'"):
        stack.activate({"onee": 1})
    for weight in (float("nan"), float("inf"), "1"):
        with pytest.raises(InvalidRequestError, match=r"lora\.one: .* must be a finite number"):
            stack.activate({"one": weight})  # type: ignore[dict-item]
    with pytest.raises(InvalidRequestError, match="held: one"):
        stack.unload("two")
    assert stack.active == {"one": 1}


def test_a_name_means_one_content(tmp_path: Path, transformer: ACEStepTransformer, one: Adapter) -> None:
    stack = held(transformer, one)
    stack.add(Adapter.load(tmp_path / "one"))
    assert stack.adapters["one"] is one
    other = save(tmp_path / "elsewhere" / "one", matrices(seed=9))
    with pytest.raises(CheckpointError, match="another adapter named 'one'"):
        stack.add(Adapter.load(other))
    stack.add(Adapter.load(other, name="other"))
    assert set(stack.adapters) == {"one", "other"}


def test_a_network_made_in_inference_mode_can_be_switched(one: Adapter) -> None:
    with torch.inference_mode():
        transformer = make_transformer()
    stack, base = held(transformer, one), weights_of(transformer)
    stack.activate({"one": 1})
    stack.activate(None)
    assert same_bits(weights_of(transformer), base)


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    first, again = (LoraFiles.open(save(tmp_path / name, matrices())) for name in "ab")
    other = LoraFiles.open(save(tmp_path / "c", matrices(seed=5)))
    assert first.fingerprint() == again.fingerprint() == Adapter.load(tmp_path / "a").fingerprint
    assert first.fingerprint() != other.fingerprint()
    assert len(first.fingerprint()) == 64
    (tmp_path / "b" / CONFIG_NAME).write_text("{}")
    assert LoraFiles.open(tmp_path / "b").fingerprint() != first.fingerprint()


@pytest.fixture
def memory_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import fsspec

    monkeypatch.setenv("ACESTEP_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def test_an_adapter_comes_from_any_store(tmp_path: Path, memory_store: Any) -> None:
    save(tmp_path / "one", matrices())
    peft = save(tmp_path / "two", renamed(matrices(), "base_model.model."), PEFT_NAME)
    (peft / CONFIG_NAME).write_text(json.dumps(PEFT_SETTINGS))
    memory_store.put(str(tmp_path / "one"), "/styles/one", recursive=True)
    memory_store.put(str(tmp_path / "two"), "/styles/two", recursive=True)
    scales = {
        f"memory://styles/one/{ORIGINAL_NAME}": ("one", 1),
        "memory://styles/one": ("one", 1),
        f"memory://styles/two/{PEFT_NAME}": ("two", 4),
        "memory://styles/two/": ("two", 4),
    }
    for url, (name, scale) in scales.items():
        adapter = Adapter.load(url)
        assert (adapter.name, adapter.updates[TO_Q].scale) == (name, scale), url
    memory_store.rm(f"/styles/two/{CONFIG_NAME}")
    assert Adapter.load(f"memory://styles/two/{PEFT_NAME}").updates[TO_Q].scale == 1
    with pytest.raises(CheckpointError, match="memory://styles/none"):
        Adapter.load("memory://styles/none")


def test_a_module_named_in_two_ways_is_refused(tmp_path: Path, transformer: ACEStepTransformer) -> None:
    folder = save(tmp_path / "x", matrices(TO_Q) | as_kohya(matrices(TO_Q)))
    with pytest.raises(CheckpointError, match=r"given twice \(1\)"):
        AdapterStack(transformer).add(Adapter.load(folder))


def test_an_adapter_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot(repository: str, revision: str | None, patterns: list[str], *, what: str) -> Path:
        asked.append((repository, revision, what))
        return tmp_path / "snapshot"

    monkeypatch.setattr("acestep.lora_files.fetch_snapshot", snapshot)
    with pytest.raises(CheckpointError, match="found nothing; a file of another name: hf://owner/style/"):
        Adapter.load("owner/style")
    save(tmp_path / "snapshot", matrices())
    assert Adapter.load("owner/style@v1").name == "owner/style@v1"
    assert asked == [("owner/style", None, "adapter"), ("owner/style", "v1", "adapter")]


def test_a_file_of_any_name_will_do_if_it_is_clear_which(tmp_path: Path) -> None:
    folder = save(tmp_path / "styles", matrices(), "rap.safetensors")
    assert Adapter.load(folder).name == "styles"
    assert Adapter.load(folder / "rap.safetensors", name="r").name == "r"
    save(folder, matrices(seed=3), "choir.safetensors")
    assert Adapter.load(folder / "rap.safetensors").name == "rap"
    with pytest.raises(CheckpointError, match=r"several: choir\.safetensors, rap\.safetensors; name one"):
        Adapter.load(folder)


def test_finding_and_fingerprinting_need_no_torch() -> None:
    code = "import sys, acestep.lora_files; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.gpu
def test_on_a_gpu_switching_restores_every_bit_and_unloading_frees(one: Adapter, two: Adapter) -> None:
    transformer = make_transformer(torch.bfloat16).cuda()
    base = weights_of(transformer)
    stack = held(transformer, one, two)
    memory = torch.cuda.memory_allocated()
    stack.activate({"one": 1, "two": 0.5})
    merged = weights_of(transformer)
    for weights in ({"two": 1.0}, {"one": 1.0}, {"one": 1.0, "two": 0.5}):
        stack.activate(weights)
    assert same_bits(weights_of(transformer), merged)
    assert all(kept.is_pinned() for kept in stack._bases.values())
    stack.unload("one")
    stack.unload("two")
    assert same_bits(weights_of(transformer), base)
    assert not stack._bases
    del merged
    assert torch.cuda.memory_allocated() == memory


def test_what_is_no_adapter_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "adapter.bin").write_bytes(b"PK pickled" * 10)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Adapter.load(tmp_path / "adapter.bin")
    with pytest.raises(CheckpointError, match=r"looked for pytorch_lora_weights.safetensors.*found adapter\.bin"):
        Adapter.load(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist; an adapter is a folder"):
        Adapter.load(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="holds no LoRA entries"):
        Adapter.load(save(tmp_path / "empty", {}))
    file = save(tmp_path / "short", matrices()) / ORIGINAL_NAME
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cut short"):
        Adapter.load(file)
