"""A checkpoint in one file becomes the same four parts; what does not fit is refused; its tokenizer cuts as before."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from acestep import single_file
from acestep.checkpoint import FOLDERS, Checkpoint, Part
from acestep.errors import CheckpointError
from acestep.layout import check_layout
from acestep.loading import build_network, load_part
from acestep.sentencepiece_model import SentencePieceModel
from acestep.single_file import PUBLISHED, TOKENIZER, parts_of
from acestep.tiny import tiny_checkpoint
from acestep.tokens import RequestTokenizer
from acestep.weight_files import TensorInfo, read_json, weight_files
from acestep.weights import misfits
from tests.recipe import published_config, published_shapes

COMFYUI: dict[Part, str] = {
    "transformer": "model.diffusion_model.",
    "autoencoder": "vae.dcae.",
    "vocoder": "vae.vocoder.",
    "text_encoder": "text_encoders.umt5base.transformer.",
}
NAME = "ace_step_v1_small.safetensors"

Tensors = dict[str, torch.Tensor]


def message(*fields: tuple[int, int | float | str | bytes]) -> bytes:
    """A protocol-buffers message."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value % 2**64)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def sentencepiece(kind: int = 1, **changes: int) -> bytes:
    """A model with a few pieces, and bytes for the rest, whose ids all fit into the small text encoder's table."""
    pieces = [
        ("<pad>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<unk>", 0.0, 2),
        *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    ]
    pieces += [("\u2581", -3.0, 1), ("\u2581pop", -4.0, 1), ("po", -5.0, 1), ("p", -6.0, 1), ("o", -6.0, 1)]
    entries = [(1, message((1, text), (2, score), (3, type_))) for text, score, type_ in pieces]
    trainer = {"unk": 2, "end": 1} | changes
    numbers = ((3, kind), (35, 1), (40, trainer["unk"]), (42, trainer["end"]), (43, -1))
    return message(*entries, (2, message(*numbers)), (3, message((1, "identity"))))


@pytest.fixture(scope="module")
def tiny() -> Path:
    return tiny_checkpoint()


@pytest.fixture
def tensors(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensors:
    """What the file of the built-in checkpoint holds; its configs stand for the published ones."""
    monkeypatch.setenv("ACESTEP_CACHE", str(tmp_path / "cache"))
    configs = tmp_path / "published"
    configs.mkdir()
    monkeypatch.setattr(single_file, "PUBLISHED", configs)
    named: Tensors = {}
    for part, folder in FOLDERS.items():
        shutil.copy(tiny / folder / "config.json", configs / f"{folder}.json")
        (file,) = weight_files(tiny / folder)
        named |= {COMFYUI[part] + name: tensor for name, tensor in load_file(file).items()}
    named["text_encoders.umt5base.logit_scale"] = torch.tensor(4.6)
    named["text_encoders.spiece_model"] = torch.frombuffer(bytearray(sentencepiece()), dtype=torch.uint8)
    return named


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Tensors], Path]:
    def file_of(tensors: Tensors) -> Path:
        folder = tmp_path / "models"
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / NAME)
        return folder / NAME

    return file_of


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in tensors.items()}


def weights_of(checkpoint: Checkpoint, part: Part) -> Tensors:
    return load_part(checkpoint, part).state_dict()


def test_the_parts_are_those_of_the_folders(tiny: Path, tensors: Tensors, write: Callable[[Tensors], Path]) -> None:
    file = write(tensors)
    folders = Checkpoint.open(tiny)
    for source in (file, str(file), f"file://{file}"):
        checkpoint = Checkpoint.open(source)
        assert (checkpoint.name, checkpoint.source) == ("ace_step_v1_small", str(source))
    assert check_layout(checkpoint).ok
    for part in FOLDERS:
        assert checkpoint.config(part) == folders.config(part)
        got, want = weights_of(checkpoint, part), weights_of(folders, part)
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_prompts_are_cut_by_the_file_s_own_tokenizer(
    tiny: Path, tensors: Tensors, write: Callable[[Tensors], Path]
) -> None:
    checkpoint = Checkpoint.open(write(tensors), lyric_vocab=str(tiny / "vocab.json"))
    prompts = RequestTokenizer.from_checkpoint(checkpoint)._prompts
    assert prompts.encode("pop  poo").tokens == ["\u2581pop", "\u2581", "po", "o", "</s>"]


def test_a_file_is_laid_out_once_and_again_when_it_changes(
    tiny: Path, tensors: Tensors, write: Callable[[Tensors], Path]
) -> None:
    file = write(tensors)
    shutil.copy(tiny / "vocab.json", file.with_name("lyric_vocab.json"))
    first = Checkpoint.open(file)
    assert first.lyric_vocab == first.path / "lyric_vocab.json"
    times = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    second = Checkpoint.open(file)
    assert second.path == first.path
    assert {path: path.stat().st_mtime_ns for path in second.path.rglob("*")} == times
    assert second.fingerprint("float32") == first.fingerprint("float32")
    tensors["vae.dcae.decoder.conv_in.bias"] += 1
    third = Checkpoint.open(write(tensors))
    assert third.path != first.path
    assert third.fingerprint("float32") != first.fingerprint("float32")


@pytest.mark.parametrize("prefix", ["", "transformer.", "model.diffusion_model.model."])
def test_other_prefixes_will_do(tensors: Tensors, write: Callable[[Tensors], Path], prefix: str) -> None:
    checkpoint = Checkpoint.open(write(renamed(tensors, COMFYUI["transformer"], prefix)))
    assert check_layout(checkpoint).ok


def test_numbers_of_several_sizes_are_kept_as_they_are(tensors: Tensors, write: Callable[[Tensors], Path]) -> None:
    for index, name in enumerate(sorted(tensors)):
        if tensors[name].dtype == torch.float32:
            tensors[name] = tensors[name].to([torch.float16, torch.float32, torch.bfloat16][index % 3])
    checkpoint = Checkpoint.open(write(tensors))
    for part, prefix in COMFYUI.items():
        (file,) = weight_files(checkpoint.folder(part))
        for name, value in load_file(file).items():
            assert value.dtype == tensors[prefix + name].dtype
            assert torch.equal(value, tensors[prefix + name])


def test_a_tensor_too_many_or_too_few_is_named(tensors: Tensors, write: Callable[[Tensors], Path]) -> None:
    del tensors["vae.dcae.decoder.conv_in.bias"]
    tensors["vae.dcae.decoder.extra"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"missing \(1\): decoder.conv_in.bias \[32\]\n.*decoder.extra \[3\]"):
        load_part(Checkpoint.open(write(tensors)), "autoencoder")
    tensors["optimizer.step"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 tensors that belong to no part: optimizer.step"):
        Checkpoint.open(write(tensors))


def test_a_file_without_a_part_is_refused_by_name(tensors: Tensors, write: Callable[[Tensors], Path]) -> None:
    some = {name: value for name, value in tensors.items() if not name.startswith(("vae.vocoder.", "text_encoders."))}
    with pytest.raises(CheckpointError, match=r"lacks the vocoder and the text encoder\. .* all four parts"):
        Checkpoint.open(write(some))
    with pytest.raises(CheckpointError, match="holds no part of an ACE-Step v1 model"):
        Checkpoint.open(write({"lora_A.weight": torch.zeros(2)}))
    twice = tensors | {"ema.lyric_embs.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"more than one transformer: under ema\., model\.diffusion_model\."):
        Checkpoint.open(write(twice))


def test_a_file_cut_short_is_refused(tensors: Tensors, write: Callable[[Tensors], Path]) -> None:
    file = write(tensors)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is cut short"):
        Checkpoint.open(file)
    assert not list((file.parent.parent / "cache").glob("single-*"))


def test_without_a_tokenizer_one_can_be_given(
    tiny: Path, tensors: Tensors, write: Callable[[Tensors], Path], tmp_path: Path
) -> None:
    del tensors["text_encoders.spiece_model"]
    file = write(tensors)
    given = tiny / FOLDERS["text_encoder"] / TOKENIZER
    with pytest.raises(CheckpointError, match=r"no prompt tokenizer: .* give it as prompt_tokenizer"):
        Checkpoint.open(file)
    checkpoint = Checkpoint.open(file, prompt_tokenizer=str(given))
    assert (checkpoint.folder("text_encoder") / TOKENIZER).read_bytes() == given.read_bytes()
    shutil.copy(given, file.parent)
    assert (Checkpoint.open(file).folder("text_encoder") / TOKENIZER).read_bytes() == given.read_bytes()
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.open(file, prompt_tokenizer=str(tmp_path / "none.json"))
    with pytest.raises(CheckpointError, match="is for a checkpoint in one file, not for 'tiny'"):
        Checkpoint.open("tiny", prompt_tokenizer=str(given))


@pytest.mark.parametrize(
    ("model", "message_"),
    [
        (b"\x0a\xff", "breaks off|cannot be read"),
        (b"", "it has 0 pieces"),
        (sentencepiece(kind=2), "a model of kind 2; only Unigram"),
        (sentencepiece(end=400), "ids 2 and 400 are not among them"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    tensors: Tensors, write: Callable[[Tensors], Path], model: bytes, message_: str
) -> None:
    tensors["text_encoders.spiece_model"] = torch.from_numpy(np.frombuffer(model, np.uint8).copy())
    with pytest.raises(CheckpointError, match=rf"the prompt tokenizer in .* cannot be used: .*({message_})"):
        Checkpoint.open(write(tensors))


def test_the_published_names_are_found_and_fit() -> None:
    networks = {part: build_network(part, read_json(PUBLISHED / f"{folder}.json")) for part, folder in FOLDERS.items()}
    shapes: dict[Part, dict[str, tuple[int, ...]]] = {
        part: published_shapes(FOLDERS[part]) for part in FOLDERS if part != "text_encoder"
    }
    encoder = networks["text_encoder"].weights_of.state_dict()
    shapes["text_encoder"] = {name: tuple(tensor.shape) for name, tensor in encoder.items()}
    header: dict[str, dict[str, Any]] = {
        COMFYUI[part] + name: {"shape": shape} for part in FOLDERS for name, shape in shapes[part].items()
    }
    header["text_encoders.spiece_model"] = {"shape": (5,)}
    for part, entries in parts_of(header, "the file").items():
        infos = {name: TensorInfo("F16", entry["shape"], Path()) for name, entry in entries.items()}
        unused = "|".join(networks[part].unused)
        used = {name: info for name, info in infos.items() if not (unused and re.match(unused, name))}
        assert misfits(networks[part].weights_of, used, networks[part].transform) == []


@pytest.mark.parametrize("part", [part for part in FOLDERS if part != "text_encoder"])
def test_the_configs_are_the_published_ones(part: Part) -> None:
    assert read_json(PUBLISHED / f"{FOLDERS[part]}.json") == published_config(FOLDERS[part])


def test_the_text_encoder_is_umt5_base() -> None:
    module = build_network("text_encoder", read_json(PUBLISHED / "umt5-base.json")).module
    assert sum(parameter.numel() for parameter in module.parameters()) == 281_861_376


# --- the tokenizer


def cut(text: str, **changes: int) -> list[str]:
    file = SentencePieceModel.parse(sentencepiece(**changes)).tokenizers_file()
    return Tokenizer.from_str(json.dumps(file)).encode(text).tokens


def test_text_is_cut_into_pieces_and_bytes() -> None:
    assert cut("") == ["</s>"]
    assert cut("pop") == ["\u2581pop", "</s>"]
    assert cut("  pop \t pop ") == ["\u2581pop", "\u2581pop", "</s>"]
    assert cut("pope\u0301") == ["\u2581pop", "<0x65>", "<0xCC>", "<0x81>", "</s>"]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_bytes_that_are_no_model_are_refused(data: st.DataObject) -> None:
    model = bytearray(sentencepiece())
    if data.draw(st.booleans()):
        model = model[: data.draw(st.integers(0, len(model) - 1))]
    for _ in range(data.draw(st.integers(1, 5))):
        if model:
            model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert SentencePieceModel.parse(bytes(model)).pieces
