"""A catalog written by hand: short tones and their rows, as a job would have left them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from acestep.audio import encode_audio
from acestep.audio_format import AudioFormat
from pipelines import layout, schema
from pipelines.catalog import Catalog
from pipelines.plan import PlanRecord
from pipelines.storage import Storage
from tests.conftest import stand_in_config

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
NUM_BUCKETS = 3
NASTY_IDS = [
    "plain",
    "with.dots.v2",
    "a/b/../c",
    "Überraschung 歌 🎵",
    "100%",
    "~tilde",
    "__meta__",
    "line\nbreak",
    "'\"`$",
]


def tone(number: int, seconds: float = 0.5, rate: int = 44_100) -> np.ndarray:
    """A stereo tone of its own pitch, float32 `[2, W]`."""
    phase = np.arange(round(seconds * rate), dtype=np.float32) / rate
    return np.tile(0.25 * np.sin(2 * np.pi * (200 + 10 * number) * phase, dtype=np.float32), (2, 1))


def make_catalog(
    storage: Storage, ids: Sequence[str], *, format: str = "flac", seconds: float = 0.5, minutes: int = 0, **more: Any
) -> None:
    """Songs with these ids, three buckets, one commit for each.

    Args:
        minutes: how much later than others they were made.
        more: columns, a value for all.
    """
    config = stand_in_config(loudness__mode="off").shown()
    record = PlanRecord(
        **{field.name: None for field in dataclasses.fields(PlanRecord)}  # type: ignore[arg-type]
        | {"format": 1, "plan": "p", "num_buckets": NUM_BUCKETS, "config": config, "model": {"name": "stand-in"}}
    )
    storage.put(layout.RUN, json.dumps(dataclasses.asdict(record)).encode())
    rows: dict[int, list[dict[str, Any]]] = {}
    audio = AudioFormat.parse(format=format)
    for number, id in enumerate(ids):
        data = encode_audio(tone(number, seconds), 44_100, audio, {"title": id[:100]})
        fingerprint = hashlib.sha256(f"{id} {minutes}".encode()).hexdigest()[:16]
        key = layout.audio_key(id, fingerprint, audio.extension)
        storage.put(key, data)
        row = {
            "id": id,
            "fingerprint": fingerprint,
            "path": key,
            "format": format,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "duration": seconds,
            "requested_duration": seconds,
            "sample_rate": 44_100,
            "num_samples": round(seconds * 44_100),
            "prompt": f"song {number}, piano",
            "lyrics": "" if number % 2 else "[verse]\nla | la",
            "language": "de" if number % 3 else "auto",
            "seed": 2**40 + number,
            "num_inference_steps": 20 + number % 5,
            "scheduler": "euler",
            "task": "text2music",
            "oss_steps": [1, 2],
            "resampler": "kaiser",
            "model": "stand-in",
            "model_fingerprint": "0123456789abcdef",
            "dtype": "float32",
            "random_weights": True,
            "ai_generated": True,
            "version": "0.1.0",
            "created_at": START + timedelta(minutes=minutes, seconds=number),
            **more,
        }
        rows.setdefault(layout.bucket_of(id, NUM_BUCKETS), []).append(row)
    for bucket, songs in rows.items():
        table = schema.table_of(songs, schema.SONG)
        labels = [f"label of {song['id']}" for song in songs]
        days = [START.date()] * len(songs)
        table = table.append_column("label", pa.array(labels)).append_column("audio", pa.array([1] * len(songs)))
        table = table.append_column("day", pa.array(days, pa.date32()))
        Catalog(storage).add_songs(bucket, f"run-{minutes:06d}", table)
