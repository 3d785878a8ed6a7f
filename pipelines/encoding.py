"""Encoding a song and putting it away: a task on CPUs, so that engines never wait for it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from acestep.audio_format import AudioFormat
from acestep.errors import ACEStepError
from acestep.loudness import Loudness, normalize
from pipelines import layout, schema
from pipelines.catalog import failed_table
from pipelines.errors import Stop, StorageError
from pipelines.schema import pack, unpack
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

ENCODED = pa.schema(
    [
        pa.field("batch", pa.string()),
        pa.field("bucket", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("song", pa.binary()),
        pa.field("failed", pa.binary()),
        pa.field("actor", pa.string()),
        pa.field("load_seconds", pa.float64()),
        pa.field("stop", pa.string()),
    ]
)
"""What reaches the driver of one song: its packed row of the catalog, as a song or as a failure."""


def encode_songs(table: pa.Table, storage: Storage, audio: AudioFormat, loudness: Loudness, run: str) -> pa.Table:
    """Generated songs in (`generating.GENERATED`), their rows out (`ENCODED`); the audio is put away in between."""
    rows = []
    for position in range(table.num_rows):
        row = {name: table.column(name)[position].as_py() for name in table.column_names if name != "waveform"}
        answer = {name: row[name] for name in ENCODED.names if name in row} | {"song": None, "failed": None}
        waveform = table.column("waveform")[position]
        if not row["stop"]:
            facts = json.loads(row["outcome"]) | {"batch": row["batch"], "run": run}
            try:
                answer |= _finished(unpack(row["request"]), facts, waveform, row["latents"], storage, audio, loudness)
            except StorageError as error:
                answer["stop"] = Stop(error.error_class, str(error)).text()
            except Exception:  # Ray would drop the song without a word.
                answer["stop"] = Stop("internal", traceback.format_exc()).text()
        rows.append(answer)
    return schema.table_of(rows, ENCODED)


def _finished(
    plan: pa.Table,
    facts: dict[str, Any],
    waveform: pa.LargeBinaryScalar,
    latents: bytes | None,
    storage: Storage,
    audio: AudioFormat,
    loudness: Loudness,
) -> dict[str, bytes]:
    """The packed row of one song, its audio put away first; a song that cannot be encoded is a failure."""
    try:
        if "error_class" not in facts:
            samples = np.frombuffer(waveform.as_buffer(), dtype=np.float32).reshape(2, -1)
            samples = normalize(samples, facts["sample_rate"], **loudness.model_dump())
            return {"song": pack(_song(plan, facts, samples, latents, storage, audio))}
        error_class, message = facts["error_class"], facts["message"]
    except StorageError:
        raise
    except Exception as error:
        logger.warning("a song could not be encoded", exc_info=True)
        error_class = error.error_class if isinstance(error, ACEStepError) else "internal"
        message = f"encoding: {type(error).__name__}: {error}"
    failed = failed_table(plan, error_class, message, attempts=1, batch=facts["batch"], run=facts["run"])
    return {"failed": pack(failed)}


def _song(
    plan: pa.Table,
    facts: dict[str, Any],
    samples: np.ndarray,
    latents: bytes | None,
    storage: Storage,
    audio: AudioFormat,
) -> pa.Table:
    from acestep.audio import encode_audio

    planned = plan.to_pylist()[0]
    started = time.perf_counter()
    data = encode_audio(samples, facts["sample_rate"], audio, facts["tags"])
    encoded = time.perf_counter()
    key = layout.audio_key(planned["id"], planned["fingerprint"], audio.extension)
    storage.put(key, data)
    latents_key = layout.latents_key(planned["id"], planned["fingerprint"]) if latents else None
    if latents_key and latents:
        storage.put(latents_key, latents)
    uploaded = time.perf_counter()
    row = {
        **{name: planned[name] for name in schema.SONG.names if name in planned},
        **{name: facts[name] for name in schema.SONG.names if name in facts},
        "path": key,
        "latents": latents_key,
        "format": audio.format,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "duration": samples.shape[1] / facts["sample_rate"],
        "requested_duration": planned["duration"],
        "num_samples": samples.shape[1],
        "encode_seconds": encoded - started,
        "upload_seconds": uploaded - encoded,
        "timings": json.dumps(facts["timings"]),
        "created_at": datetime.now(timezone.utc),
    }
    song = schema.table_of([row], schema.SONG)
    for name in schema.carried_columns(plan):
        song = song.append_column(plan.schema.field(name), plan.column(name))
    return song
