"""The built-in checkpoint: the published layout, small, the same bytes each time, and something to hear."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from acestep import tiny, tiny_text
from acestep.cache import file_sha256
from acestep.checkpoint import FOLDERS, Checkpoint
from acestep.codec import MusicCodec
from acestep.engine import Engine
from acestep.frames import LATENT_CHANNELS, LATENT_HEIGHT, SAMPLES_PER_FRAME
from acestep.layout import check_layout
from acestep.loading import load_part
from acestep.lyrics.tokenizer import LyricTokenizer
from acestep.models.mel import LogMel
from acestep.request import LANGUAGES, GenerationRequest
from acestep.result import GenerationResult
from acestep.weight_files import read_tensors


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open("tiny")


def sums(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_has_the_published_layout_and_fits_the_networks(checkpoint: Checkpoint) -> None:
    files = {str(path.relative_to(checkpoint.path)) for path in checkpoint.path.rglob("*") if path.is_file()}
    diffusers = ("ace_step_transformer", "music_dcae_f8c8", "music_vocoder")
    assert files == {
        *(f"{folder}/config.json" for folder in FOLDERS.values()),
        *(f"{folder}/diffusion_pytorch_model.safetensors" for folder in diffusers),
        *("umt5-base/model.safetensors", "umt5-base/tokenizer.json", "vocab.json"),
    }
    report = check_layout(checkpoint)
    assert report.ok, report.explain()
    assert 2_000_000 < checkpoint.size_bytes < 6_000_000
    assert checkpoint.random_weights
    assert checkpoint.name == "tiny"
    assert checkpoint.lyric_vocab_origin == "in the checkpoint"


def test_the_vocoder_is_stored_with_weight_norm(checkpoint: Checkpoint) -> None:
    names = set(read_tensors(checkpoint.folder("vocoder")))
    assert {"head.conv_pre.weight_g", "head.conv_pre.weight_v", "head.ups.0.weight_g"} <= names
    assert not any(name.startswith("head.") and name.endswith(".weight") for name in names)
    assert "backbone.channel_layers.0.0.weight" in names


def test_building_gives_the_same_bytes_whatever_the_process(tmp_path: Path, checkpoint: Checkpoint) -> None:
    code = f"import pathlib, acestep.tiny as tiny; tiny.build(pathlib.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sums(tmp_path) == sums(checkpoint.path)


def test_a_new_recipe_is_a_new_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = tiny.tiny_checkpoint()
    assert tiny.tiny_checkpoint() == before
    recipe = tmp_path / "tiny.py"
    recipe.write_text(Path(tiny.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(tiny, "__file__", str(recipe))
    monkeypatch.setattr(tiny, "build", lambda folder: None)
    monkeypatch.setenv("ACESTEP_CACHE", str(tmp_path))
    assert tiny.tiny_checkpoint().name != before.name


@pytest.mark.parametrize("text", ["lo-fi hip-hop", "Grüße, 你好 🎵", "", "\x00\ufffe\n", "नमस्ते"])
def test_any_prompt_can_be_encoded(checkpoint: Checkpoint, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint.folder("text_encoder") / "tokenizer.json"))
    encoding = tokenizer.encode(text)
    assert encoding.ids[-1] == tiny_text.END
    assert tiny_text.UNKNOWN not in encoding.ids
    assert max(encoding.ids) < tiny.TEXT_ENCODER["vocab_size"]
    assert tokenizer.decode(encoding.ids) == text


def test_lyrics_of_every_language_can_be_encoded(checkpoint: Checkpoint) -> None:
    tokenizer = LyricTokenizer(checkpoint.lyric_vocab)
    assert tokenizer.languages == LANGUAGES
    samples = {
        "en": "Hello, world!",
        "de": "Grüße",
        "fr": "où es-tu, cœur",
        "es": "¿dónde estás?",
        "pl": "żółć",
        "cs": "příliš žluťoučký",
        "tr": "ışığım",
        "hu": "őrült",
        "ru": "ещё один день",
        "ar": "مرحبا بالعالم",
        "hi": "नमस्ते दुनिया",
    }
    for language, text in samples.items():
        encoded = tokenizer.encode(text, language)
        assert encoded.unknown_share == 0, (language, encoded.warnings)
        assert max(encoded.ids) < tiny.TRANSFORMER["lyric_encoder_vocab_size"]


def test_special_tokens_are_named_as_published(checkpoint: Checkpoint) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint.lyric_vocab))
    assert [tokenizer.token_to_id(name) for name in ("[STOP]", "[UNK]", "[SPACE]")] == [0, 1, 2]
    for name in ("[START]", "[en]", "[zh-cn]", "[hi]", "[verse]", "[pre-chorus]", "[inst]"):
        assert tokenizer.encode(f"{name}ab").tokens == [name, "a", "b"]
    assert tokenizer.encode("字").ids == [1]
    rows = checkpoint.config("transformer")["lyric_encoder_vocab_size"]
    assert tokenizer.get_vocab_size() <= rows < tokenizer.get_vocab_size() + 32


def test_what_it_decodes_can_be_heard(checkpoint: Checkpoint) -> None:
    autoencoder, vocoder = (load_part(checkpoint, part) for part in ("autoencoder", "vocoder"))
    codec = MusicCodec(autoencoder, vocoder, LogMel.from_config(checkpoint.config("vocoder")))
    latents = torch.randn(2, LATENT_CHANNELS, LATENT_HEIGHT, 21, generator=torch.Generator().manual_seed(0))
    first, second = codec.decode(latents)
    assert first.shape == (2, 21 * SAMPLES_PER_FRAME)
    assert 0.05 < first.abs().max() < 0.9
    assert first.square().mean().sqrt() > 0.02
    assert abs(first.mean()) < 0.05
    assert not torch.allclose(first, second, atol=0.01)  # the latents matter
    assert not torch.allclose(first[0], first[1], atol=0.01)  # it is stereo


@pytest.mark.parametrize(
    "change", [{"prompt": "metal"}, {"lyrics": "[verse]\nother"}, {"guidance_scale": 1}, {"seed": 4}], ids=str
)
@pytest.mark.parametrize("lyrics", ["", "[chorus]\nHold on"])
def test_every_setting_that_should_matter_does(lyrics: str, change: dict[str, Any]) -> None:
    engine = Engine.load("tiny", device="cpu")
    settings = {"prompt": "piano", "lyrics": lyrics, "duration": 1, "seed": 3, "num_inference_steps": 4}
    outcomes = engine.generate([GenerationRequest.parse(settings), GenerationRequest.parse(settings | change)])
    first, second = (outcome.latents for outcome in outcomes if isinstance(outcome, GenerationResult))
    assert (first - second).norm() > 0.05 * first.norm()
