"""Put a checkpoint elsewhere, complete: the files that loading reads, the lyric vocabulary and their checksums."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from acestep.cache import file_sha256
from acestep.checkpoint import Checkpoint
from acestep.download import SUMS, is_url, without_credentials
from acestep.errors import CheckpointError

logger = logging.getLogger(__name__)


def copy_checkpoint(checkpoint: Checkpoint, target: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint to a local folder or fsspec URL; `SHA256SUMS` comes last, when all else is there.

    Raises:
        CheckpointError: if the target is the checkpoint itself or cannot be written.
    """
    if not is_url(target) and Path(target).resolve() == checkpoint.path.resolve():
        raise CheckpointError(f"{target} is the checkpoint itself; give another folder")
    files = checkpoint.files()
    sums = {name: file_sha256(path) for name, path in files.items()}
    try:
        store, root = fsspec.url_to_fs(target, **(storage_options or {}))
        is_local = "file" in ([store.protocol] if isinstance(store.protocol, str) else store.protocol)
        for name, path in files.items():
            logger.info("writing %s, %s bytes", name, f"{path.stat().st_size:,}")
            if is_local:  # Object stores have no folders to make.
                store.makedirs(f"{root}/{name}".rsplit("/", 1)[0], exist_ok=True)
            store.put_file(str(path), f"{root}/{name}")
        store.pipe_file(f"{root}/{SUMS}", "".join(f"{sha}  {name}\n" for name, sha in sums.items()).encode())
    except Exception as error:  # Every store has its own.
        raise CheckpointError(f"{without_credentials(target)} cannot be written: {error}") from error
