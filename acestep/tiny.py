"""The built-in checkpoint: the published layout in a few MB, so that everything runs without a download.

Its weights are random, each tensor a function of its name and shape, so what it makes is noise. Everything else is
real: folders, configs, tensor names, tokenizer, lyric vocabulary. Building it twice gives the same bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from acestep import tiny_text
from acestep.cache import cache_folder, file_sha256, make_once
from acestep.checkpoint import FOLDERS, Part
from acestep.weight_files import STEMS

WIDTH = 64
TEXT_WIDTH = 32

TRANSFORMER = {
    "_class_name": "ACEStepTransformer2DModel",
    "random_weights": True,
    "in_channels": 8,
    "out_channels": 8,
    "max_height": 16,
    "max_width": 32768,
    "max_position": 32768,
    "patch_size": [16, 1],
    "patch_embed_size": WIDTH,
    "inner_dim": WIDTH,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "num_layers": 5,
    "mlp_ratio": 2.5,
    "rope_theta": 1000000.0,
    "text_embedding_dim": TEXT_WIDTH,
    "speaker_embedding_dim": WIDTH,
    "lyric_encoder_vocab_size": tiny_text.LYRIC_TABLE_SIZE,
    "lyric_hidden_size": WIDTH,
    "lyric_encoder_num_layers": 6,  # Guidance weakens layers 4 and 5: without them it would do nothing.
    "lyric_encoder_num_heads": 4,
    "lyric_encoder_ff_size": 2 * WIDTH,
    "ssl_names": [],
    "ssl_latent_dims": [],
    "ssl_encoder_depths": [],
}

_CHANNELS = [8, 16, 32, 32]
_BLOCKS = ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"]

AUTOENCODER = {
    "_class_name": "AutoencoderDC",
    "in_channels": 2,
    "latent_channels": 8,
    "attention_head_dim": 16,
    "encoder_block_types": _BLOCKS,
    "decoder_block_types": _BLOCKS,
    "encoder_block_out_channels": _CHANNELS,
    "decoder_block_out_channels": _CHANNELS,
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "encoder_qkv_multiscales": [[], [], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [5], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}

VOCODER = {
    "_class_name": "ADaMoSHiFiGANV1",
    "input_channels": 128,
    "depths": [1, 1],
    "dims": [32, 48],
    "drop_path_rate": 0.0,
    "kernel_sizes": [7],
    "upsample_rates": [8, 8, 8],
    "upsample_kernel_sizes": [16, 16, 16],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "num_mels": 48,
    "upsample_initial_channel": 32,
    "use_template": False,
    "pre_conv_kernel_size": 7,
    "post_conv_kernel_size": 7,
    "sampling_rate": 44100,
    "n_fft": 2048,
    "win_length": 2048,
    "hop_length": 512,
    "f_min": 40,
    "f_max": 16000,
    "n_mels": 128,
}

TEXT_ENCODER = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "vocab_size": tiny_text.PROMPT_TABLE_SIZE,
    "d_model": TEXT_WIDTH,
    "d_kv": 16,
    "d_ff": 2 * TEXT_WIDTH,
    "num_heads": 2,
    "num_layers": 10,  # Guidance weakens blocks 8 and 9: without them it would do nothing.
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": tiny_text.PAD,
    "eos_token_id": tiny_text.END,
}

CONFIGS: dict[Part, dict[str, Any]] = {
    "transformer": TRANSFORMER,
    "autoencoder": AUTOENCODER,
    "vocoder": VOCODER,
    "text_encoder": TEXT_ENCODER,
}

Shapes = Mapping[str, tuple[int, ...]]


def tiny_checkpoint() -> Path:
    """The folder of the built-in checkpoint in this machine's cache; built (with torch) on first use.

    It is named after the recipe, so that a new recipe is a new folder.
    """
    recipe = "".join(file_sha256(Path(path)) for path in (__file__, tiny_text.__file__))
    return make_once(cache_folder() / f"tiny-{zlib.crc32(recipe.encode()):08x}", build)


def build(folder: Path) -> None:
    """Write the checkpoint into `folder`."""
    from safetensors.numpy import save_file

    for part, config in CONFIGS.items():
        place = folder / FOLDERS[part]
        place.mkdir(parents=True, exist_ok=True)
        _write_json(place / "config.json", config)
        tensors = {name: random_tensor(name, shape) for name, shape in _stored_shapes(part, config).items()}
        stem = STEMS[part == "text_encoder"]
        save_file(tensors, place / f"{stem}.safetensors", metadata={"format": "pt"})
    _write_json(folder / FOLDERS["text_encoder"] / "tokenizer.json", tiny_text.prompt_tokenizer())
    _write_json(folder / "vocab.json", tiny_text.lyric_vocab())


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 tensor that is a function of its name and shape, of a size that keeps signals alive.

    Matrices and kernels keep the variance of what goes through them, norms are about one, biases about zero.
    """
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("weight_g"):  # SiLU takes 40 % off a signal; a transposed convolution spreads it.
        values = (1.5 if ".ups." in name else 1.1) + 0.1 * noise
    elif len(shape) >= 2:
        values = noise / np.sqrt(np.prod(shape[1:]))
    elif name.rsplit(".", 1)[-1] in ("weight", "gamma"):
        values = 1 + 0.1 * noise
    else:
        values = 0.02 * noise
    return np.ascontiguousarray(values, dtype=np.float32)


def _stored_shapes(part: Part, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a part's file: those of its network, each tied tensor once, weight norms unfolded."""
    from acestep.loading import build_network
    from acestep.weights import tied_names

    module = build_network(part, config).weights_of
    state = module.state_dict()
    shapes = {names[0]: tuple(state[names[0]].shape) for names in tied_names(module)}
    return dict(_with_weight_norm(shapes)) if part == "vocoder" else shapes


def _with_weight_norm(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        if name.startswith("head.") and name.endswith(".weight"):  # All of the head's weights are convolutions.
            yield f"{name}_g", (shape[0], *(1 for _ in shape[1:]))
            yield f"{name}_v", shape
        else:
            yield name, shape


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n")
