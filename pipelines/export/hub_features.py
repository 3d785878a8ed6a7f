"""What the Hub's `datasets` is told about columns: which hold audio, and the types of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

AUDIO_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_NAMES = {
    **{pa.string(): "string", pa.large_string(): "large_string", pa.binary(): "binary", pa.bool_(): "bool"},
    **{kind: str(kind) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{kind: str(kind) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    **{pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64", pa.date32(): "date32"},
}


def schema_metadata(audio: Sequence[str], sample_rate: int | None) -> dict[bytes, bytes]:
    """Metadata of a Parquet schema for `datasets`: these columns are `Audio`; it knows the others by their types."""
    feature: dict[str, Any] = {"_type": "Audio"}
    if sample_rate is not None:
        feature = {"sampling_rate": sample_rate, **feature}
    return {b"huggingface": json.dumps({"info": {"features": dict.fromkeys(audio, feature)}}).encode()}


def card_features(
    columns: pa.Schema, audio: Mapping[str, int | None], *, as_json: bool = False
) -> list[dict[str, Any]] | None:
    """The `features` of a data-set card, or None where a column is of a type that it has no name for.

    Args:
        audio: columns that hold audio, with their sample rate in Hz where all files have one.
        as_json: the columns are those of rows as JSON, which knows no times and no bytes.
    """
    features: list[dict[str, Any]] = []
    for field in columns:
        if field.name in audio:
            rate = audio[field.name]
            features.append({"name": field.name, "dtype": {"audio": {"sampling_rate": rate}} if rate else "audio"})
            continue
        kind = _kind(field.type, as_json)
        if kind is None:
            return None
        features.append({"name": field.name, **kind})
    return features


def _kind(kind: pa.DataType, as_json: bool) -> dict[str, Any] | None:
    if as_json and (pa.types.is_temporal(kind) or pa.types.is_binary(kind)):
        return {"dtype": "string"}
    if kind in _NAMES:
        return {"dtype": _NAMES[kind]}
    if pa.types.is_timestamp(kind):
        return {"dtype": str(kind)}
    if pa.types.is_list(kind) and (inner := _kind(kind.value_type, as_json)) and "dtype" in inner:
        return {"list": inner["dtype"]}
    return None
