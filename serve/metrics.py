"""`ServerMetrics`: what Prometheus scrapes at `/metrics`, and the sums of `/v1/stats`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.job import Job

if TYPE_CHECKING:
    from serve.service import Service

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class ServerMetrics(Collector):
    """Counts since the server started; names as the field has them: base units, `_total` for what only grows."""

    def __init__(self, service: Service):
        self._service = service
        self.refused = 0
        self.rerun = 0
        self.busy_seconds = 0.0
        self.audio_seconds = 0.0
        self.jobs = dict.fromkeys(("completed", "failed", "cancelled"), 0)
        self.registry = CollectorRegistry()
        self._finished = Counter("acestep_jobs", "Jobs that are over.", ["status"], registry=self.registry)
        self._requests = Counter(
            "acestep_http_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self._waited = Histogram(
            "acestep_queue_wait_seconds", "From request to engine.", buckets=_SECONDS, registry=self.registry
        )
        self._latency = Histogram(
            "acestep_job_seconds", "From request to finished job.", buckets=_SECONDS, registry=self.registry
        )
        self._sizes = Histogram(
            "acestep_batch_songs", "Songs in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.registry.register(self)

    def batch(self, songs: int, waited: Sequence[float]) -> None:
        """An engine took a batch of songs that had waited so long."""
        self._sizes.observe(songs)
        for seconds in waited:
            self._waited.observe(seconds)

    def job(self, job: Job) -> None:
        """A job is over."""
        self.jobs[job.status] += 1
        self._finished.labels(job.status).inc()
        if job.status == "completed":
            self._latency.observe(time.time() - job.created_at)
        self.audio_seconds += sum(song.made["duration"] for song in job.songs if song.made)

    def request(self, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(route, status).inc()

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)

    def stats(self) -> dict[str, Any]:
        """For people and dashboards without Prometheus."""
        service = self._service
        speed = service.queue.frames_per_second
        return {
            "queued": len(service.queue),
            "running": sum(len(batch.tickets) for batch in service.pool.batches.values()),
            "queue_frames": service.queue.frames,
            "running_frames": service.pool.frames,
            "engines": service.pool.engines,
            "ready": service.is_ready,
            "expected_wait_seconds": service.queue.expected_wait(service.load, service.pool.engines),
            "audio_seconds_per_second": round(speed * 512 * 8 / 44_100, 3),
            **self.jobs,
            "refused": self.refused,
            "rerun": self.rerun,
            "audio_seconds": round(self.audio_seconds, 3),
            "engine_busy_seconds": round(self.busy_seconds, 3),
            "uptime_seconds": round(time.time() - service.started, 3),
        }

    def collect(self) -> Iterable[Metric]:
        """What is read at the moment when it is asked for, as Prometheus' client wants its collectors."""
        service = self._service
        yield GaugeMetricFamily("acestep_queue_songs", "Songs that wait.", len(service.queue))
        yield GaugeMetricFamily("acestep_queue_frames", "Latent frames that wait.", service.queue.frames)
        yield GaugeMetricFamily("acestep_running_frames", "Latent frames being made.", service.pool.frames)
        yield GaugeMetricFamily("acestep_engines", "Warm engines.", service.pool.engines)
        yield CounterMetricFamily("acestep_songs_rerun", "Songs made again for their engine died.", self.rerun)
        yield CounterMetricFamily("acestep_requests_refused", "Requests refused for a full queue.", self.refused)
        yield CounterMetricFamily("acestep_audio_seconds", "Audio made.", self.audio_seconds)
        yield CounterMetricFamily("acestep_engine_busy_seconds", "Time that engines generated.", self.busy_seconds)
