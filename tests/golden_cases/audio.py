"""Golden cases of the autoencoder, the vocoder, the spectrogram, resampling, and the codec made of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from acestep.codec import MusicCodec
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.vocoder import Vocoder
from acestep.models.weight_norm import fold_weight_norm
from acestep.resample import resample
from tests.golden import Comparison, Golden, case
from tests.recipe import fill_by_recipe, published_config, published_shapes, recipe_tensor


@lru_cache(maxsize=1)
def autoencoder() -> MusicAutoencoder:
    """The autoencoder at its published size."""
    model = MusicAutoencoder.from_config(published_config("music_dcae_f8c8"))
    fill_by_recipe(model)
    return model.eval()


@lru_cache(maxsize=1)
def vocoder() -> Vocoder:
    """The vocoder at its published size, from weight-normed tensors."""
    model = Vocoder.from_config(published_config("music_vocoder"))
    shapes = published_shapes("music_vocoder")
    published = {name: recipe_tensor(name, shape) for name, shape in shapes.items() if "mel_transform" not in name}
    model.load_state_dict(fold_weight_norm(published))
    return model.eval()


@case("dcae")
def check_autoencoder(golden: Golden) -> Iterator[Comparison]:
    yield "decoded", autoencoder().decode(golden["latents"]), golden["decoded"]
    yield "encoded", autoencoder().encode(golden["mel"]), golden["encoded"]


@case("vocoder")
def check_vocoder(golden: Golden) -> Iterator[Comparison]:
    yield "audio", vocoder()(golden["mel"]), golden["audio"]


@case("mel")
def check_mel(golden: Golden) -> Iterator[Comparison]:
    audio = golden["audio"]
    yield "log_mel", LogMel.from_config(published_config("music_vocoder"))(audio), golden["log_mel"]
    for new, orig in ((48_000, 44_100), (44_100, 48_000)):
        name = f"resampled_{orig}_to_{new}"
        yield name, resample(audio, orig, new, "upstream"), golden[name]


@case("music_dcae")
def check_codec(golden: Golden) -> Iterator[Comparison]:
    codec = MusicCodec(autoencoder(), vocoder(), LogMel.from_config(published_config("music_vocoder")))
    native = resample(golden["audio_48k"], 48_000, codec.sample_rate, "upstream")
    yield "latents", codec.encode(native), golden["latents"]
    decoded = codec.decode(golden["decode_latents"])[0]
    yield "decoded_48k", resample(decoded, codec.sample_rate, 48_000, "upstream"), golden["decoded_48k"]
