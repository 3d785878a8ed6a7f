"""`SourceFiles`: sources from the server's store as files of this machine, which is what engines read."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path

from acestep.request import GenerationRequest
from pipelines.storage import Storage

KEPT = 16
"""Files that stay for the next request: a song is often repainted again and again."""


class SourceFiles:
    """Fetches each source once; the folder goes with the process."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._folder = tempfile.TemporaryDirectory(prefix="acestep-sources-")
        self._files: OrderedDict[str, Path] = OrderedDict()

    def located(self, request: GenerationRequest, key: str | None) -> GenerationRequest:
        """The request with its source as a path.

        Raises:
            FileNotFoundError: when it is not there any more.
            StorageError: when it cannot be read.
        """
        if key is None:
            return request
        if key not in self._files:
            path = Path(self._folder.name, key.replace("/", "-"))
            path.write_bytes(self._storage.get(key))
            self._files[key] = path
        self._files.move_to_end(key)
        while len(self._files) > KEPT:
            self._files.popitem(last=False)[1].unlink(missing_ok=True)
        return request.model_copy(update={"source": str(self._files[key])})

    def hidden(self, message: str) -> str:
        """A message without paths of this machine."""
        for path in self._files.values():
            message = message.replace(str(path), "the source")
        return message
