"""Where the lyric vocabulary comes from: it is needed with a checkpoint, but published apart from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from acestep.download import fetch_file, fetch_snapshot, is_url
from acestep.errors import CheckpointError
from acestep.weight_files import read_json

ENVIRONMENT = "ACESTEP_LYRIC_VOCAB"
NAMES = ("vocab.json", "lyric_vocab.json")
SPACE = "ACE-Step/ACE-Step"
SPACE_FILE = "acestep/models/lyrics_utils/vocab.json"

_REQUIRED_TOKENS = ("[STOP]", "[UNK]", "[SPACE]", "[START]", "[en]")


def find_lyric_vocab(
    checkpoint: Path,
    transformer: Path,
    explicit: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[Path, str]:
    """The vocabulary's file and where it was found, in words.

    Tried in this order: `explicit` (a path or URL), `ACESTEP_LYRIC_VOCAB`, the checkpoint's folder, the Space of the
    model's authors.

    Raises:
        CheckpointError: naming every place tried, or what is wrong with the file found.
    """
    given = explicit or os.environ.get(ENVIRONMENT)
    if given:
        origin = "given" if explicit else f"from {ENVIRONMENT}"
        path = _fetch(given, origin, storage_options)
    else:
        found = next((path for path in _beside(checkpoint, transformer) if path.is_file()), None)
        path, origin = (found, "in the checkpoint") if found else _from_space(checkpoint, transformer)
    _verify(path, origin, transformer)
    return path, origin


def _beside(checkpoint: Path, transformer: Path) -> Iterator[Path]:
    return (folder / name for folder in (checkpoint, transformer) for name in NAMES)


def _fetch(given: str, origin: str, storage_options: Mapping[str, Any] | None) -> Path:
    if is_url(given):
        return fetch_file(given, storage_options)
    path = Path(given).expanduser()
    if not path.is_file():
        raise CheckpointError(f"the lyric vocabulary {origin}, {path}, is not a file")
    return path


def _from_space(checkpoint: Path, transformer: Path) -> tuple[Path, str]:
    try:
        path = fetch_snapshot(SPACE, None, [SPACE_FILE], kind="space", what="the model's Space") / SPACE_FILE
        if path.is_file():
            return path, f"from the Space {SPACE}"
        reason = f"it has no {SPACE_FILE}"
    except CheckpointError as error:
        reason = str(error)
    tried = ", ".join(str(path) for path in _beside(checkpoint, transformer))
    raise CheckpointError(
        f"no lyric vocabulary. Tried: no file or URL given; {ENVIRONMENT} is not set; none of {tried}; the Space "
        f"{SPACE} ({reason}). Get {SPACE_FILE} from the model's source repository, and put it into the checkpoint's "
        f"folder as {NAMES[0]} or set {ENVIRONMENT} to it"
    )


def _verify(path: Path, origin: str, transformer: Path) -> None:
    content = read_json(path)
    model = content.get("model")
    ids = dict(model.get("vocab") or {}) if isinstance(model, dict) else {}
    ids |= {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    if missing := [token for token in _REQUIRED_TOKENS if token not in ids]:
        raise CheckpointError(
            f"{path} ({origin}) is not a lyric vocabulary: it should be a tokenizers file with the tokens "
            f"{', '.join(_REQUIRED_TOKENS)}; it lacks {', '.join(missing)}"
        )
    rows = read_json(transformer / "config.json").get("lyric_encoder_vocab_size")
    if rows is not None and max(ids.values()) >= rows:
        raise CheckpointError(
            f"{path} ({origin}) is not this checkpoint's lyric vocabulary: its ids go up to {max(ids.values()):,}, the "
            f"checkpoint's lyric table has {rows:,} rows"
        )
