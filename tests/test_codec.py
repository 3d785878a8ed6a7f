"""The codec: sizes, names, batches, dtypes, and what it refuses. What it computes is held by the golden vectors."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from acestep import codec as codec_module
from acestep.codec import MusicCodec
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.vocoder import Vocoder
from acestep.models.weight_norm import fold_weight_norm
from tests.recipe import fill_by_recipe, published_config, published_shapes

AUTOENCODER = published_config("music_dcae_f8c8") | {
    "_class_name": "AutoencoderDC",
    "attention_head_dim": 8,
    "encoder_block_out_channels": [8, 8, 16, 16],
    "decoder_block_out_channels": [8, 8, 16, 16],
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1],
}
VOCODER = published_config("music_vocoder") | {
    "_class_name": "ADaMoSHiFiGANV1",
    "depths": [1, 1],
    "dims": [8, 16],
    "num_mels": 16,
    "upsample_initial_channel": 128,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
}


def small_codec() -> MusicCodec:
    codec = MusicCodec.from_config(AUTOENCODER, VOCODER)
    fill_by_recipe(codec)  # torch's own initialisation would leave the sound nearly constant
    return codec.eval()


@pytest.fixture(scope="module")
def codec() -> MusicCodec:
    return small_codec()


@pytest.mark.parametrize(("part", "kind"), [("music_dcae_f8c8", MusicAutoencoder), ("music_vocoder", Vocoder)])
def test_parameters_are_named_and_shaped_as_published(part: str, kind: type[MusicAutoencoder] | type[Vocoder]) -> None:
    with torch.device("meta"):
        model = kind.from_config(published_config(part))
    published = {name: torch.empty(shape, device="meta") for name, shape in published_shapes(part).items()}
    used = {n: t for n, t in published.items() if not any(re.match(p, n) for p in kind.UNUSED_TENSORS)}
    expected = {name: tensor.shape for name, tensor in fold_weight_norm(used).items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == expected


def test_sizes(codec: MusicCodec) -> None:
    assert (codec.sample_rate, codec.hop_length, codec.samples_per_frame) == (44_100, 512, 4096)
    latents = codec.encode(torch.randn(3, 2, 10_000))
    assert latents.shape == (3, 8, 16, 3)
    assert latents.dtype == torch.float32
    waveform = codec.decode(latents)
    assert waveform.shape == (3, 2, 3 * 4096)
    assert waveform.abs().max() <= 1


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 20_000))
def test_encode_pads_with_silence_to_whole_frames(samples: int) -> None:
    codec = small_codec()
    waveform = 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(samples))
    num_frames = -(-samples // 4096)
    padded = torch.zeros(2, num_frames * 4096)
    padded[:, :samples] = waveform
    latents = codec.encode(waveform)
    assert latents.shape == (1, 8, 16, num_frames)
    assert torch.equal(latents, codec.encode(padded))


@settings(max_examples=5, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(1, 9))
def test_an_item_of_a_batch_equals_the_item_alone(batch: int, num_frames: int, frames_per_pass: int) -> None:
    codec = small_codec()
    latents = torch.randn(batch, 8, 16, num_frames, generator=torch.Generator().manual_seed(batch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_module, "FRAMES_PER_PASS", frames_per_pass)
        together = codec.decode(latents)
        again = codec.encode(together)
    for index in range(batch):
        alone = codec.decode(latents[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again[index], codec.encode(together[index])[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_channels_are_vocoded_on_their_own(codec: MusicCodec) -> None:
    mel = torch.randn(2, 128, 9, generator=torch.Generator().manual_seed(3))
    both = codec.vocoder(mel)
    assert both.shape == (2, 1, 9 * 512)
    torch.testing.assert_close(both[1:], codec.vocoder(mel[1:]), rtol=1e-4, atol=1e-6)


def test_decode_depends_on_the_whole_song(codec: MusicCodec) -> None:
    latents = torch.randn(1, 8, 16, 40, generator=torch.Generator().manual_seed(4))
    changed = latents.clone()
    changed[..., -1] += 5
    far_away = slice(0, 4096)
    assert not torch.equal(codec.decode(latents)[..., far_away], codec.decode(changed)[..., far_away])


def test_bfloat16_weights_give_float32_near_the_full_precision() -> None:
    full, half = small_codec(), small_codec().to(torch.bfloat16)
    waveform = 0.3 * torch.randn(2, 8192, generator=torch.Generator().manual_seed(5))
    latents = full.encode(waveform)
    for got, want in ((half.encode(waveform), latents), (half.decode(latents), full.decode(latents))):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.05 * want.norm()
    assert torch.equal(half.log_mel(waveform), full.log_mel(waveform))


def test_the_spectrogram_survives_an_empty_move() -> None:
    waveform = torch.randn(1, 4096)
    codec = small_codec()
    want = codec.log_mel(waveform)
    with torch.device("meta"):
        built = MusicCodec.from_config(AUTOENCODER, VOCODER)
    assert torch.equal(built.to_empty(device="cpu").log_mel(waveform), want)
    assert not list(built.log_mel.state_dict())


@pytest.mark.parametrize("hz", [150.0, 440.0, 1000.0, 5000.0, 15000.0])
def test_a_tone_lights_its_own_mel_bin(codec: MusicCodec, hz: float) -> None:
    def slaney(frequency: float) -> float:
        return frequency * 0.015 if frequency < 1000 else 15 + 27 * torch.tensor(frequency / 1000).log() / 1.85629799

    time = torch.arange(44_100) / 44_100
    mel = codec.log_mel(torch.sin(2 * torch.pi * hz * time))
    assert mel.shape == (128, 86)
    place = (slaney(hz) - slaney(40)) / (slaney(16_000) - slaney(40)) * 129 - 1
    assert abs(mel[:, 40].argmax() - place) <= 1


def test_log_mel_keeps_leading_dimensions(codec: MusicCodec) -> None:
    waveform = torch.randn(3, 2, 5 * 512)
    mel = codec.log_mel(waveform)
    assert mel.shape == (3, 2, 128, 5)
    torch.testing.assert_close(mel[2, 1], codec.log_mel(waveform[2, 1]))


@pytest.mark.parametrize(
    "waveform", [torch.zeros(4096), torch.zeros(1, 4096), torch.zeros(2, 0), torch.zeros(1, 2, 2, 4096)]
)
def test_only_stereo_is_encoded(codec: MusicCodec, waveform: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \[2, W\] or \[B, 2, W\]"):
        codec.encode(waveform)


@pytest.mark.parametrize("shape", [(8, 16, 4), (1, 16, 8, 4), (1, 8, 16, 0)])
def test_only_latents_are_decoded(codec: MusicCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[B, 8, 16, T\]"):
        codec.decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate": 48_000}, "sample rate: 48,000 instead of 44,100"),
        ({"hop_length": 256, "upsample_rates": [4, 4, 2, 2, 2, 2, 1]}, "hop length: 256 instead of 512"),
        ({"n_mels": 64}, "latent height: 8 instead of 16"),
        ({"input_channels": 80}, "mel bins of the vocoder: 80 instead of 128"),
    ],
)
def test_a_vocoder_that_does_not_fit_the_model_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MusicCodec.from_config(AUTOENCODER, VOCODER | changes)


def test_an_autoencoder_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="latent channels: 4 instead of 8"):
        MusicCodec.from_config(AUTOENCODER | {"latent_channels": 4}, VOCODER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample_block_type": "pixel_shuffle"}, "upsample_block_type is 'pixel_shuffle'"),
        ({"decoder_act_fns": ["silu", "relu"]}, "decoder_act_fns"),
        ({"encoder_block_types": "Transformer"}, "unknown block type 'Transformer'"),
        ({"encoder_layers_per_block": [1, 1, 1]}, "must list the same stages"),
        ({"encoder_layers_per_block": [1, 1, 1, 0]}, "each at least 1"),
        ({"attention_head_dim": 32}, "too few for attention heads of 32"),
        ({"decoder_block_out_channels": [8, 8]}, "the encoder has 4 stages, the decoder 2"),
    ],
)
def test_autoencoder_configs_that_are_not_known_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MusicAutoencoder.from_config(AUTOENCODER | changes)


def test_a_config_without_a_key_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="VocoderConfig: the config lacks dims, hop_length"):
        Vocoder.from_config({key: value for key, value in VOCODER.items() if key not in ("dims", "hop_length")})
    with pytest.raises(ValueError, match="MelConfig: the config lacks sampling_rate, n_fft"):
        LogMel.from_config({})


@pytest.mark.parametrize("conv", [nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(4, 6, 4, 2)])
def test_folded_weight_norm_is_what_torch_computes(conv: nn.Module) -> None:
    normed = weight_norm(conv)
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(1.7)
    new_style = normed.state_dict()
    old_style = {
        "weight_g": new_style["parametrizations.weight.original0"],
        "weight_v": new_style["parametrizations.weight.original1"],
        "bias": new_style["bias"],
    }
    for state in (new_style, old_style):
        folded = fold_weight_norm({f"head.ups.0.{name}": tensor for name, tensor in state.items()})
        assert sorted(folded) == ["head.ups.0.bias", "head.ups.0.weight"]
        torch.testing.assert_close(folded["head.ups.0.weight"], normed.weight)
    half = fold_weight_norm({f"x.{name}": tensor.bfloat16() for name, tensor in old_style.items()})
    assert half["x.weight"].dtype == torch.bfloat16


def test_half_a_weight_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.weight_g has no x\.weight_v"):
        fold_weight_norm({"x.weight_g": torch.ones(2, 1)})
