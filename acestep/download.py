"""Bring a checkpoint's files onto this machine: from the model hub, or from any store that fsspec speaks to.

The hub has its own cache. Files from a store land in ours, once per machine: the folder is named after the store's
listing, so that an unchanged listing is a folder that is already there, and a changed one is a new folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import TqdmCallback

from acestep.cache import cache_folder, file_sha256, make_once, require_space
from acestep.errors import CheckpointError

logger = logging.getLogger(__name__)

ATTEMPTS = 3
SUMS = "SHA256SUMS"
"""A file of `<sha256>  <name>` lines at the root of a checkpoint, as sha256sum writes it."""

_VERSION_KEYS = ("ETag", "etag", "e_tag", "md5Hash", "content_md5", "crc32c", "checksum")
_TIME_KEYS = ("LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a store's listing."""

    name: str
    """Relative to the checkpoint: `music_vocoder/config.json`."""
    path: str
    size: int | None
    """Bytes; None where the store does not say."""
    version: str
    """Its ETag or whatever the store has like it."""


def is_url(source: str) -> bool:
    """Whether a source is for fsspec."""
    return "://" in source


def without_credentials(url: str) -> str:
    """A URL as messages may show it."""
    return re.sub(r"://[^/@]*@", "://", url)


def fetch_snapshot(
    repository: str, revision: str | None, patterns: Sequence[str], *, kind: str = "model", what: str = "checkpoint"
) -> Path:
    """The hub's files that match `patterns`, in the hub's own cache.

    Raises:
        CheckpointError: if the hub cannot be reached (and the cache has nothing) or has no such repository.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{repository}@{revision}" if revision else repository
    try:
        return Path(snapshot_download(repository, revision=revision, repo_type=kind, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        state = (
            "HF_HUB_OFFLINE is set"
            if constants.is_offline_mode()
            else f"the hub at {constants.ENDPOINT} cannot be reached ({_first_line(error)})"
        )
        raise CheckpointError(
            f"{what} {name!r}: {state} and its cache {constants.HF_HUB_CACHE} does not hold it; fetch it where there "
            "is a network (`acestep weights`), or give a local folder or a URL such as s3://bucket/prefix"
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(f"{what} {name!r} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{what} {name!r}: the hub has the repository, but not this revision") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{what} {name!r}: neither a local folder nor a {kind} at {constants.ENDPOINT} (if it is private, set "
            "HF_TOKEN); other sources: `tiny`, a folder, a URL such as s3://bucket/prefix"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{what} {name!r} cannot be fetched from the hub: {_first_line(error)}") from error


def fetch_folder(
    url: str,
    folders: Sequence[str],
    wanted: Callable[[str], bool],
    check: Callable[[Sequence[str]], None],
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """The wanted files of a folder in a store, in this machine's cache.

    Args:
        folders: the sub-folders to look into, besides the root.
        wanted: whether a file, by its name relative to the root, is to be fetched.
        check: called with the names that the store has before anything is fetched; raises if that is not enough.

    Raises:
        CheckpointError: if the store cannot be reached, or what arrives is not what it listed.
    """
    with _speaking(url):
        store, root = fsspec.url_to_fs(url, **(storage_options or {}))
        store.invalidate_cache()  # A listing that this process saw earlier may be out of date.
        files = [file for folder in ("", *folders) for file in _list(store, root, folder) if wanted(file.name)]
    check([file.name for file in files])
    place = cache_folder() / "checkpoints" / f"{_last_part(url)}-{_key(url, files)}"
    return make_once(place, lambda folder: _download(store, url, files, folder))


def fetch_file(url: str, storage_options: Mapping[str, Any] | None = None) -> Path:
    """One file of a store, in this machine's cache.

    Raises:
        CheckpointError: if it cannot be fetched.
    """
    with _speaking(url):
        store, path = fsspec.url_to_fs(url, **(storage_options or {}))
        store.invalidate_cache()
        file = _remote_file(_last_part(url), store.info(path))
    place = cache_folder() / "files" / f"{_last_part(url)}-{_key(url, [file])}"
    return make_once(place, lambda folder: _download(store, url, [file], folder)) / file.name


def read_sums(folder: Path) -> dict[str, str]:
    """The checksums that a checkpoint brings along: name -> sha256; empty without a `SHA256SUMS` file."""
    if not (folder / SUMS).is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in (folder / SUMS).read_text().splitlines() if line.strip())
    return {name.lstrip("*").removeprefix("./"): digest.lower() for digest, name in lines}


def wrong_sums(folder: Path) -> list[str]:
    """The files of a folder that are not what its `SHA256SUMS` says; files that are not there do not count."""
    sums = read_sums(folder)
    return [name for name, sha in sums.items() if (folder / name).is_file() and file_sha256(folder / name) != sha]


def _list(store: Any, root: str, folder: str) -> Iterator[RemoteFile]:
    try:
        entries = store.ls(f"{root}/{folder}" if folder else root, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.get("type") == "file":
            base = entry["name"].rstrip("/").rsplit("/", 1)[-1]
            yield _remote_file(f"{folder}/{base}" if folder else base, entry)


def _remote_file(name: str, entry: Mapping[str, Any]) -> RemoteFile:
    keys = [key for key in _VERSION_KEYS if entry.get(key)] or [key for key in _TIME_KEYS if entry.get(key)]
    return RemoteFile(name, entry["name"], entry.get("size"), str(entry[keys[0]]) if keys else "")


def _key(url: str, files: Sequence[RemoteFile]) -> str:
    listing = sorted((file.name, file.size, file.version) for file in files)
    return hashlib.sha256(json.dumps([without_credentials(url).rstrip("/"), listing]).encode()).hexdigest()[:16]


def _last_part(url: str) -> str:
    part = without_credentials(url).split("://", 1)[-1].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]", "_", part)[:100] or "root"


def _download(store: Any, url: str, files: Sequence[RemoteFile], folder: Path) -> None:
    """Fill `folder`; files that an interrupted download finished are kept."""
    missing = [file for file in files if file.size is None or _size(folder / file.name) != file.size]
    total = sum(file.size or 0 for file in missing)
    require_space(folder, total)
    logger.info("fetching %d files, %s bytes, from %s", len(missing), f"{total:,}", without_credentials(url))
    for file in missing:
        _download_file(store, url, file, folder / file.name)
    if wrong := wrong_sums(folder):
        for name in wrong:
            (folder / name).unlink()  # So that the next attempt fetches it again.
        raise CheckpointError(
            f"{without_credentials(url)}: what arrived is not what its {SUMS} says: {', '.join(wrong)}; "
            "try again, or upload these files (or the sums) again"
        )


def _download_file(store: Any, url: str, file: RemoteFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        bar = TqdmCallback(tqdm_kwargs={"desc": file.name, "unit": "B", "unit_scale": True, "disable": None})
        try:
            store.get_file(file.path, str(unfinished), callback=bar)
            size = _size(unfinished)
            if file.size is not None and size != file.size:
                raise OSError(f"{size:,} bytes arrived of the {file.size:,} that the store lists")
        except Exception as error:  # Every store has its own.
            if attempt == ATTEMPTS or isinstance(error, (FileNotFoundError, PermissionError)):
                raise CheckpointError(
                    f"{file.name} cannot be fetched from {without_credentials(url)}: {_first_line(error)}"
                ) from error
            logger.warning("fetching %s: %s; trying again", file.name, _first_line(error))
            time.sleep(2**attempt / 2)
        else:
            unfinished.replace(target)
            return
        finally:
            bar.close()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


@contextmanager
def _speaking(url: str) -> Iterator[None]:
    """Whatever a store's library raises becomes one error that says which store and what to do."""
    try:
        yield
    except ImportError as error:
        raise CheckpointError(f"{without_credentials(url)} needs a package that is not here: {error}") from error
    except Exception as error:
        raise CheckpointError(
            f"{without_credentials(url)} cannot be listed: {_first_line(error)}; check the address, the credentials "
            "and the endpoint (storage_options, or AWS_ENDPOINT_URL for S3)"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
