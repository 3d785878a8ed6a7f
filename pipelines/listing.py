"""Objects of an output with their sizes, folder by folder, so that memory stays flat whatever lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np

from pipelines.errors import StorageError
from pipelines.storage import Storage, open_filesystem

_THREADS = 8
_CHUNK = 100_000


def objects_below(storage: Storage, folder: str, *, deep: bool = True) -> Iterator[tuple[str, int]]:
    """Key and bytes of every object below a folder (empty: the output itself), unfinished local files too.

    Args:
        deep: also what is in its folders.

    Raises:
        StorageError: when it cannot be listed.
    """
    filesystem, root = open_filesystem(storage.url, storage.options)
    start = f"{root}/{folder}" if folder else root

    def listed(path: str, whole: bool) -> list[tuple[str, str, int]]:
        try:
            entries = filesystem.find(path, detail=True) if whole else filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise StorageError(f"cannot list {storage.url}/{folder}: {type(error).__name__}: {error}") from error
        infos = entries.values() if isinstance(entries, dict) else entries
        # Some S3 servers list an emptied folder as an object without a name, or as itself.
        named = (info for info in infos if not info["name"].endswith("/") and info["name"] != start)
        return [(info["name"][len(root) :].lstrip("/"), info["type"], int(info.get("size") or 0)) for info in named]

    top = listed(start, whole=False)
    yield from ((key, size) for key, kind, size in top if kind != "directory")
    folders = [f"{root}/{key}" for key, kind, _ in top if kind == "directory" and deep]
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(folders), _THREADS):  # Not all at once: what waits would be in memory.
            for found in pool.map(partial(listed, whole=True), folders[first : first + _THREADS]):
                yield from ((key, size) for key, kind, size in found if kind != "directory")


def hashed(keys: Iterable[str]) -> np.ndarray:
    """64 bits for each key, `[N]`: enough to ask whether one is among millions."""
    digests = (hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), np.uint64)


def among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of `values` is in `others`, which are sorted."""
    if not len(others):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(others, values), len(others) - 1)
    return others[places] == values


class Sizes:
    """Bytes of objects by key: 16 bytes in memory for each."""

    def __init__(self, objects: Iterable[tuple[str, int]]):
        self._hashes, self._sizes = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        chunks = []
        remaining = iter(objects)
        while chunk := list(islice(remaining, _CHUNK)):
            chunks.append((hashed(key for key, _ in chunk), np.array([size for _, size in chunk], np.int64)))
        if chunks:
            hashes = np.concatenate([each for each, _ in chunks])
            order = np.argsort(hashes)
            self._hashes, self._sizes = hashes[order], np.concatenate([each for _, each in chunks])[order]

    @classmethod
    def below(cls, storage: Storage, folder: str) -> Sizes:
        """Of everything below a folder, from one listing."""
        return cls(objects_below(storage, folder))

    def get(self, key: str) -> int | None:
        """Bytes of an object, None when it is not there."""
        value = hashed([key])
        place = int(np.searchsorted(self._hashes, value[0]))
        found = place < len(self._hashes) and self._hashes[place] == value[0]
        return int(self._sizes[place]) if found else None

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None
