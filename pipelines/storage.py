"""`Storage`: one folder of whole objects, local or on any fsspec store.

An object is encoded in memory and put in one go, so that nobody ever reads half of one: an exception inside an open
stream would publish what was written so far. Conditional writes are not used, for some servers ignore them.
"""

from __future__ import annotations

import io
import logging
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from acestep.whole_file import write_whole
from pipelines.errors import OutputError, StorageError, UnusableInputError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

FIRST_DELAY = 0.2
"""Seconds before the first retry; doubled each time, then drawn between nothing and that."""
LONGEST_DELAY = 20.0

_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
_READ_BLOCK = 1 << 20
_PROBE_ATTEMPTS = 2


def open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec filesystem of `url` and the path in it; listings are never cached, for others write too.

    Raises:
        UnusableInputError: for a protocol that is unknown or not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(os.path.expanduser(url))
        if not isinstance(filesystem, LocalFileSystem):
            filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except (ValueError, ImportError, TypeError) as error:
        raise UnusableInputError(f"{url}: {error}") from error
    return filesystem, path.rstrip("/")


class Storage:
    """A folder (local path or fsspec URL) and what can be done there; safe to send to other processes.

    Args:
        url: the folder; it need not exist yet.
        options: for the fsspec filesystem, such as `endpoint_url`, `key` and `secret` for S3.
        attempts: how often an operation is tried before it counts as failed.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None, *, attempts: int = 5):
        self.options = dict(options or {})
        self.attempts = attempts
        self._filesystem, self._root = open_filesystem(url, self.options)
        self.is_local = isinstance(self._filesystem, LocalFileSystem)
        self.url = self._root if self.is_local else url.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.url, self.options, self.attempts)

    def __repr__(self) -> str:  # Without the options: they may hold secrets.
        return f"Storage({self.url!r})"

    def put(self, key: str, data: bytes) -> None:
        """Write a whole object; it appears complete or not at all.

        Raises:
            StorageError: when it still fails after every retry.
        """
        action = write_whole if self.is_local else self._filesystem.pipe_file
        self._retried("write", key, lambda: action(self._path(key), data))

    @contextmanager
    def whole_file(self, key: str) -> Iterator[Path]:
        """A local file to write, for what is too large for the memory; it becomes the object when the block ends.

        Raises:
            StorageError: when it still cannot be put in its place after every retry.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="acestep-") as folder:
                file = Path(folder, "file")
                yield file
                self._retried("write", key, lambda: self._filesystem.put_file(str(file), self._path(key)))
            return
        target = Path(self._path(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            yield file
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.replace(target)
        finally:
            file.unlink(missing_ok=True)

    @contextmanager
    def local_copy(self, key: str) -> Iterator[Path]:
        """The object as a local file, to read while the block lasts; raises as `get`."""
        if self.is_local:
            if not os.path.isfile(self._path(key)):
                raise FileNotFoundError(self._path(key))
            yield Path(self._path(key))
            return
        with tempfile.TemporaryDirectory(prefix="acestep-") as folder:
            file = Path(folder, "file")
            self._retried("read", key, lambda: self._filesystem.get_file(self._path(key), str(file)))
            yield file

    def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: when there is none.
            StorageError: when it still fails after every retry.
        """
        return self._retried("read", key, lambda: self._filesystem.cat_file(self._path(key)))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._retried("look for", key, lambda: bool(self._filesystem.isfile(self._path(key))))

    def keys(self, prefix: str, suffix: str = "") -> list[str]:
        """Keys of all objects below the folder `prefix`, sorted; none when there is no such folder."""
        try:
            paths = self._retried("list", prefix, lambda: self._filesystem.find(self._path(prefix)))
        except FileNotFoundError:
            return []
        keys = (path[len(self._root) :].lstrip("/") for path in paths)
        # Unfinished local writes start with a dot; some S3 servers list an emptied folder as an object without a name.
        names = ((key, key.rpartition("/")[2]) for key in keys)
        return sorted(key for key, name in names if name and name.endswith(suffix) and not name.startswith("."))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        for key in keys:
            with suppress(FileNotFoundError):
                self._retried("delete", key, partial(self._filesystem.rm_file, self._path(key)))

    def write_table(self, key: str, table: pa.Table) -> None:
        """Write a table as one Parquet object."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.put(key, buffer.getvalue())

    def read_table(self, key: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet object; with `columns`, only the bytes that those need."""
        if columns is None:
            return pq.ParquetFile(io.BytesIO(self.get(key))).read()

        def read() -> pa.Table:
            with self._filesystem.open(self._path(key), "rb", block_size=_READ_BLOCK) as stream:
                return pq.ParquetFile(stream).read(columns=columns)

        return self._retried("read", key, read)

    def probe(self) -> None:
        """Find out now whether anything can be written here, leaving no trace.

        Raises:
            OutputError: when nothing can.
        """
        key = f"probe-{uuid.uuid4().hex}"
        made = self.missing_folders()
        patient, self.attempts = self.attempts, min(self.attempts, _PROBE_ATTEMPTS)
        try:
            self.put(key, b"probe")
            self.delete([key])
            self.remove_empty(made)
        except OSError as error:
            reason = error.__cause__ or error
            raise OutputError(f"output {self.url}: nothing can be written there ({_said(reason)})") from error
        finally:
            self.attempts = patient

    def missing_folders(self) -> list[str]:
        """Folders that the first write will make, outermost first."""
        folders: list[str] = []
        path = self._root
        while self.is_local and path and not os.path.exists(path):
            folders.append(path)
            path = os.path.dirname(path)
        return folders[::-1]

    def remove_empty(self, folders: Iterable[str]) -> None:
        """Remove what `missing_folders` told of, now that they are there; those that hold anything stay."""
        for folder in reversed(list(folders)):
            with suppress(OSError):
                os.rmdir(folder)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _retried(self, verb: str, key: str, action: Callable[[], Answer]) -> Answer:
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except FileNotFoundError as error:
                if verb != "write":  # A bucket that is not there; other verbs have callers who want to know.
                    raise
                raise StorageError(f"cannot {verb} {self.url}/{key}: there is no such place") from error
            except Exception as error:
                if attempt == self.attempts or isinstance(error, _LASTING):
                    tries = f"{attempt} times" if attempt > 1 else "once"
                    raise StorageError(f"cannot {verb} {self.url}/{key}, tried {tries}: {_said(error)}") from error
                delay = random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1)))
                logger.warning("cannot %s %s (%s); again in %.1f s", verb, key, _said(error), delay)
                time.sleep(delay)
        raise AssertionError("unreachable")


def _restored(url: str, options: dict[str, Any], attempts: int) -> Storage:
    return Storage(url, options, attempts=attempts)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
