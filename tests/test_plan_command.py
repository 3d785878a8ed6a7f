"""`acestep plan` as a person types it: judges, estimates, refuses, and needs neither Ray nor torch for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from jobs.plan import command
from pipelines import layout
from pipelines.config import RunConfig
from pipelines.engines import describe_model
from pipelines.speed import SpeedKey, SpeedTable
from pipelines.storage import Storage
from pipelines.work import Work
from tests.conftest import ROOT

DEMO = str(ROOT / "examples" / "demo.parquet")
TINY = ("--config", str(ROOT / "configs" / "tiny.yaml"))
ON_GPUS = (*TINY, "--set", "resources.num_gpus=1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")  # No nvidia-smi: every machine is the same here.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def plan(tmp_path: Path, *words: str, manifest: str = DEMO) -> Result:
    """Run `acestep plan` in this process."""
    return CliRunner().invoke(command, ["--manifest", manifest, "--output", str(tmp_path / "out"), *words])


def test_the_demo_is_planned_and_estimated_from_what_is_shipped(tmp_path: Path) -> None:
    result = plan(tmp_path, *TINY)
    assert result.exit_code == 0, result.output
    assert "songs      12 to make of 12 planned (12 rows, 0 refused), 2 min 37 s of audio, 1 batch\n" in result.output
    assert "tiny on cpu x" in result.output and "measured elsewhere (2 cores" in result.output
    assert "engines  time left" in result.output and "cost" not in result.output
    storage = Storage(str(tmp_path / "out"))
    assert storage.exists(layout.RUN) and not storage.exists(layout.LEASE)
    assert not storage.keys(layout.SONGS) and not storage.keys("audio")
    assert json.loads(storage.get("plan/estimate.json"))["to_make"] == 12


def test_neither_ray_nor_torch_is_needed(tmp_path: Path) -> None:
    describe_model(RunConfig())  # Building the tiny checkpoint, once, does need torch.
    code = (
        "import sys; from jobs.plan import command\n"
        f"try: command({['--manifest', DEMO, '--output', str(tmp_path / 'out'), *TINY]!r})\n"
        "except SystemExit as end: print(end.code)\n"
        "print('torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "False False"], done.stderr


def test_json_is_all_that_is_printed(tmp_path: Path) -> None:
    words = ("--json", "--gpus", "8,64", "--price", "2.5", "--device", "NVIDIA L4")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.plan", "--manifest", DEMO, "--output", str(tmp_path / "o"), *ON_GPUS, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    values = json.loads(done.stdout)
    assert [run["gpus"] for run in values["runs"]] == [8, 64]
    assert all(run["cost"]["low"] < run["cost"]["middle"] < run["cost"]["high"] for run in values["runs"])
    assert values["speed"]["device"] == "NVIDIA L4"
    assert values["speed"]["basis"].startswith("modelled, not measured: 20% of the 121 TFLOP/s of L4")


def test_where_nobody_knows_the_device_it_says_so_and_how_to_mend_it(tmp_path: Path) -> None:
    result = plan(tmp_path, *ON_GPUS)
    assert result.exit_code == 0, result.output
    assert "on unknown GPU: modelled, not measured" in result.output
    assert "--set 'budget.device=NVIDIA H100'" in result.output
    for gpus in ("1 ", "8 ", "64 "):
        assert f"\n{gpus}" in result.output


def test_what_this_catalog_measured_is_believed(tmp_path: Path) -> None:
    config = RunConfig.load(TINY[1], ["resources.num_gpus=1"])
    table = SpeedTable()
    key = SpeedKey.of(config, describe_model(config), "NVIDIA H100 80GB HBM3")
    for _ in range(20):
        table.observe(key, Work(100.0, 20.0, 27.0), 3.0, songs=4)
    (tmp_path / "out").mkdir()
    table.save(Storage(str(tmp_path / "out")))
    assert "tiny on NVIDIA H100 80GB HBM3: measured in this catalog on 20 batches" in plan(tmp_path, *ON_GPUS).output
    named = plan(tmp_path, *ON_GPUS, "--device", "h100")
    assert "tiny on NVIDIA H100 80GB HBM3: measured in this catalog on 20 batches" in named.output


def test_refused_rows_end_with_3(tmp_path: Path) -> None:
    manifest = tmp_path / "m.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "prompt": ["p", "p"], "duration": [10.0, 1000.0]}), manifest)
    result = plan(tmp_path, *TINY, manifest=str(manifest))
    assert result.exit_code == 3, result.output
    assert "1 to make of 1 planned (2 rows, 1 refused)" in result.output
    assert "duration 1000.0: it must be 1 to 240" in result.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--max-hours", "0.0001"), "hours on 1 engine, and may run 0.0001, which even the low end"),
        (("--price", "3", "--max-cost", "0"), "on 1 engine, and may cost 0, which even the low end"),
        (("--max-cost", "5"), "budget.max_cost: 5.0 is not allowed; it needs budget.price_per_gpu_hour"),
        (("--gpus", "8"), "resources.num_gpus is 0: engines are on CPUs"),
        (("--gpus", "8,x"), "'8,x' is not allowed; it must be like 8 or 8,64,256"),
        (("--gpus", "0"), "'0' is not allowed"),
        (("--manifest", "/nowhere.parquet"), "there is no such file"),
        (("--set", "budget.max_hour=3"), "did you mean 'max_hours'?"),
    ],
)
def test_what_is_over_budget_or_unusable_ends_with_2(tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    result = plan(tmp_path, *TINY, *words)
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "songs").exists()


def test_one_number_of_gpus_within_the_hours_is_enough(tmp_path: Path) -> None:
    words = (*ON_GPUS, "--device", "NVIDIA L4", "--set", "batch.max_batch_size=1", "--max-hours", "0.0202")
    over = plan(tmp_path, *words, "--gpus", "1,2")
    assert over.exit_code == 2 and "hours on 1 GPU, and may run 0.0202" in over.output, over.output
    assert "hours on 2 GPUs, and may run 0.0202" in over.output and "the speed is modelled" in over.output
    assert plan(tmp_path, *words, "--gpus", "1,64").exit_code == 0
