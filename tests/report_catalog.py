"""A small catalog with everything that a report can show: written directly, as the pipeline writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np

from acestep.audio import encode_audio
from acestep.audio_format import AudioFormat
from pipelines import layout, schema
from pipelines.catalog import Catalog
from pipelines.rejects import REJECT, WARNING
from pipelines.storage import Storage

BUCKETS = 2
SAMPLE_RATE = 44_100
START = datetime(2026, 11, 20, 21, 4, 7, tzinfo=timezone.utc)
RUNS = (("0a1b2c3d", START), ("4e5f6a7b", START + timedelta(hours=9)))
"""Names and beginnings."""
QUARANTINED_SECONDS = 7.0
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=document.title='taken'>\"'&"

LYRICS = {
    "": "",
    "en": "[verse]\nThe harbour lights are coming on\nThe ferry hums an evening song\n\n[chorus]\nHold the line",
    "es": "[verse]\nCalle abajo va la luna\nCon zapatos de cristal\n\n[chorus]\nBaila, baila, que la noche es larga",
    "ja": "[verse]\n始発の窓に朝が来る\n知らない町の名前を読む\n\n[chorus]\nもう少しだけこのままで",
    "de": "[verse]\nÜber den Dächern beginnt es zu glühn\nGrün wie das Meer und so schnell wie der Wind",
}
PROMPTS = (
    "lo-fi hip-hop, soft piano, vinyl crackle, rain, 75 bpm",
    "latin pop, nylon guitar, cajon, duet, 104 bpm",
    "city pop, slap bass, electric piano, 110 bpm",
    "synthpop, klare Stimme, 120 bpm",
    "bossa nova, vibraphone, brushed drums, whispering voice",
)


def write_catalog(folder: str, songs: int = 24) -> Storage:
    """Songs of two runs in five languages, failures of five classes, three songs in quarantine, refused rows."""
    storage = Storage(folder)
    catalog = Catalog(storage)
    planned = songs + 9
    storage.put(layout.RUN, json.dumps(_record(planned)).encode())
    rows: dict[int, list[dict[str, Any]]] = {}
    for number in range(songs):
        row = _song(storage, number, songs)
        rows.setdefault(layout.bucket_of(row["id"], BUCKETS), []).append(row)
    for bucket, some in rows.items():
        catalog.add_songs(bucket, "rows", schema.table_of(some, schema.SONG))
    failed: dict[int, list[dict[str, Any]]] = {}
    for row in _failures(storage):
        failed.setdefault(layout.bucket_of(row["id"], BUCKETS), []).append(row)
    for bucket, some in failed.items():
        catalog.add_failed(bucket, "rows", schema.table_of(some, schema.FAILED))
    for name, began, state in ((*RUNS[0], "stopped"), (*RUNS[1], "finished")):
        record = {
            "run": name, "state": state, "started_at": began.isoformat(), "seconds": 95.5, "made": songs // 2,
            "failed": {"quality": 3, "out_of_memory": 2}, "rerolls": 4, "quarantined": 3, "audio_seconds": 190.0,
            "engines": 2, "device": "cuda",
        }  # fmt: skip
        storage.put(layout.run_key(name), json.dumps(record).encode())
    storage.write_table(layout.REJECTS, schema.table_of(_rejects(), REJECT))
    warned = {
        "file": "songs.parquet",
        "id": "a",
        "field": "lyrics",
        "value": "...",
        "message": "lyrics: too many words",
    }
    warnings = [warned | {"row": row, "rule": "lyrics_density" if row % 3 else "prompt_length"} for row in range(10)]
    storage.write_table(layout.WARNINGS, schema.table_of(warnings, WARNING))
    return storage


def tune(seed: int, seconds: float) -> np.ndarray:
    """Something like music, float32 `[2, W]`: plucked notes over a bass, wider in the middle."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    beat = 60 / random.integers(70, 140)
    sound = np.zeros((2, len(time)))
    for start in np.arange(0, seconds, beat / 2):
        pitch = 110 * 2 ** (random.choice([0, 3, 5, 7, 10, 12, 15, 19, 24]) / 12)
        first = int(start * SAMPLE_RATE)
        part = time[: min(int(1.5 * beat * SAMPLE_RATE), len(time) - first)]
        tone = sum(np.sin(2 * np.pi * pitch * k * part) / k for k in range(1, 7)) * np.exp(-3 * part / beat)
        tone += 0.3 * random.standard_normal(len(part)) * np.exp(-60 * part)
        side = random.uniform(0.25, 0.75)
        sound[:, first : first + len(part)] += np.stack([tone * side, tone * (1 - side)])
    swell = 0.35 + 0.65 * np.sin(np.pi * time / seconds) ** 0.7
    return (0.3 * sound * swell / max(1e-9, np.abs(sound).max() / 2)).astype(np.float32)


SOUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silence": lambda sound: sound * np.float32(1e-4),
    "clipping": lambda sound: (sound * 12).clip(-1, 1),
    "one-sided": lambda sound: sound * np.array([[1.0], [0.0]], np.float32),
}
"""Ways in which a song fails the gate."""


def _song(storage: Storage, number: int, songs: int) -> dict[str, Any]:
    language = list(LYRICS)[number % len(LYRICS)]
    run, began = RUNS[number >= songs // 2]
    seconds = 36.0 if number == 2 else 2.0 + 0.8 * (number % 5)
    id = f"song-{number:04d}" if number != 1 else HOSTILE
    fingerprint = hashlib.sha256(str(number).encode()).hexdigest()[:16]
    data = encode_audio(tune(number, seconds), SAMPLE_RATE, AudioFormat(format="flac"))
    key = layout.audio_key(id, fingerprint, ".flac")
    storage.put(key, data)
    attempt = 2 if number % 6 == 4 else 1
    created = began + timedelta(seconds=5 + 7 * (number % (songs // 2)))
    return {
        "id": id, "fingerprint": fingerprint, "path": key, "format": "flac", "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "duration": seconds, "requested_duration": seconds + 0.05,
        "sample_rate": SAMPLE_RATE, "num_samples": int(seconds * SAMPLE_RATE),
        "prompt": HOSTILE if number == 1 else PROMPTS[number % len(PROMPTS)], "lyrics": LYRICS[language],
        "language": "auto" if number % 2 else language or "auto", "seed": 1000 + number, "requested_seed": 1000,
        "num_inference_steps": 27, "guidance_scale": 15.0, "task": "text2music", "attempt": attempt,
        "lufs": -14.0 - (number * 37 % 60) / 10, "quality": json.dumps({"silence_share": 0.01, "clipping_share": 0.0}),
        "scorer": "clean", "score": 0.5 + (number * 29 % 47) / 100,
        "candidates": json.dumps([{"seed": 7, "score": 0.41, "problems": []}]), "model": "tiny",
        "model_fingerprint": "6f1c0d2a9b3e4455", "dtype": "bfloat16", "device": "cuda", "random_weights": True,
        "ai_generated": True, "version": "0.1.0", "batch_size": 4, "generate_seconds": seconds / (9 + number % 9),
        "run": run, "created_at": created,
    }  # fmt: skip


def _failures(storage: Storage) -> list[dict[str, Any]]:
    rows = []
    for number, (problem, change) in enumerate(SOUNDS.items()):
        id, fingerprint = f"bad-{problem}", f"{number:016x}"
        data = encode_audio(change(tune(50 + number, QUARANTINED_SECONDS)), SAMPLE_RATE, AudioFormat(format="flac"))
        key = layout.quarantine_key(id, fingerprint, ".flac")
        storage.put(key, data)
        said = f"{problem}: 0.{97 + number} is not allowed; at most 0.5"
        evidence = [
            {
                "attempt": attempt,
                "seed": 17 * attempt,
                "problems": [said],
                "quality": {"silence_share": 0.97, "peak": 0.5},
            }
            for attempt in (1, 2, 3)
        ]
        rows.append(
            _failed(id, "quality", f"after 3 attempts: {said}", fingerprint, number)
            | {"path": key, "bytes": len(data), "evidence": json.dumps(evidence), "attempts": 3}
        )
    memory = "1 song of 2580 latent frames does not fit in {} GiB"
    rows += [_failed(f"long-{n}", "out_of_memory", memory.format(23 + n), f"{n + 10:016x}", n) for n in range(2)]
    rows.append(_failed("slow-1", "timeout", "its batch took longer than 600 s, three times", f"{20:016x}", 7))
    rows.append(_failed("odd-1", "device", "CUDA error: an illegal memory access was encountered", f"{21:016x}", 8))
    for number, message in enumerate(
        ("duration: 400 is not allowed; at most 240", f"prompt: {HOSTILE} is not allowed")
    ):
        rows.append(_failed(f"refused-{number}", "input", message, "", 100 + number))
    return rows


def _failed(id: str, error_class: str, message: str, fingerprint: str, row: int) -> dict[str, Any]:
    request = {"id": id, "prompt": PROMPTS[row % len(PROMPTS)], "lyrics": LYRICS["en"], "seed": row, "language": "en"}
    return {
        "id": id, "fingerprint": fingerprint, "error_class": error_class, "message": message, "attempts": 1,
        "file": "songs.parquet", "row": row, "request": json.dumps(request), "run": RUNS[0][0], "created_at": START,
    }  # fmt: skip


def _rejects() -> list[dict[str, Any]]:
    reason = {"rule": "settings", "field": "duration", "value": "400", "allowed": "at most 240"}
    text = f"duration: 400 is not allowed; at most 240 {HOSTILE}"
    return [
        {"file": "songs.parquet", "row": row, "id": f"refused-{row}", "message": text, "reasons": [reason]}
        for row in (0, 1)
    ]


def _record(planned: int) -> dict[str, Any]:
    return {
        "format": 1, "plan": "9f86d081884c7d65", "num_buckets": BUCKETS, "rows": planned + 2, "planned": planned,
        "rejected": 2, "looks_outside": False, "manifest": {"url": "songs.parquet", "files": ["songs.parquet"]},
        "model": {"name": "tiny"}, "config": {"budget": {"price_per_gpu_hour": 2.5}}, "sound_version": 1,
        "version": "0.1.0", "created_at": START.isoformat(),
    }  # fmt: skip
