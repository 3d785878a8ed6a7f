"""REPA teachers: what they hear, in what shape, and that it says something about the sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from acestep.errors import CheckpointError
from acestep.frames import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep.synth import Piece, render
from acestep.training import teachers
from acestep.training.teachers import AudioEncoder, LogMelChroma, heads_for, open_teacher
from tests.small_training import make_transformer

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 8),
    "conv_stride": (5, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
STRIDE = 20
"""Samples of the small encoders' frames."""


def sine(frequency: float, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return np.tile(level * np.sin(2 * np.pi * frequency * time), (2, 1)).astype(np.float32)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum()))


def piece(**changes: object) -> Piece:
    values = {"instrument": "piano", "tempo": 120, "root": 0, "mode": "major", "density": "busy", "drums": False}
    return Piece(**values | {"bass": False, "seed": 1} | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured() -> LogMelChroma:
    teacher = open_teacher("logmel-chroma")
    assert isinstance(teacher, LogMelChroma)
    return teacher


@pytest.mark.parametrize("samples", [1, SAMPLES_PER_FRAME, SAMPLES_PER_FRAME + 1, 3 * SAMPLE_RATE])
def test_a_measured_frame_is_a_latent_frame(measured: LogMelChroma, samples: int) -> None:
    heard = measured(np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32))
    assert heard.shape == (-(-samples // SAMPLES_PER_FRAME), measured.dim) and heard.dtype == np.float32
    assert np.isfinite(heard).all()
    assert 64 <= measured.dim <= 160 and measured.name == "logmel-chroma"


def test_measuring_is_deterministic_and_deaf_to_loudness(measured: LogMelChroma) -> None:
    song = render(piece(), 4)
    heard = measured(song)
    assert measured(song).tobytes() == heard.tobytes()
    np.testing.assert_allclose(measured(song / 3), heard, atol=0.02)
    assert np.abs(heard.astype(np.float16).astype(np.float32) - heard).max() < 0.01, "float16 will do"


def test_silence_is_no_trouble(measured: LogMelChroma) -> None:
    heard = measured(np.zeros((2, 50_000), dtype=np.float32))
    assert np.isfinite(heard).all() and np.abs(heard).max() < 10


@pytest.mark.parametrize(("frequency", "pitch_class"), [(440.0, 9), (261.63, 0), (659.26, 4), (233.08, 10)])
def test_the_strongest_pitch_class_is_that_of_the_note(
    measured: LogMelChroma, frequency: float, pitch_class: int
) -> None:
    chroma = measured(sine(frequency))[2:-2, 64:76]
    assert (chroma.argmax(axis=1) == pitch_class).all()
    np.testing.assert_allclose(np.linalg.norm(chroma, axis=1), 1, atol=1e-4)


def test_onsets_are_heard_where_they_are(measured: LogMelChroma) -> None:
    clicks = np.zeros((2, 20 * SAMPLES_PER_FRAME), dtype=np.float32)
    starts = [(5, 0), (9, 3), (14, 6)]
    for frame, eighth in starts:
        start = frame * SAMPLES_PER_FRAME + eighth * 512
        clicks[:, start : start + 40] = 0.9
    rhythm = measured(clicks)[:, 76:].flatten()
    for frame, eighth in starts:
        at = 8 * frame + eighth
        assert at - 2 <= rhythm[at - 4 : at + 5].argmax() + at - 4 <= at + 2
    assert rhythm[8 * 16 :].max() < 0.1 * rhythm.max()


def test_each_third_says_what_it_is_about(measured: LogMelChroma) -> None:
    heard = measured(render(piece(), 4))
    parts = {"colour": slice(0, 64), "harmony": slice(64, 76), "rhythm": slice(76, 84)}

    def distances(**changes: object) -> dict[str, float]:
        other = measured(render(piece(**changes), 4))
        return {name: 1 - cosine(heard[:, part], other[:, part]) for name, part in parts.items()}

    marimba, tritone, slower = distances(instrument="marimba"), distances(root=6), distances(tempo=72)
    assert marimba["colour"] > 0.4 and marimba["harmony"] < 0.1
    assert tritone["harmony"] > 0.8 and tritone["rhythm"] < 0.05
    assert slower["rhythm"] > 0.6


def test_no_part_drowns_the_others(measured: LogMelChroma) -> None:
    heard = np.concatenate([measured(render(piece(instrument=i, drums=True), 4)) for i in ("flute", "guitar", "synth")])
    shares = [float(np.square(heard[:, part]).sum(axis=1).mean()) for part in np.split(np.arange(84), [64, 76])]
    assert max(shares) < 4 * min(shares), shares
    mean = heard.mean(axis=0)
    assert np.square(mean).sum() < 0.6 * sum(shares), "frames differ, or any would do"


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    models = {"hubert": HubertModel(HubertConfig(**SIZES)), "wav2vec2": Wav2Vec2Model(Wav2Vec2Config(**SIZES))}
    for rate, (name, model) in zip((16_000, 24_000), models.items(), strict=True):
        model.save_pretrained(root / name)
        Wav2Vec2FeatureExtractor(sampling_rate=rate).save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.mark.parametrize(("name", "rate"), [("hubert", 16_000), ("wav2vec2", 24_000)])
def test_an_encoder_hears_at_its_own_rate(encoders: dict[str, Path], name: str, rate: int) -> None:
    teacher = open_teacher(str(encoders[name]))
    heard = teacher(sine(440, 2))
    assert heard.dtype == np.float32 and heard.shape[1] == teacher.dim == 24
    assert abs(len(heard) - 2 * rate / STRIDE) <= 3
    assert teacher(sine(440, 2)).tobytes() == heard.tobytes()
    np.testing.assert_allclose(teacher(sine(440, 2, level=0.05)), heard, atol=1e-3)
    assert np.abs(teacher(sine(880, 2)) - heard).max() > 1e-2


def test_it_is_the_hidden_states_of_the_normalised_song(encoders: dict[str, Path]) -> None:
    from acestep.resample import resample

    song = render(piece(), 2)
    samples = resample(torch.from_numpy(song.mean(axis=0)), SAMPLE_RATE, 16_000)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(encoders["hubert"])
    values = extractor(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = HubertModel.from_pretrained(encoders["hubert"]).eval()(values).last_hidden_state[0]
    np.testing.assert_allclose(open_teacher(str(encoders["hubert"]))(song), expected.numpy(), atol=1e-4)


def test_long_songs_are_heard_in_equal_parts(encoders: dict[str, Path]) -> None:
    model = HubertModel.from_pretrained(encoders["hubert"])
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[-1]))
    teacher = AudioEncoder("x", model, Wav2Vec2FeatureExtractor(), chunk_seconds=1.0)
    heard = teacher(sine(440, 2.5))
    assert len(lengths) == 3 and max(lengths) - min(lengths) <= 2 and max(lengths) <= 16_000
    assert abs(len(heard) - 2.5 * 16_000 / STRIDE) <= 9
    assert len(teacher(sine(440, 0.001))) >= 1
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training


@pytest.mark.parametrize("shape", [(1, 100), (2, 0), (100,), (2, 2, 10)])
def test_what_is_no_stereo_is_refused(encoders: dict[str, Path], shape: tuple[int, ...]) -> None:
    for teacher in (open_teacher("logmel-chroma"), open_teacher(str(encoders["hubert"]))):
        with pytest.raises(ValueError, match=r"must be \[2, W\], not"):
            teacher(np.zeros(shape, dtype=np.float32))


def test_what_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="did you mean 'logmel-chroma'"):
        open_teacher("logmel_chroma")
    with pytest.raises(ValueError, match="allowed: 'logmel-chroma', 'hub:<id>' and the folder"):
        open_teacher(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        open_teacher(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="teacher 'hub:nobody/nothing' cannot be loaded"):
        open_teacher("hub:nobody/nothing")


def test_a_model_of_spectrograms_is_refused(tmp_path: Path) -> None:
    ASTModel(ASTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    ASTFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="ASTModel, which does not hear waveforms"):
        open_teacher(str(tmp_path))


def test_code_of_strangers_runs_only_when_it_may(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}')
    (tmp_path / "code.py").write_text('raise SystemExit("it ran")')
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        open_teacher(str(tmp_path))


def test_heads_for_teachers_listen_a_third_of_the_way() -> None:
    transformer = make_transformer(num_layers=6)
    heads = heads_for(transformer, [84, 768])
    assert heads.depths == (2, 2)
    x = torch.randn(1, 5, transformer.config.inner_dim)
    assert [head(x).shape[-1] for head in heads.projectors] == [84, 768]
    assert heads_for(transformer, [8], depth=5).depths == (5,)
    for depth in (-1, 6):
        with pytest.raises(ValueError, match=rf"depth: {depth} is not allowed; it must be 0 to 5"):
            heads_for(transformer, [8], depth)
    assert teachers.HUB == "hub:"
