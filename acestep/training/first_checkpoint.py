"""A small model before its training: its sizes, its tokenizers, and weights to begin with.

python -m acestep.training.first_checkpoint out/small/first
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep import tiny, tiny_text
from acestep.checkpoint import FOLDERS, Part
from acestep.models.autoencoder import MusicAutoencoder
from acestep.models.mel import LogMel
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.transformer import ACEStepTransformer
from acestep.models.vocoder import Vocoder
from acestep.synth import describe, random_piece
from acestep.training.export import write_part
from acestep.training.initialization import initialize_transformer, initialize_vocoder
from acestep.training.prompt_tokenizer import train_prompt_tokenizer

WIDTH, TEXT_WIDTH, LYRIC_WIDTH = 192, 64, 64
PROMPT_TOKENS = 512
_CAPTIONS = 20_000
"""That the tokenizer learns from."""

_CHANNELS = [16, 32, 64, 128]

CONFIGS: dict[Part, dict[str, Any]] = {
    "transformer": tiny.TRANSFORMER
    | {
        "patch_embed_size": WIDTH,
        "inner_dim": WIDTH,
        "attention_head_dim": 32,
        "num_attention_heads": 6,
        "num_layers": 8,
        "mlp_ratio": 2.0,
        "text_embedding_dim": TEXT_WIDTH,
        "speaker_embedding_dim": 64,
        "lyric_hidden_size": LYRIC_WIDTH,
        "lyric_encoder_num_heads": 4,
        "lyric_encoder_ff_size": 2 * LYRIC_WIDTH,
    },
    "autoencoder": tiny.AUTOENCODER
    | {
        "attention_head_dim": 32,
        "encoder_block_out_channels": _CHANNELS,
        "decoder_block_out_channels": _CHANNELS,
    },
    "vocoder": tiny.VOCODER
    | {
        "dims": [256, 256],
        "depths": [1, 2],
        "num_mels": 256,
        "upsample_initial_channel": 512,  # so that a frame's samples fit in, at half the rate and with their negatives
        "upsample_rates": [2, 2, 2, 8, 8],
        "upsample_kernel_sizes": [4, 4, 4, 16, 16],
        "resblock_kernel_sizes": [1],
        "resblock_dilation_sizes": [[1]],
        "pre_conv_kernel_size": 5,
    },
    "text_encoder": tiny.TEXT_ENCODER
    | {
        "vocab_size": PROMPT_TOKENS,
        "d_model": TEXT_WIDTH,
        "d_ff": 2 * TEXT_WIDTH,
        "num_heads": 4,
        "dropout_rate": 0.0,
    },
}


def write_first_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a complete checkpoint with drawn weights; twice gives the same bytes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation takes no generator
        torch.manual_seed(seed)
        transformer = ACEStepTransformer.from_config(CONFIGS["transformer"])
        autoencoder = MusicAutoencoder.from_config(CONFIGS["autoencoder"])
        vocoder = Vocoder.from_config(CONFIGS["vocoder"])
        prompt_encoder = PromptEncoder.from_config(CONFIGS["text_encoder"])
    initialize_transformer(transformer, generator)
    initialize_vocoder(vocoder, LogMel.from_config(CONFIGS["vocoder"]), generator)
    networks: dict[Part, nn.Module] = {
        "transformer": transformer,
        "autoencoder": autoencoder,
        "vocoder": vocoder,
        "text_encoder": prompt_encoder.model,
    }
    for part, network in networks.items():
        write_part(folder, part, CONFIGS[part], network.state_dict())
    captions = (describe(random_piece(index), index) for index in range(_CAPTIONS))
    tokenizer = train_prompt_tokenizer(captions, PROMPT_TOKENS)
    tokenizer.save(str(folder / FOLDERS["text_encoder"] / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(tiny_text.lyric_vocab(), indent=1) + "\n")
    return folder


if __name__ == "__main__":
    write_first_checkpoint(Path(sys.argv[1]))
