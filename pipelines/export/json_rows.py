"""Rows as JSON: one line, readable by strict parsers whatever the columns hold."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as UTF-8 JSON without a line break; times as ISO text, bytes as base64, NaN and infinities as null."""
    return json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
