"""Decoding in chunks gives what decoding all at once gives, in less memory; layers know how far they see."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acestep import codec as codec_module
from acestep.codec import MusicCodec
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.vocoder import Vocoder
from acestep.models.windows import in_windows, reach_of, windows
from tests.recipe import fill_by_recipe, published_config
from tests.test_codec import AUTOENCODER, VOCODER, small_codec

LIGHT_VOCODER = VOCODER | {
    "upsample_rates": [8, 8, 8],
    "upsample_kernel_sizes": [16, 16, 16],
    "upsample_initial_channel": 16,
    "pre_conv_kernel_size": 5,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 2], [3]],
}

RELATIVE = 1e-5
"""Of the loudest sample, in float32: chunks have other shapes, for which convolutions add up in another order."""


def latents_of(num_frames: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 8, 16, num_frames, generator=torch.Generator().manual_seed(num_frames))


@lru_cache(maxsize=1)
def light_codec() -> MusicCodec:
    """One that sees less far, so that short songs have frames that see neither end."""
    codec = MusicCodec.from_config(AUTOENCODER, LIGHT_VOCODER)
    fill_by_recipe(codec)
    return codec


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return float((got - want).abs().max() / want.abs().max())


@pytest.fixture(scope="module")
def codec() -> MusicCodec:
    return small_codec()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2))
def test_chunks_give_the_whole(num_frames: int, chunk_frames: int, batch: int) -> None:
    codec = light_codec()
    latents = latents_of(num_frames, batch)
    whole = codec.decode(latents, chunk_frames=batch * num_frames)
    assert difference(codec.decode(latents, chunk_frames=chunk_frames), whole) < RELATIVE


@settings(max_examples=10, deadline=None)
@given(
    types=st.sampled_from(["RRRE", "RRER", "ERRE", "RRRR", "RREE"]),
    layers=st.lists(st.integers(1, 2), min_size=4, max_size=4),
    scales=st.sampled_from([[], [3], [5], [3, 7]]),
    pre_post=st.sampled_from([(13, 13), (3, 7), (7, 1)]),
    upsampling=st.sampled_from([[4, 4, 2, 2, 2, 2, 2], [8, 8, 8], [16, 32]]),
    wider=st.booleans(),
    dilations=st.sampled_from([[1], [1, 3], [3, 1, 5]]),
)
def test_other_networks_tell_how_far_they_see_too(
    types: str,
    layers: list[int],
    scales: list[int],
    pre_post: tuple[int, int],
    upsampling: list[int],
    wider: bool,
    dilations: list[int],
) -> None:
    kinds = {"R": "ResBlock", "E": "EfficientViTBlock"}
    autoencoder = AUTOENCODER | {
        "decoder_block_types": [kinds[kind] for kind in types],
        "decoder_layers_per_block": layers,
        "decoder_qkv_multiscales": [scales] * 4,
    }
    vocoder = LIGHT_VOCODER | {
        "pre_conv_kernel_size": pre_post[0],
        "post_conv_kernel_size": pre_post[1],
        "upsample_rates": upsampling,
        "upsample_initial_channel": 2 ** (len(upsampling) + 1),
        "upsample_kernel_sizes": [(4 if wider else 2) * rate for rate in upsampling],
        "resblock_dilation_sizes": [dilations, dilations],
    }
    codec = MusicCodec.from_config(autoencoder, vocoder)
    fill_by_recipe(codec)
    latents = latents_of(20)
    whole = codec.decode(latents, chunk_frames=20)
    assert difference(codec.decode(latents, chunk_frames=7), whole) < RELATIVE


def test_the_vocoder_sees_exactly_as_far_as_it_says() -> None:
    vocoder = small_codec().vocoder.double()
    frame, reach = 60, vocoder.reach
    mel = torch.randn(1, 128, 120, dtype=torch.float64, requires_grad=True)
    samples = vocoder(mel)[..., frame * 512 : (frame + 1) * 512]
    (gradient,) = torch.autograd.grad(samples.square().sum(), mel)
    seen = gradient.abs().sum(dim=(0, 1)).nonzero()
    assert (frame - int(seen.min()), int(seen.max()) - frame) == (reach, reach)


def test_the_local_part_of_the_decoder_sees_exactly_as_far_as_it_says() -> None:
    decoder = small_codec().autoencoder.decoder
    local = [layer for block in list(reversed(decoder.up_blocks))[1:] for layer in block.children()]
    frame, reach = 20, decoder._reach(local)
    features = torch.randn(1, 16, 16, 40, requires_grad=True)
    mel = decoder._finish(features, local)[..., frame * 8 : (frame + 1) * 8]
    (gradient,) = torch.autograd.grad(mel.square().sum(), features)
    seen = gradient.abs().sum(dim=(0, 1, 2)).nonzero()
    assert (frame - int(seen.min()), int(seen.max()) - frame) == (reach, reach)


def test_how_far_the_published_networks_see() -> None:
    with torch.device("meta"):
        decoder = MusicAutoencoder.from_config(published_config("music_dcae_f8c8")).decoder
        vocoder = Vocoder.from_config(published_config("music_vocoder"))
    local = [layer for block in list(reversed(decoder.up_blocks))[1:] for layer in block.children()]
    assert decoder._reach(local) == 7  # latent frames
    assert vocoder.reach == 91  # mel frames, or 11.4 latent frames


@pytest.mark.slow
def test_chunks_give_the_whole_at_the_published_size() -> None:
    autoencoder = MusicAutoencoder.from_config(published_config("music_dcae_f8c8"))
    vocoder = Vocoder.from_config(published_config("music_vocoder"))
    codec = MusicCodec(autoencoder, vocoder, LogMel.from_config(published_config("music_vocoder")))
    fill_by_recipe(codec)
    latents = latents_of(24)
    whole = codec.decode(latents, chunk_frames=24)
    assert difference(codec.decode(latents, chunk_frames=12), whole) < RELATIVE


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *made, 0)
        return out


def test_memory_is_bounded_by_the_chunk() -> None:
    codec = MusicCodec.from_config(AUTOENCODER | {"decoder_block_out_channels": [64, 16, 16, 16]}, LIGHT_VOCODER)
    fill_by_recipe(codec)

    def largest(num_frames: int, chunk_frames: int) -> int:
        with Largest() as mode:
            codec.decode(latents_of(num_frames), chunk_frames=chunk_frames)
        return mode.numbers

    assert largest(60, 3) < largest(60, 60) / 6


def test_long_songs_are_chunked_and_short_ones_are_not(codec: MusicCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    hook = codec.vocoder.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[-1]))
    monkeypatch.setattr(codec_module, "CHUNK_FRAMES", 10)
    codec.decode(latents_of(10))
    assert lengths == [80]
    lengths.clear()
    codec.decode(latents_of(5, batch=5))
    assert lengths == [40] * 3  # two items at once, the last alone
    lengths.clear()
    codec.decode(latents_of(11))
    assert len(lengths) == 2
    assert max(lengths) <= 80 + 2 * codec.vocoder.reach
    hook.remove()


def test_bfloat16_chunks_are_as_near_as_bfloat16_is() -> None:
    full, half = small_codec(), small_codec().to(torch.bfloat16)
    latents = latents_of(30)
    want = full.decode(latents)
    for chunk_frames in (7, 30):
        got = half.decode(latents, chunk_frames=chunk_frames)
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("chunk_frames", [0, -1])
def test_a_chunk_has_a_frame(codec: MusicCodec, chunk_frames: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_frames must be at least 1, not {chunk_frames}"):
        codec.decode(latents_of(2), chunk_frames=chunk_frames)


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 20))
def test_windows_keep_every_frame_once(num_frames: int, size: int, reach: int) -> None:
    signal = list(range(num_frames))

    def kept() -> Iterator[int]:
        for window in windows(num_frames, size, reach):
            yield from signal[window.read][window.kept]
            assert window.start - window.low == min(reach, window.start)
            assert window.high - window.stop == min(reach, num_frames - window.stop)

    assert list(kept()) == signal


def test_a_convolution_that_changes_the_length_is_no_local_network() -> None:
    with pytest.raises(AssertionError, match="does not keep the length"):
        reach_of(torch.nn.Conv1d(1, 1, 3))
    with pytest.raises(AssertionError, match="does not multiply the length"):
        reach_of(torch.nn.ConvTranspose1d(1, 1, 5, stride=2, padding=1))
    with pytest.raises(AssertionError, match="5 frames became 3"):
        in_windows(torch.nn.Conv1d(1, 1, 3), torch.zeros(1, 1, 9), 4, 1)
