"""Ray metrics of a job, exported by Ray to Prometheus as `ray_<name>`; no label has more than a few values.

acestep_songs_total{outcome}            made, or the class of the failure
acestep_audio_seconds_total             of songs made
acestep_written_bytes_total             of their files
acestep_rerolls_total                   songs made again because they failed the quality gate
acestep_lora_switches_total
acestep_stage_seconds_total{stage}      generate, encode, upload: work done, over all processes
acestep_engine_wait_seconds_total       engines ready with nothing to do
acestep_batch_seconds                   histogram: a batch in an engine
acestep_batch_songs                     histogram
acestep_engine_load_seconds             of the newest engine
"""

from __future__ import annotations

from typing import Any

NAMES = (
    *("acestep_songs", "acestep_audio_seconds", "acestep_written_bytes", "acestep_rerolls", "acestep_lora_switches"),
    *("acestep_stage_seconds", "acestep_engine_wait_seconds"),
    *("acestep_batch_seconds", "acestep_batch_songs", "acestep_engine_load_seconds"),
)


class Metrics:
    """The metrics of the driver, which sees every song; Ray must be connected."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        # Ray itself puts `_total` behind the names of counters.
        self._songs = Counter("acestep_songs", "Songs finished.", tag_keys=("outcome",))
        self._audio = Counter("acestep_audio_seconds", "Seconds of audio made.")
        self._bytes = Counter("acestep_written_bytes", "Bytes of the files of songs.")
        self._rerolls = Counter("acestep_rerolls", "Songs made again because they failed the quality gate.")
        self._switches = Counter("acestep_lora_switches", "Changes of adapter in engines.")
        self._stages = Counter("acestep_stage_seconds", "Seconds of work.", tag_keys=("stage",))
        self._waited = Counter("acestep_engine_wait_seconds", "Seconds that engines had nothing to do.")
        self._batch_seconds = Histogram(
            "acestep_batch_seconds", "Seconds of a batch in an engine.", boundaries=[1, 2, 5, 10, 20, 50, 100, 300]
        )
        self._batch_songs = Histogram("acestep_batch_songs", "Songs in a batch.", boundaries=[1, 2, 4, 8, 16, 32, 64])
        self._load = Gauge("acestep_engine_load_seconds", "Seconds of loading and warming up.")

    def song(self, row: dict[str, Any]) -> None:
        """Count a row of `schema.SONG`."""
        self._songs.inc(1, {"outcome": "made"})
        self._count(self._audio, row["duration"])
        self._count(self._bytes, row["bytes"])
        self._count(self._rerolls, row["attempt"] - 1)
        for stage in ("generate", "encode", "upload"):
            self._count(self._stages, row[f"{stage}_seconds"], {"stage": stage})

    def failure(self, error_class: str, attempts: int = 1) -> None:
        """Count a song that could not be made."""
        self._songs.inc(1, {"outcome": error_class})
        self._count(self._rerolls, attempts - 1 if error_class == "quality" else 0)

    def batch(self, engine: dict[str, Any]) -> None:
        """Count what `generating` says of a batch."""
        self._batch_seconds.observe(engine["seconds"])
        self._batch_songs.observe(engine["songs"])
        self._count(self._switches, engine["switches"])
        self._count(self._waited, engine["waited"])
        self._load.set(engine["load_seconds"])

    @staticmethod
    def _count(counter: Any, amount: float, tags: dict[str, str] | None = None) -> None:
        if amount > 0:  # Ray's counters take nothing else.
            counter.inc(amount, tags)
