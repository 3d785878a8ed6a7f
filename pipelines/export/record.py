"""`ExportRecord`: what a destination holds and is to hold, so that a killed export goes on and another is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import OutputError
from pipelines.export.facts import Facts
from pipelines.export.options import Kind
from pipelines.storage import Storage

RECORD = "export.json"
CARD = "README.md"
FORMAT = 1
"""Of the record."""


@dataclass(slots=True)
class SplitRecord:
    """One split of a data set.

    Attributes:
        rows: names the songs that were selected.
        options: those that decide the bytes.
        bytes: of all its objects, once it is finished.
        shards: sizes in bytes of the objects that stand for a finished shard.
        features: of the columns, for the card.
        audio: extension of each rendition's files.
        gate: limits that the songs passed; None: no gate.
    """

    rows: str
    options: dict[str, Any]
    num_shards: int
    finished: bool = False
    bytes: int = 0
    shards: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    features: list[dict[str, Any]] | None = None
    audio: dict[str, str] = field(default_factory=dict)
    gate: dict[str, Any] | None = None

    @property
    def plan(self) -> tuple[str, str]:
        """Equal for exports that make equal bytes."""
        return self.rows, json.dumps(self.options, sort_keys=True)

    def counted(self) -> Facts:
        """What can be said of the songs."""
        return Facts(**self.facts)


@dataclass(slots=True)
class ExportRecord:
    """What `export.json` says."""

    kind: Kind
    splits: dict[str, SplitRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, storage: Storage) -> ExportRecord | None:
        """The record of a destination, None where there is none.

        Raises:
            OutputError: when something else lies in its place.
        """
        try:
            values = json.loads(storage.get(RECORD))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OutputError(f"destination {storage.url}: {RECORD} there is not ours: {error}") from error
        try:
            if values["format"] != FORMAT:
                raise OutputError(f"destination {storage.url}: {RECORD} there is not of format {FORMAT}")
            return cls(values["as"], {name: SplitRecord(**split) for name, split in values["splits"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"destination {storage.url}: {RECORD} there is not ours: {error!r}") from error

    def write(self, storage: Storage) -> None:
        """Put it there."""
        splits = {name: dataclasses.asdict(split) for name, split in sorted(self.splits.items())}
        storage.put(RECORD, json.dumps({"format": FORMAT, "as": self.kind, "splits": splits}, indent=1).encode())


def difference(before: SplitRecord, now: SplitRecord) -> str:
    """Why the two are not one export, in words."""
    changed = [
        f"{name.replace('_', '-')} was {before.options.get(name)!r} and is {value!r}"
        for name, value in now.options.items()
        if before.options.get(name) != value
    ]
    if changed:
        return "; ".join(changed)
    return "the catalog's songs have changed since"
