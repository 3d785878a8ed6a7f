"""Which columns of the catalog's rows are delivered, and under which names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from acestep.problems import nearest
from pipelines import schema
from pipelines.errors import UnusableInputError
from pipelines.export.options import ExportOptions

_OF_THE_RUN = {
    *("path", "latents", "device", "batch", "batch_size", "generate_seconds", "encode_seconds", "upload_seconds"),
    *("timings", "run", "attempt", "candidates"),
}
"""Say how a song came about, not what it is; `--columns` can name them all the same."""

_OF_THE_FILE = {"format", "bytes", "sha256", "num_samples", "signed"}
"""True of the catalog's file only, so left out beside renditions."""

_FIRST = ("id", "prompt", "lyrics", "language", "duration")
_TAKEN = re.compile(r"audio|audio_\w+|url|latents_url|(.*_)?file_names?")
"""What formats call columns of their own; audiofolder reads each `..._file_name` as audio."""


def delivered(table: pa.Table, options: ExportOptions) -> pa.Table:
    """The delivered columns of a table of songs, in the order in which people look at them.

    Raises:
        UnusableInputError: for a column that does not exist.
    """
    names = _wanted(table.column_names, options)
    chosen = table.select(names)
    return chosen.rename_columns([_free(name, chosen.column_names) for name in names])


def with_facts(table: pa.Table, facts: Sequence[dict[str, Any]]) -> pa.Table:
    """The table with what is known better of some columns, one mapping for each row."""
    for name in facts[0] if facts else ():
        position = table.schema.get_field_index(name)
        if position >= 0:
            kind = table.schema.field(position)
            values = pa.array([each[name] for each in facts], kind.type)
            table = table.set_column(position, kind, values)
    return table


def _wanted(names: Sequence[str], options: ExportOptions) -> list[str]:
    always = ["id", "path"] if options.kind == "jsonl" else ["id"]
    if options.columns is not None:
        for name in options.columns:
            if name not in names:
                hint = nearest(name, names) or f"known: {', '.join(names)}"
                raise UnusableInputError(f"columns: {name!r} is not allowed; the catalog has no such column; {hint}")
        return list(dict.fromkeys([*always, *options.columns]))
    left_out = _OF_THE_RUN | (_OF_THE_FILE if options.renditions else set())
    first = [name for name in [*always, *_FIRST] if name in names]
    first = list(dict.fromkeys(first))
    return first + [name for name in names if name not in left_out and name not in first]


def _free(name: str, names: Sequence[str]) -> str:
    """Another name for a column of the manifest that is called as a format calls one of its own."""
    if name in schema.SONG.names or not _TAKEN.fullmatch(name):
        return name
    free = f"{name}_in_manifest"
    while free in names:
        free += "_"
    return free
