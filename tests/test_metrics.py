"""What Ray serves to Prometheus of a job, asked as Prometheus would, of a Ray without a dashboard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.pipeline import adapter
from pipelines.metrics import NAMES
from tests.conftest import ROOT
from tests.running_job import manifest_of
from tests.seaweed import free_ports

COUNTERS = {
    *("acestep_songs", "acestep_audio_seconds", "acestep_written_bytes", "acestep_rerolls", "acestep_lora_switches"),
    *("acestep_stage_seconds", "acestep_engine_wait_seconds"),
}
HISTOGRAMS = {"acestep_batch_seconds", "acestep_batch_songs"}

JOB = """
import json, sys, time, urllib.request
import ray
from pipelines.catalog import Catalog
from pipelines.run import run_job
from pipelines.storage import Storage
from tests.conftest import stand_in_config

manifest, output, port, *wanted = sys.argv[1:]
options = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
ray.init("local", num_cpus=4, _metrics_export_port=int(port), **options)
summary = run_job(stand_in_config(batch__max_batch_size=2), manifest, output)
assert ray.nodes()[0]["MetricsExportPort"] == int(port)
deadline = time.monotonic() + 60
while True:
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    except OSError as error:
        text = str(error)
    if all(name in text for name in wanted) or time.monotonic() > deadline:
        break
    time.sleep(0.5)
catalog = Catalog(Storage(output))
lines = [line for line in text.splitlines() if "ray_acestep_" in line]
facts = {name: getattr(summary, name) for name in ("made", "rerolls", "switches", "bytes_written", "audio_seconds")}
batches = len({row["batch"] for row in [*catalog.songs().to_pylist(), *catalog.failures().to_pylist()]})
print(json.dumps({"lines": lines, "summary": facts | {"batches": batches}}))
"""


def shown(name: str) -> str:
    """What Prometheus knows a metric as."""
    return f"ray_{name}_total" if name in COUNTERS else f"ray_{name}"


def value(lines: list[str], name: str, label: str = "") -> float:
    """The one sample of a name, with a label where there are several."""
    (line,) = [line for line in lines if line.startswith((f"{name}{{", f"{name} ")) and label in line]
    return float(line.rpartition(" ")[2])


@pytest.mark.ray
@pytest.mark.slow
def test_prometheus_gets_every_metric_of_a_job(tmp_path: Path, ray_folder: str) -> None:
    assert set(NAMES) >= COUNTERS | HISTOGRAMS
    columns = {
        "seed": list(range(7)),
        "lora": pa.array([None] * 6 + [adapter(tmp_path, 1)], pa.string()),
    }
    prompts = ["song slow:0.1", "song silent-at:1", "silent", "refuse", "song", "song", "song"]
    manifest = manifest_of(tmp_path / "m.parquet", prompts, **columns)
    (port,) = free_ports(1)
    words = [manifest, str(tmp_path / "out"), str(port), *map(shown, NAMES)]
    done = subprocess.run(
        [sys.executable, "-c", JOB, *words],
        cwd=ROOT,
        env=os.environ | {"RAY_TMPDIR": ray_folder},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    lines, summary = said["lines"], said["summary"]
    kinds = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    assert {shown(name): kinds.get(shown(name), "none") for name in NAMES} == {
        shown(name): "counter" if name in COUNTERS else "histogram" if name in HISTOGRAMS else "gauge" for name in NAMES
    }
    assert value(lines, "ray_acestep_songs_total", 'outcome="made"') == summary["made"] == 5
    assert value(lines, "ray_acestep_songs_total", 'outcome="quality"') == 1
    assert value(lines, "ray_acestep_songs_total", 'outcome="out_of_memory"') == 1
    assert value(lines, "ray_acestep_rerolls_total") == summary["rerolls"] >= 3
    assert value(lines, "ray_acestep_lora_switches_total") == summary["switches"] == 1
    assert value(lines, "ray_acestep_written_bytes_total") == summary["bytes_written"]
    assert value(lines, "ray_acestep_audio_seconds_total") == pytest.approx(summary["audio_seconds"])
    for name in HISTOGRAMS:  # Ray knows the sums only as the middles of the buckets.
        assert value(lines, f"ray_{name}_count") == summary["batches"]
    for stage in ("generate", "encode", "upload"):
        assert value(lines, "ray_acestep_stage_seconds_total", f'stage="{stage}"') > 0
