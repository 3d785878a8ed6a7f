"""Writing a local file so that it is there whole or not at all."""

from __future__ import annotations

import os
import uuid


def write_whole(path: str, data: bytes) -> None:
    """Write `data` beside `path` and move it into place, making the folders above it.

    Raises:
        OSError: when it cannot be written; nothing is left behind then.
    """
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    unfinished = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        with open(unfinished, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
