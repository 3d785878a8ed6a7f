"""File names from ids: safe in tar files, file systems and URLs, and back again."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote, unquote

LONGEST_KEY = 180
"""Characters; file systems allow 255 bytes, and an extension follows."""
_CUT = 150
_HASHED = "~"
"""Stands in no key but those that were cut."""


def key_of(id: str) -> str:
    """The id with everything but `A-Z a-z 0-9 _ -` percent-encoded; a very long one is cut and told by its hash.

    WebDataset takes a name up to its first dot for the sample's key, so a key must not hold one. Readers leave out
    files whose names begin with `__`, so no key begins with `_`.
    """
    key = re.sub("^_", "%5F", quote(id, safe="").replace(".", "%2E").replace("~", "%7E"))
    if len(key) <= LONGEST_KEY:
        return key
    kept = re.sub(r"%[0-9A-F]?$", "", key[:_CUT])
    return f"{kept}{_HASHED}{hashlib.sha256(id.encode()).hexdigest()[:16]}"


def id_of(key: str) -> str:
    """The id of a key.

    Raises:
        ValueError: for a key that was cut: its id stands only beside it, in the sample's row.
    """
    if _HASHED in key:
        raise ValueError(f"the key {key!r} was cut; the sample's row has its id")
    return unquote(key, errors="strict")


def file_name(key: str, rendition: str, extension: str) -> str:
    """The name of a song's file: its last extension names the format, whatever the rendition is called."""
    return f"{key}.{extension}" if rendition in ("", extension) else f"{key}.{rendition}.{extension}"


def audio_column(rendition: str) -> str:
    """What the audio of one rendition among several is called."""
    return f"audio_{rendition}"
