"""A checkpoint of the published sizes as files, in the published layout, with random weights: nothing is downloaded."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from acestep import tiny_text
from acestep.checkpoint import FOLDERS, Part
from acestep.loading import build_network
from acestep.tiny import random_tensor
from acestep.weight_files import STEMS
from acestep.weights import tied_names
from benchmarks.random_networks import published_config
from tests.recipe import published_shapes

_BLOCK = re.compile(r"(transformer_blocks)\.(\d+)\.")


def write_checkpoint(folder: Path, blocks: int = 24) -> None:
    """Write it into `folder` in bfloat16, 7.2 GB with all blocks; the blocks are copies of one.

    Its tokenizers are those of the tiny checkpoint, whose ids are within the published tables.
    """
    for part, name in FOLDERS.items():
        place = folder / name
        place.mkdir(parents=True)
        config = published_config(part)
        if part == "transformer":
            config |= {"num_layers": blocks, "random_weights": True}
        (place / "config.json").write_text(json.dumps(config, indent=1))
        stem = STEMS[part == "text_encoder"]
        _write_tensors(place / f"{stem}.safetensors", dict(_shapes(part, blocks)))
    tokenizer = json.dumps(tiny_text.prompt_tokenizer())
    (folder / FOLDERS["text_encoder"] / "tokenizer.json").write_text(tokenizer)
    (folder / "vocab.json").write_text(json.dumps(tiny_text.lyric_vocab()))


def _shapes(part: Part, blocks: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if part == "text_encoder":  # Whose published names are those of the library that it comes from.
        module = build_network(part, published_config(part)).weights_of
        state = module.state_dict()
        yield from ((names[0], tuple(state[names[0]].shape)) for names in tied_names(module))
        return
    for name, shape in published_shapes(FOLDERS[part]).items():
        block = _BLOCK.match(name)
        if block is None or int(block[2]) < blocks:
            yield name, shape


def _write_tensors(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Tensor by tensor, so that it takes the memory of one (and of a block)."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    first_block: dict[str, np.ndarray] = {}
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            like = _BLOCK.sub(r"\1.0.", name)
            data = first_block.get(like)
            if data is None:
                data = torch.from_numpy(random_tensor(like, shape)).bfloat16().view(torch.int16).numpy()
            if _BLOCK.match(name):
                first_block[like] = data
            stream.write(data.data)
