"""What is in a destination before an export begins: nothing, its own beginning, or something that is not its own."""

from __future__ import annotations

import re

from pipelines.errors import OutputError
from pipelines.export.formats import FORMATS
from pipelines.export.options import Kind
from pipelines.export.record import CARD, ExportRecord, SplitRecord, difference
from pipelines.listing import objects_below
from pipelines.storage import Storage

_UNFINISHED = re.compile(r"(^|/)\.[0-9a-f]{32}\.tmp$")
"""Local files that a killed export was writing."""


def open_record(destination: Storage, kind: Kind, name: str, split: SplitRecord, *, overwrite: bool) -> ExportRecord:
    """The record of a destination with `split` in it, `split.shards` being those that are there whole.

    Args:
        kind: the format.
        name: of the split.
        overwrite: remove what is not this export's own.

    Raises:
        OutputError: when there is something else, and it is not to be replaced.
    """
    record, there = ExportRecord.read(destination), dict(objects_below(destination, ""))
    destination.delete([key for key in there if _UNFINISHED.search(key)])
    if record is None:
        strangers = [key for key in there if key == CARD or FORMATS[kind].owns(key, name)]
        if strangers and not overwrite:
            raise OutputError(
                f"destination {destination.url}: {strangers[0]} is there, and is not of an export that could go on; "
                "give another destination, or --overwrite to replace it"
            )
        destination.delete(strangers)
        record = ExportRecord(kind)
    elif record.kind != kind:
        if not overwrite:
            raise OutputError(
                f"destination {destination.url}: it holds an export as {record.kind}; "
                "give another destination, or --overwrite to replace it"
            )
        old = [key for key in there for each in record.splits if FORMATS[record.kind].owns(key, each)]
        destination.delete([*old, CARD])
        record = ExportRecord(kind)
    before = record.splits.get(name)
    if before is not None and before.plan == split.plan:
        split.shards = {key: size for key, size in before.shards.items() if there.get(key) == size}
    elif before is not None:
        if not overwrite:
            raise OutputError(
                f"destination {destination.url}: it holds another export of the split {name!r}: "
                f"{difference(before, split)}; give another destination, or --overwrite to replace it"
            )
        destination.delete([*(key for key in there if FORMATS[kind].owns(key, name)), CARD])
    record.splits[name] = split
    return record
