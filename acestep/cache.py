"""The cache folder of this machine: things made once, whole or not at all, and the hashes of large files.

`ACESTEP_CACHE` names the folder; without it, it is `~/.cache/acestep`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from acestep.errors import CheckpointError

logger = logging.getLogger(__name__)

_READ_BYTES = 4 * 2**20


def cache_folder() -> Path:
    """The folder of this machine's cache; it need not exist yet."""
    return Path(os.environ.get("ACESTEP_CACHE") or "~/.cache/acestep").expanduser()


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `make` if it is not there yet.

    Processes that want the same folder wait for the one that makes it. `make` fills a folder beside it, which takes
    its name when it is complete; what an interrupted `make` left there, the next one finds.

    Raises:
        CheckpointError: if the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(folder.name + ".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        _acquire(lock, folder)
    except OSError as error:
        raise CheckpointError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror or error}); "
            "set ACESTEP_CACHE to a folder that can"
        ) from error
    try:
        if not folder.is_dir():
            unfinished.mkdir(exist_ok=True)
            make(unfinished)
            os.replace(unfinished, folder)
    finally:
        lock.release()
    return folder


def require_space(folder: Path, size: int) -> None:
    """Refuse early what would fill the disk under `folder` (`size` in bytes).

    Raises:
        CheckpointError: with the space needed and the space there is.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CheckpointError(
            f"{size:,} bytes are to be written to {folder}, where {free:,} are free; make room there, "
            "or set ACESTEP_CACHE to a folder on a larger disk"
        )


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex; computed again only when its real path, size or time of change differs."""
    real = path.resolve()
    state = real.stat()
    key = hashlib.sha256(f"{real}\n{state.st_size}\n{state.st_mtime_ns}".encode()).hexdigest()
    entry = cache_folder() / "sha256" / key
    try:
        known = entry.read_text()
        if len(known) == 64:
            return known
    except OSError:
        pass
    digest = _hash(real)
    after = real.stat()
    if (after.st_size, after.st_mtime_ns) == (state.st_size, state.st_mtime_ns):
        _remember(entry, digest)
    return digest


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that is making %s", folder)
        lock.acquire()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _remember(entry: Path, digest: str) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=entry.parent)
        with os.fdopen(handle, "w") as file:
            file.write(digest)
        os.replace(unfinished, entry)
    except OSError as error:  # A cache that cannot be written costs time, nothing else.
        logger.debug("cannot keep the hash of a file: %s", error)
