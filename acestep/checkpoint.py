"""`Checkpoint`: where the weights lie, what belongs to them, and the fingerprint that tells them from others.

Finding and fingerprinting need no torch; `acestep.loading` loads.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from acestep.cache import file_sha256
from acestep.download import SUMS, fetch_folder, fetch_snapshot, is_url, without_credentials
from acestep.errors import CheckpointError
from acestep.lyric_vocab import ENVIRONMENT as LYRIC_VOCAB_ENVIRONMENT
from acestep.lyric_vocab import NAMES as LYRIC_VOCAB_NAMES
from acestep.lyric_vocab import find_lyric_vocab
from acestep.problems import nearest
from acestep.weight_files import STEMS, index_file, read_header, read_json, weight_files

Part = Literal["transformer", "autoencoder", "vocoder", "text_encoder"]

FOLDERS: dict[Part, str] = {
    "transformer": "ace_step_transformer",
    "autoencoder": "music_dcae_f8c8",
    "vocoder": "music_vocoder",
    "text_encoder": "umt5-base",
}
"""The folder of each part, as published."""

TINY = "tiny"
"""The checkpoint that comes with the library: the published layout, random weights, a few MB."""

_TOKENIZER = "tokenizer.json"
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine, complete and whole; weights not loaded.

    Attributes:
        name: what people call it: `tiny`, the hub's id, or the name of its folder.
        path: the folder that holds the four parts.
        source: what `open` was asked for.
    """

    name: str
    path: Path
    source: str = field(repr=False)  # It may hold credentials.
    lyric_vocab_source: str | None = None
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        lyric_vocab: str | None = None,
        prompt_tokenizer: str | None = None,
    ) -> Checkpoint:
        """Find a checkpoint, fetching it first if it is elsewhere.

        Args:
            source: `"tiny"`; a local folder; a local file with all parts in it, `ace_step_v1_3.5b.safetensors`; a hub
                id, `ACE-Step/ACE-Step-v1-3.5B` or `...@revision`; or a URL that fsspec understands,
                `s3://bucket/prefix`.
            storage_options: for fsspec: credentials, endpoint. They go with the source, and with a vocabulary's URL
                of the same kind.
            lyric_vocab: path or URL of the lyric vocabulary, if not the one that belongs to the checkpoint.
            prompt_tokenizer: for a checkpoint in one file: path of the `tokenizer.json`, if not the one in the file.

        Raises:
            CheckpointError: if it is not there, cannot be reached, lacks a part or is damaged.
        """
        text = os.fspath(source)
        if prompt_tokenizer is not None and not _is_single_file(text):
            raise CheckpointError(
                f"prompt_tokenizer is for a checkpoint in one file, not for {without_credentials(text)!r}"
            )
        name, path = _locate(text, isinstance(source, str), storage_options, prompt_tokenizer)
        shown = without_credentials(text)
        _require_complete(shown if shown == str(path) else f"{shown} (in {path})", _names(path))
        checkpoint = cls(name, path, text, lyric_vocab, storage_options)
        for part in FOLDERS:
            checkpoint.config(part)
            for file in weight_files(checkpoint.folder(part)):
                read_header(file)
        return checkpoint

    def folder(self, part: Part) -> Path:
        """The folder of a part: its `config.json` and weights."""
        return self.path / FOLDERS[part]

    def config(self, part: Part) -> dict[str, Any]:
        """The `config.json` of a part."""
        return read_json(self.folder(part) / "config.json")

    @property
    def lyric_vocab(self) -> Path:
        """The lyric vocabulary, a `tokenizers` file; fetched on first use if the checkpoint does not hold it.

        Raises:
            CheckpointError: naming every place tried.
        """
        return self._found_vocab[0]

    @property
    def lyric_vocab_origin(self) -> str:
        """Where the lyric vocabulary was found, in words."""
        return self._found_vocab[1]

    @property
    def random_weights(self) -> bool:
        """True for a checkpoint that was never trained."""
        return self.config("transformer").get("random_weights") is True

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of the files that loading reads, the lyric vocabulary included."""
        return sum(path.stat().st_size for path in self.files().values())

    def files(self) -> dict[str, Path]:
        """The files that determine the sound, by their published names; others in the folder do not matter."""
        files: dict[str, Path] = {}
        for part, folder_name in FOLDERS.items():
            folder = self.folder(part)
            paths = [folder / "config.json", *weight_files(folder)]
            if index := index_file(folder):
                paths.append(index)
            if part == "text_encoder":
                paths.append(folder / _TOKENIZER)
            files |= {f"{folder_name}/{path.name}": path for path in paths}
        return files | {LYRIC_VOCAB_NAMES[0]: self.lyric_vocab}

    def fingerprint(self, dtype: str) -> str:
        """16 hex digits that name the model: the content of `files()` and the compute dtype, wherever they lie.

        The first call reads every byte; later ones find the files' hashes in the cache.
        """
        content = sorted((name, file_sha256(path)) for name, path in self.files().items())
        text = json.dumps([content, str(dtype).removeprefix("torch.")])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _found_vocab(self) -> tuple[Path, str]:
        given = self.lyric_vocab_source or os.environ.get(LYRIC_VOCAB_ENVIRONMENT) or ""
        same_store = not is_url(self.source) or given.partition("://")[0] == self.source.partition("://")[0]
        options = self.storage_options if same_store else None
        return find_lyric_vocab(self.path, self.folder("transformer"), self.lyric_vocab_source, options)


def wanted_patterns() -> list[str]:
    """Which files of a repository or store belong to a checkpoint."""
    patterns = [*LYRIC_VOCAB_NAMES, SUMS]
    for folder in FOLDERS.values():
        patterns += [f"{folder}/config.json", *(f"{folder}/{name}" for name in LYRIC_VOCAB_NAMES)]
        patterns += [f"{folder}/{stem}*.safetensors{end}" for stem in STEMS for end in ("", ".index.json")]
    return [*patterns, f"{FOLDERS['text_encoder']}/{_TOKENIZER}"]


def _is_single_file(text: str) -> bool:
    path = _local(text)
    return path.suffix == ".safetensors" and path.is_file()


def _local(text: str) -> Path:
    return Path(text.removeprefix("file://")).expanduser()


def _locate(
    text: str, may_be_a_name: bool, storage_options: Mapping[str, Any] | None, prompt_tokenizer: str | None
) -> tuple[str, Path]:
    if text == TINY and may_be_a_name:
        from acestep.tiny import tiny_checkpoint

        return TINY, tiny_checkpoint()
    if is_url(text) and not text.startswith("file://"):
        shown = without_credentials(text)
        patterns = wanted_patterns()
        path = fetch_folder(
            text,
            list(FOLDERS.values()),
            lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns),
            lambda names: _require_complete(shown, names),
            storage_options,
        )
        return shown.rstrip("/").rsplit("/", 1)[-1], path
    path = _local(text)
    if path.is_dir():
        return path.resolve().name, path
    if _is_single_file(text):
        from acestep.single_file import unpack

        return path.stem, unpack(path, prompt_tokenizer)
    hub_id = _HUB_ID.fullmatch(text)
    if path.exists() or hub_id is None or not may_be_a_name or text.startswith((".", "/", "~")):
        what = "is not a folder" if path.exists() else "does not exist"
        hint = nearest(text, [TINY])
        raise CheckpointError(
            f"checkpoint {text!r}: {path.absolute()} {what}; a checkpoint is `{TINY}`, a folder, a hub id such as "
            "ACE-Step/ACE-Step-v1-3.5B, or a URL such as s3://bucket/prefix" + (f"; {hint}" if hint else "")
        )
    return text, fetch_snapshot(hub_id["repository"], hub_id["revision"], wanted_patterns())


def _names(path: Path) -> list[str]:
    """What a folder holds, as far as it may matter."""
    return [f"{folder}/{file.name}" for folder in FOLDERS.values() for file in _entries(path / folder)]


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _require_complete(where: str, names: Sequence[str]) -> None:
    """Refuse a folder that lacks parts, naming all of them.

    Raises:
        CheckpointError: saying what was looked for.
    """
    missing = []
    for part, folder in FOLDERS.items():
        inside = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
        if not inside:
            missing.append(f"{folder}/ (the {part.replace('_', ' ')})")
            continue
        required = ["config.json", *([_TOKENIZER] if part == "text_encoder" else [])]
        missing += [f"{folder}/{name}" for name in required if name not in inside]
        if not any(fnmatch.fnmatchcase(name, f"{stem}*.safetensors") for name in inside for stem in STEMS):
            missing.append(f"{folder}/{STEMS[part == 'text_encoder']}.safetensors")
    if missing:
        what = "holds no part of a checkpoint" if not names else f"is not complete; it lacks {', '.join(missing)}"
        raise CheckpointError(
            f"checkpoint {where!r} {what}. A checkpoint is a folder with {', '.join(FOLDERS.values())} in it; "
            "`acestep weights SOURCE --to FOLDER` makes a complete one from another source"
        )


assert tuple(FOLDERS) == get_args(Part)
