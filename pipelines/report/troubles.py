"""`Troubles`: what a catalog lacks and why: failures by class and kind, quarantined songs, refused rows by rule."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.report.picks import Smallest, draw
from pipelines.storage import Storage

MOST_KINDS = 25
"""Kinds of failure shown of each class."""
MOST_LISTED = 1000
"""Quarantined songs without a player that are listed."""

_KINDS_COUNTED = 500
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|'[^']*'|\"[^\"]*\"|\d+(?:[.,]\d+)*")
_ROWS = 4096
_EXAMPLE_CHARACTERS = 120


@dataclass(slots=True)
class Kind:
    """Failures with the same message but for numbers and quoted words, and one of them."""

    error_class: str
    example: dict[str, Any]
    count: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """What rows were refused or warned for."""

    name: str
    count: int
    example: str


@dataclass(slots=True)
class Troubles:
    """Failures, counted; memory depends on how many are shown.

    Args:
        most_quarantined: how many quarantined songs are kept with all their facts.
    """

    most_quarantined: int
    seed: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    """Rows of the manifest among them that were never tried."""
    quarantined: int = 0
    _kinds: dict[tuple[str, str], Kind] = field(default_factory=dict)
    _shown: Smallest[dict[str, Any]] = field(init=False)
    _listed: Smallest[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self._shown = Smallest(self.most_quarantined)
        self._listed = Smallest(self.most_quarantined + MOST_LISTED)

    def take(self, failed: pa.Table) -> None:
        """Add failures, rows of `schema.FAILED`; older ones may lack columns."""
        for batch in failed.to_batches(max_chunksize=_ROWS):
            for row in batch.to_pylist():
                self._take(row)

    def kinds(self) -> list[Kind]:
        """Kinds to show, the largest class first and in it the most frequent."""
        shown: Counter[str] = Counter()
        kinds = []
        for kind in sorted(self._kinds.values(), key=lambda each: (-self.classes[each.error_class], -each.count)):
            shown[kind.error_class] += 1
            if shown[kind.error_class] <= MOST_KINDS:
                kinds.append(kind)
        return kinds

    def shown(self) -> list[dict[str, Any]]:
        """Quarantined songs to play."""
        return [row for _, row in self._shown.ranked()]

    def listed(self, shown: Iterable[str]) -> list[tuple[str, str]]:
        """Ids and paths of quarantined songs that are not among the paths `shown`, as many as are listed."""
        shown = set(shown)
        return [entry for _, entry in self._listed.ranked() if entry[1] not in shown][:MOST_LISTED]

    def _take(self, row: dict[str, Any]) -> None:
        name, message = row.get("error_class") or "unknown", row.get("message") or ""
        self.classes[name] += 1
        self.refused += not row.get("fingerprint")
        key = name, _VARIABLE.sub("#", message[:300])
        if key not in self._kinds and len(self._kinds) >= _KINDS_COUNTED:
            key = name, ""
        self._kinds.setdefault(key, Kind(name, _brief(row))).count += 1
        if path := row.get("path"):
            rank = draw(self.seed, f"{row.get('id')} {row.get('fingerprint')}")
            self.quarantined += 1
            self._listed.offer(rank, (row.get("id") or "", path))
            if self._shown.takes(rank):
                self._shown.offer(rank, row)


def rules_of(storage: Storage, key: str) -> list[Rule]:
    """Rows in a table of refused or warned ones, by rule (in older tables by field), the most frequent first."""
    try:
        file = pq.ParquetFile(io.BytesIO(storage.get(key)))
    except FileNotFoundError:
        return []
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    columns = [name for name in ("reasons", "rule", "message") if name in file.schema_arrow.names]
    for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
        for row in batch.to_pylist():
            reasons = row["reasons"] or [] if "reasons" in row else [row]
            for name in {each.get("rule") or each.get("field") or "unknown" for each in reasons}:
                counts[name] += 1
                examples.setdefault(name, _cut(row.get("message") or ""))
    return [Rule(name, count, examples[name]) for name, count in counts.most_common()]


def request_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The request in a failed row; empty where it cannot be read."""
    return _json(row.get("request"), dict)


def evidence_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was found wrong with a quarantined song, each time it was made."""
    return [each for each in _json(row.get("evidence"), list) if isinstance(each, dict)]


def measures_of(text: str | None) -> dict[str, Any]:
    """The column `quality`."""
    return _json(text, dict)


def _json(text: str | None, kind: type) -> Any:
    try:
        value = json.loads(text) if text else None
    except ValueError:
        value = None
    return value if isinstance(value, kind) else kind()


def _cut(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[:_EXAMPLE_CHARACTERS]}..."


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the table of failures shows of a row."""
    prompt = request_of(row).get("prompt")
    names = ("id", "message", "file", "row", "attempts", "path", "run", "created_at")
    return {name: row.get(name) for name in names} | {"prompt": prompt}
