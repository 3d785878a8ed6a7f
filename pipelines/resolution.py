"""One row of a manifest: a complete request, or a reject with all its reasons.

`plan_rows` judges a batch of rows and depends on nothing else, so that it can run anywhere and in any order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

import pyarrow as pa

from acestep.errors import CheckpointError, InvalidRequestError
from acestep.lora_files import LoraFiles
from acestep.problems import Problem
from acestep.request import GenerationRequest, derived_seed
from pipelines import schema
from pipelines.kept import PREFIX, KeptLatents
from pipelines.manifest import ManifestBatch

REJECT = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("message", pa.string()),
        pa.field(
            "reasons",
            pa.list_(pa.struct([("field", pa.string()), ("value", pa.string()), ("allowed", pa.string())])),
        ),
        pa.field("request", pa.string()),
    ]
)
"""A refused row; `request` is its values as JSON."""

_NUMBERED = {
    name
    for name, info in GenerationRequest.model_fields.items()
    if get_origin(info.annotation) is Literal and isinstance(get_args(info.annotation)[0], int)
}


@dataclass(frozen=True, slots=True)
class Resolution:
    """What turns a row into a complete request and names its sound."""

    defaults: Mapping[str, Any]
    seed: int
    model_fingerprint: str
    rendition: str
    kept: KeptLatents | None = None
    """Where sources such as `song:<id>` are looked up; None: there are none."""

    def identity(self) -> dict[str, Any]:
        """What plans are told apart by."""
        return {
            "defaults": dict(self.defaults),
            "seed": self.seed,
            "model": self.model_fingerprint,
            "rendition": self.rendition,
        }


def plan_rows(batch: ManifestBatch, resolution: Resolution) -> tuple[pa.Table, pa.Table]:
    """Judge rows: complete requests (`schema.PLAN` and the manifest's own columns), and rejects (`REJECT`)."""
    table = batch.table
    known = [name for name in table.column_names if name in schema.REQUEST.names]
    carried = [name for name in table.column_names if name not in schema.REQUEST.names]
    planned: list[dict[str, Any]] = []
    kept: list[int] = []
    rejects = [
        reject(batch.file, bad.row, None, [Problem("(row)", bad.text, bad.reason)], {"text": bad.text})
        for bad in batch.unreadable
    ]
    for position, (row, values) in enumerate(zip(batch.rows, table.select(known).to_pylist(), strict=True)):
        try:
            request = _request(values, resolution)
            adapter = _adapter_fingerprint(request.lora) if request.lora is not None else ""
        except InvalidRequestError as error:
            rejects.append(reject(batch.file, row, values.get("id"), error.problems, values))
            continue
        fingerprint = request.fingerprint(resolution.model_fingerprint, resolution.rendition, adapter)
        where = {"file": batch.file, "row": row, "fingerprint": fingerprint, "num_frames": request.num_frames}
        planned.append(where | schema.request_values(request))
        kept.append(position)
    plan = schema.table_of(planned, schema.PLAN)
    for name in carried:
        column = table.column(name).take(pa.array(kept, pa.int64()))
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        plan = plan.append_column(schema.carried_name(name), column)
    return plan, schema.table_of(rejects, REJECT)


def _request(values: Mapping[str, Any], resolution: Resolution) -> GenerationRequest:
    """A row as a complete request.

    Raises:
        InvalidRequestError: with every problem of the row.
    """
    given = {name: value for name, value in values.items() if value is not None}
    merged = {**resolution.defaults, **{name: _number(name, value) for name, value in given.items()}}
    problems: list[Problem] = []
    source = merged.get("source")
    if resolution.kept is not None and isinstance(source, str) and source.startswith(PREFIX):
        try:
            merged["source"] = resolution.kept.address(source)
        except InvalidRequestError as error:
            problems += error.problems
    id = merged["id"] = _id_text(given.get("id"), problems)
    if merged.get("seed") is None:
        merged["seed"] = derived_seed(resolution.seed, id or "")
    try:
        request = GenerationRequest.parse(merged).resolved()
    except InvalidRequestError as error:
        problems += error.problems
    if problems:
        raise InvalidRequestError(problems)
    return request


@lru_cache(maxsize=256)
def _adapter_fingerprint(lora: str) -> str:
    """The hash of an adapter's content, so that another adapter in its place is another sound.

    Raises:
        InvalidRequestError: when it cannot be found or reached.
    """
    try:
        return LoraFiles.open(lora, name=lora).fingerprint()
    except CheckpointError as error:
        raise InvalidRequestError([Problem("lora", lora, str(error))]) from error


def _id_text(value: Any, problems: list[Problem]) -> str | None:
    """An id of any scalar type as text; whole floats as integers, for a column with a gap turns into floats."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (datetime, date)):
        value = value.isoformat()
    if value is None or value == "" or isinstance(value, (list, dict)) or value != value:
        problems.append(Problem("id", value, "it is required: text or a number, different in every row"))
        return None
    return str(value)


def _number(name: str, value: Any) -> Any:
    """What CSV has as text and a column with a gap as a float, for fields where only certain integers are allowed."""
    if name in _NUMBERED and isinstance(value, (str, float)):
        try:
            return int(value) if float(value).is_integer() else value
        except ValueError:
            return value
    return value


def reject(file: str, row: int, id: Any, problems: Sequence[Problem], values: Mapping[str, Any]) -> dict[str, Any]:
    """A refused row as `REJECT` has it."""
    reasons = [{"field": each.field, "value": str(each.value), "allowed": each.allowed} for each in problems]
    return {
        "file": file,
        "row": row,
        "id": None if id is None else str(id),
        "message": "; ".join(str(problem) for problem in problems),
        "reasons": reasons,
        "request": json.dumps(dict(values), ensure_ascii=False, default=str),
    }
