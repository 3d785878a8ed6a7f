"""Encoding a song and putting it away: a task on CPUs, so that engines never wait for it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import traceback
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from acestep import __version__
from acestep.audio_format import AudioFormat
from acestep.errors import ACEStepError
from acestep.loudness import Loudness, normalize
from acestep.request import SOUND_VERSION
from pipelines import layout, schema
from pipelines.catalog import failed_table
from pipelines.config import RunConfig
from pipelines.errors import Stop, StorageError
from pipelines.schema import pack, unpack
from pipelines.sections import ProvenanceSection
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
        pa.field("engine", pa.string()),
        pa.field("stop", pa.string()),
    ]
)
"""What reaches the driver of one song: its packed row of the catalog, as a song or as a failure."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """What becomes of a waveform on its way into storage.

    Attributes:
        scorer: the name that scores are recorded under.
        quarantine: whether the audio of songs that failed the quality gate is kept.
    """

    storage: Storage
    run: str
    audio: AudioFormat
    loudness: Loudness
    provenance: ProvenanceSection
    scorer: str | None = None
    quarantine: bool = True

    def finished(
        self, plan: pa.Table, facts: dict[str, Any], waveform: pa.LargeBinaryScalar, latents: bytes | None
    ) -> dict[str, bytes]:
        """The packed row of one song, its audio put away first; a song that cannot be encoded is a failure.

        Raises:
            StorageError: when it cannot be put away.
        """
        put: dict[str, Any] = {}
        error = (facts["error_class"], facts["message"]) if "error_class" in facts else None
        try:
            if waveform.is_valid and (error is None or self.quarantine):
                samples = np.frombuffer(waveform.as_buffer(), dtype=np.float32).reshape(2, -1)
                if error is not None:
                    samples = np.nan_to_num(samples)
                put = self._put(plan, facts, samples, latents, quarantined=error is not None)
        except StorageError:
            raise
        except Exception as raised:
            logger.warning("a song could not be encoded", exc_info=True)
            if error is None:
                error_class = raised.error_class if isinstance(raised, ACEStepError) else "internal"
                error = (error_class, f"encoding: {type(raised).__name__}: {raised}")
        if error is None:
            return {"song": pack(self._song(plan, facts, put))}
        failed = failed_table(plan, *error, attempts=facts["attempt"], batch=facts["batch"], run=self.run)
        for name in ("path", "bytes", "sha256", "evidence"):
            value = put.get(name, facts.get(name))
            field = schema.FAILED.field(name)
            failed = failed.set_column(failed.schema.get_field_index(name), field, pa.array([value], field.type))
        return {"failed": pack(failed)}

    def _put(
        self, plan: pa.Table, facts: dict[str, Any], samples: np.ndarray, latents: bytes | None, *, quarantined: bool
    ) -> dict[str, Any]:
        """Encode, sign and put; the columns that follow from that."""
        from acestep.audio import encode_audio

        id, fingerprint = plan.column("id")[0].as_py(), plan.column("fingerprint")[0].as_py()
        rate, started = facts["sample_rate"], time.perf_counter()
        lufs = json.loads(facts["quality"]).get("lufs")
        if not quarantined:
            louder = normalize(samples, rate, **self.loudness.model_dump())
            lufs, samples = _delivered(lufs, samples, louder), louder
        data = encode_audio(samples, rate, self.audio, _tags(facts["tags"], fingerprint))
        signed = None
        if self.provenance.mode == "c2pa" and not quarantined:
            data, signed = self._sign(data, plan, facts), "c2pa"
        encoded = time.perf_counter()
        where = layout.quarantine_key if quarantined else layout.audio_key
        key, latents_key = where(id, fingerprint, self.audio.extension), None
        self.storage.put(key, data)
        if latents and not quarantined:
            latents_key = layout.latents_key(id, fingerprint)
            self.storage.put(latents_key, latents)
        return {
            "path": key,
            "latents": latents_key,
            "format": self.audio.format,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "duration": samples.shape[1] / rate,
            "num_samples": samples.shape[1],
            "lufs": lufs,
            "signed": signed,
            "encode_seconds": encoded - started,
            "upload_seconds": time.perf_counter() - encoded,
        }

    def _sign(self, data: bytes, plan: pa.Table, facts: dict[str, Any]) -> bytes:
        names = ("id", "fingerprint", "lora", "adapter_fingerprint")
        planned = plan.select(names).to_pylist()[0]
        said = {name: planned[name] for name in names} | {name: facts[name] for name in ("model", "model_fingerprint")}
        said |= {"seed": facts["seed"], "version": __version__, "sound_version": SOUND_VERSION}
        return self.provenance.sign(data, self.audio.format, said)

    def _song(self, plan: pa.Table, facts: dict[str, Any], put: dict[str, Any]) -> pa.Table:
        planned = plan.to_pylist()[0]
        row = {
            **{name: planned[name] for name in schema.SONG.names if name in planned},
            **{name: facts[name] for name in schema.SONG.names if name in facts},
            **put,
            "requested_duration": planned["duration"],
            "timings": json.dumps(facts["timings"]),
            "scorer": self.scorer if facts["score"] is not None else None,
            "ai_generated": True,
            "version": __version__,
            "sound_version": SOUND_VERSION,
            "run": self.run,
            "created_at": datetime.now(timezone.utc),
        }
        song = schema.table_of([row], schema.SONG)
        for name in schema.carried_columns(plan):
            song = song.append_column(plan.schema.field(name), plan.column(name))
        return song


def encode_songs(table: pa.Table, encoder: Encoder) -> pa.Table:
    """Generated songs in (`generating.GENERATED`), their rows out (`ENCODED`); the audio is put away in between."""
    rows = []
    for position in range(table.num_rows):
        row = {name: table.column(name)[position].as_py() for name in table.column_names if name != "waveform"}
        answer = {name: row[name] for name in ENCODED.names if name in row} | {"song": None, "failed": None}
        waveform = table.column("waveform")[position]
        if not row["stop"]:
            facts = json.loads(row["outcome"]) | {"batch": row["batch"]}
            try:
                answer |= encoder.finished(unpack(row["request"]), facts, waveform, row["latents"])
            except StorageError as error:
                answer["stop"] = Stop(error.error_class, str(error)).text()
            except Exception:  # Ray would drop the song without a word.
                answer["stop"] = Stop("internal", traceback.format_exc()).text()
        rows.append(answer)
    return schema.table_of(rows, ENCODED)


def _tags(tags: dict[str, str], fingerprint: str) -> dict[str, str]:
    """What the file says of itself, with what finds its row again."""
    comment = json.loads(tags["comment"]) | {"fingerprint": fingerprint, "version": __version__}
    return tags | {"comment": json.dumps(comment, ensure_ascii=True)}


def _delivered(lufs: float | None, before: np.ndarray, after: np.ndarray) -> float | None:
    """The loudness after one gain."""
    if lufs is None or before is after or not before.size:
        return lufs
    place = np.unravel_index(np.argmax(np.abs(before)), before.shape)
    gain = abs(float(after[place])) / max(abs(float(before[place])), 1e-12)
    return lufs + 20 * math.log10(gain) if gain > 0 else lufs


def encoder_of(config: RunConfig, storage: Storage, run: str) -> Encoder:
    """The encoder that a `RunConfig` describes."""
    scorer = config.best_of.scorer if config.best_of.candidates > 1 else None
    quarantine = config.quality.enabled and config.quality.quarantine
    return Encoder(storage, run, config.audio, config.loudness, config.provenance, scorer, quarantine)
