"""`LoraFiles`: where a LoRA adapter lies and which files it is; found or fetched, and fingerprinted, without torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.cache import file_sha256
from acestep.download import fetch_file, fetch_folder, fetch_snapshot, is_url, without_credentials
from acestep.errors import CheckpointError
from acestep.weight_files import read_header

ORIGINAL_NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
"""PEFT's settings; its weights file does not hold them."""

_NAMES = (ORIGINAL_NAME, PEFT_NAME)
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILE_URL = re.compile(r"/(?P<name>[^/?#]+\.safetensors)([?#].*)?$")


@dataclass(frozen=True, slots=True)
class LoraFiles:
    """The files of one adapter on this machine, complete and whole; not loaded.

    Attributes:
        name: what people call it: the hub's id, or the name of its folder or file.
        weights: the safetensors file.
        config: PEFT's `adapter_config.json`, where there is one.
    """

    name: str
    weights: Path
    config: Path | None = None

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> LoraFiles:
        """Find an adapter, fetching it first if it is elsewhere.

        Args:
            source: a local folder or safetensors file; a hub id, `owner/name` or `owner/name@revision`; or a URL of
                a folder or a `.safetensors` file that fsspec understands.
            storage_options: for fsspec: credentials, endpoint.
            name: None: one made from the source.

        Raises:
            CheckpointError: if it is not there, cannot be reached, is damaged, or it is not clear which file is meant.
        """
        text = os.fspath(source)
        if is_url(text) and not text.startswith("file://"):
            found = _fetch(text, storage_options)
        else:
            found = _find(text, isinstance(source, str))
        read_header(found.weights)
        return cls(name or found.name, found.weights, found.config)

    def fingerprint(self) -> str:
        """The sha256 that names the content: of the file, and of `adapter_config.json` too where there is one."""
        digests = [file_sha256(path) for path in (self.weights, self.config) if path is not None]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _fetch(url: str, storage_options: Mapping[str, Any] | None) -> LoraFiles:
    shown = without_credentials(url)
    if file := _FILE_URL.search(url):
        weights = fetch_file(url, storage_options)
        # The original's file says all that is known about it; PEFT's is wrong by its scale without its settings.
        config = _fetch_config(url[: file.start("name")], storage_options) if file["name"] == PEFT_NAME else None
        return LoraFiles(_name_of(Path(shown[shown.index("://") + 3 :].split("?")[0])), weights, config)

    def wanted(name: str) -> bool:
        return name == CONFIG_NAME or name.endswith(".safetensors")

    def check(names: Sequence[str]) -> None:
        _choose(shown, names)

    folder = fetch_folder(url, [], wanted, check, storage_options)
    return _in_folder(folder, shown.rstrip("/").rsplit("/", 1)[-1], shown)


def _fetch_config(folder_url: str, storage_options: Mapping[str, Any] | None) -> Path | None:
    try:
        return fetch_file(folder_url + CONFIG_NAME, storage_options)
    except CheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _find(text: str, may_be_a_name: bool) -> LoraFiles:
    path = Path(text.removeprefix("file://")).expanduser()
    if path.is_dir():
        return _in_folder(path, path.resolve().name, text)
    if path.is_file():
        beside = path.with_name(CONFIG_NAME)
        belongs = path.name in _NAMES or len(list(path.parent.glob("*.safetensors"))) == 1
        return LoraFiles(_name_of(path), path, beside if belongs and beside.is_file() else None)
    hub_id = _HUB_ID.fullmatch(text)
    if hub_id is None or not may_be_a_name or text.startswith((".", "/", "~")):
        raise CheckpointError(
            f"adapter {text!r}: {path.absolute()} does not exist; an adapter is a folder, a .safetensors file, a hub "
            "id such as owner/name, or a URL such as s3://bucket/adapter"
        )
    folder = fetch_snapshot(hub_id["repository"], hub_id["revision"], [*_NAMES, CONFIG_NAME], what="adapter")
    hint = f"; a file of another name: hf://{hub_id['repository']}/<name>.safetensors"
    return _in_folder(folder, text, text, hint)


def _in_folder(folder: Path, name: str, shown: str, hint: str = "") -> LoraFiles:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    weights = folder / _choose(shown, names, hint)
    config = folder / CONFIG_NAME
    return LoraFiles(name, weights, config if config.is_file() else None)


def _choose(shown: str, names: Sequence[str], hint: str = "") -> str:
    """The weights file among the names of a folder.

    Raises:
        CheckpointError: if there is none, or no saying which.
    """
    for name in _NAMES:
        if name in names:
            return name
    candidates = [name for name in names if name.endswith(".safetensors")]
    if len(candidates) == 1:
        return candidates[0]
    what = f"several: {', '.join(candidates[:10])}; name one" if candidates else ", ".join(names[:10]) or "nothing"
    raise CheckpointError(f"adapter {shown!r}: looked for {' or '.join(_NAMES)}; found {what}{hint}")


def _name_of(file: Path) -> str:
    """A file's stem, or its folder's name where the file is called as all of them are."""
    return file.absolute().parent.name if file.name in _NAMES else file.stem
