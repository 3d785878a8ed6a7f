"""A checkpoint in one safetensors file, as ComfyUI has it: laid out once, in the cache, as the four folders.

Such a file holds the tensors of all parts under prefixes, and the prompt tokenizer as a SentencePiece model. It has no
configs: the published ones, which come with the library, are assumed. The layout takes as much disk as the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from acestep.cache import cache_folder, file_sha256, make_once, require_space
from acestep.checkpoint import FOLDERS, Part
from acestep.errors import CheckpointError
from acestep.sentencepiece_model import SentencePieceModel
from acestep.weight_files import STEMS, read_header, read_json

logger = logging.getLogger(__name__)

PUBLISHED = Path(__file__).parent / "published"
"""The published `config.json` of each part, named after its folder."""

TOKENIZER = "tokenizer.json"
LYRIC_VOCAB = "lyric_vocab.json"
"""Of the names that a vocabulary has in a checkpoint, the one that cannot be another model's."""

_TELLTALES: dict[Part, str] = {
    "transformer": "lyric_embs.weight",
    "autoencoder": "decoder.conv_in.weight",
    "vocoder": "backbone.channel_layers.0.0.weight",
    "text_encoder": "encoder.final_layer_norm.weight",
}
"""A tensor of each part that no other part has one like: what stands before its name is the part's prefix."""
_SENTENCEPIECE = "spiece_model"
_WITHOUT_PART = re.compile(rf"(.*\.)?({_SENTENCEPIECE}|logit_scale)")
"""What such files have besides the parts; the logit scale belongs to a loss."""
_COPY_BYTES = 16 * 2**20

Entry = Mapping[str, Any]
"""What a header says of a tensor: dtype, shape, data_offsets."""


def unpack(file: Path, prompt_tokenizer: str | None = None) -> Path:
    """The folder of a checkpoint with what `file` holds; written on first use, and again if the file changes.

    A lyric vocabulary that lies beside the file as `lyric_vocab.json` goes with it.

    Args:
        file: as `model.diffusion_model.*`, `vae.dcae.*`, `vae.vocoder.*` and `text_encoders.umt5base.transformer.*`,
            or under other prefixes.
        prompt_tokenizer: umt5-base's `tokenizer.json`; None: what is in the file, or else lies beside it.

    Raises:
        CheckpointError: if the file is damaged, lacks a part or holds anything else, or there is no tokenizer.
    """
    header = read_header(file)
    parts = parts_of(header, str(file))
    tokenizer, sources = _tokenizer(file, header, prompt_tokenizer)
    if (vocab := file.with_name(LYRIC_VOCAB)).is_file():
        sources = (*sources, vocab)
    content = [file_sha256(path) for path in (file, *sources, *_recipe())]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def write(folder: Path) -> None:
        logger.info("laying out %s in %s", file, folder)
        require_space(folder, file.stat().st_size)
        for part, entries in parts.items():
            place = folder / FOLDERS[part]
            place.mkdir(exist_ok=True)
            (place / "config.json").write_bytes(_config_file(part).read_bytes())
            _copy_tensors(file, entries, place / f"{STEMS[part == 'text_encoder']}.safetensors")
        (folder / FOLDERS["text_encoder"] / TOKENIZER).write_bytes(tokenizer())
        if vocab in sources:
            (folder / LYRIC_VOCAB).write_bytes(vocab.read_bytes())

    return make_once(cache_folder() / f"single-{key}", write)


def parts_of(header: Mapping[str, Entry], where: str) -> dict[Part, dict[str, Entry]]:
    """The tensors of each part under their published names.

    Raises:
        CheckpointError: naming the parts that are missing, or the tensors that belong to none.
    """
    prefixes: dict[Part, str] = {}
    for part, telltale in _TELLTALES.items():
        found = [name.removesuffix(telltale) for name in header if f".{name}".endswith(f".{telltale}")]
        if len(found) > 1:
            raise CheckpointError(f"{where} holds more than one {_words(part)}: under {', '.join(sorted(found))}")
        if found:
            prefixes[part] = found[0]
    if missing := [_words(part) for part in _TELLTALES if part not in prefixes]:
        what = f"lacks the {' and the '.join(missing)}" if prefixes else "holds no part of an ACE-Step v1 model"
        raise CheckpointError(
            f"checkpoint {where!r} {what}. A checkpoint in one file holds all four parts, as ComfyUI's "
            "ace_step_v1_3.5b.safetensors does; for one in four folders, name the folder that they are in"
        )
    parts: dict[Part, dict[str, Entry]] = {part: {} for part in FOLDERS}
    unknown: list[str] = []
    longest_first = sorted(prefixes.items(), key=lambda item: -len(item[1]))
    for name, entry in header.items():
        if _WITHOUT_PART.fullmatch(name):
            continue
        owner = next((part for part, prefix in longest_first if name.startswith(prefix)), None)
        if owner is None:
            unknown.append(name)
        else:
            parts[owner][name.removeprefix(prefixes[owner])] = entry
    if unknown:
        shown = ", ".join(sorted(unknown)[:10]) + (", ..." if len(unknown) > 10 else "")
        raise CheckpointError(f"checkpoint {where!r} holds {len(unknown):,} tensors that belong to no part: {shown}")
    return parts


def _tokenizer(
    file: Path, header: Mapping[str, Entry], given: str | None
) -> tuple[Callable[[], bytes], tuple[Path, ...]]:
    """How to get the content of `tokenizer.json`, and the files besides `file` that it comes from."""
    if given is not None:
        path = Path(given).expanduser()
        read_json(path)
        return path.read_bytes, (path,)
    embedded = [name for name in header if name.rpartition(".")[2] == _SENTENCEPIECE]
    if embedded:
        return lambda: _converted(file, header[embedded[0]]), ()
    beside = file.parent / TOKENIZER
    if beside.is_file():
        read_json(beside)
        return beside.read_bytes, (beside,)
    raise CheckpointError(
        f"checkpoint {str(file)!r} has no prompt tokenizer: it holds no {_SENTENCEPIECE}, and {beside} is not "
        f"there. Put umt5-base's {TOKENIZER} there, or give it as prompt_tokenizer"
    )


def _converted(file: Path, entry: Entry) -> bytes:
    begin, end = entry["data_offsets"]
    with file.open("rb") as stream:
        stream.seek(_data_start(stream) + begin)
        data = stream.read(end - begin)
    try:
        return json.dumps(SentencePieceModel.parse(data).tokenizers_file()).encode()
    except ValueError as error:
        raise CheckpointError(
            f"the prompt tokenizer in {file} cannot be used: {error}. Give umt5-base's {TOKENIZER} as prompt_tokenizer"
        ) from error


def _copy_tensors(file: Path, entries: Mapping[str, Entry], target: Path) -> None:
    """Write a safetensors file of some of another's tensors, byte by byte, under the names given."""
    # Larger numbers first, so that all of them lie at multiples of their size; else in the order of the source.
    order = sorted(entries, key=lambda name: (-_item_size(entries[name]), entries[name]["data_offsets"][0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        begin, end = entries[name]["data_offsets"]
        header[name] = {**entries[name], "data_offsets": [at, at + end - begin]}
        at += end - begin
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("rb") as source, target.open("wb") as out:
        start = _data_start(source)
        out.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            begin, end = entries[name]["data_offsets"]
            source.seek(start + begin)
            _copy(source, out, end - begin)


def _copy(source: BinaryIO, out: BinaryIO, size: int) -> None:
    while size:
        data = source.read(min(size, _COPY_BYTES))
        assert data, "the header was compared with the file's size"
        out.write(data)
        size -= len(data)


def _data_start(stream: BinaryIO) -> int:
    stream.seek(0)
    return 8 + int(struct.unpack("<Q", stream.read(8))[0])


def _item_size(entry: Entry) -> int:
    begin, end = entry["data_offsets"]
    return (end - begin) // max(1, math.prod(entry["shape"]))


def _config_file(part: Part) -> Path:
    return PUBLISHED / f"{FOLDERS[part]}.json"


def _recipe() -> list[Path]:
    """The files that decide what a layout becomes, besides its sources."""
    code = Path(__file__)
    return [code, code.with_name("sentencepiece_model.py"), *(_config_file(part) for part in FOLDERS)]


def _words(part: Part) -> str:
    return part.replace("_", " ")
