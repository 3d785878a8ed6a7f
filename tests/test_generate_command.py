"""The commands as a person types them: light help, exit codes, and a clear message for everything unusable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from jobs.cli import COMMANDS, main
from tests.conftest import ROOT

ENGINE = ("--set", "engine=tests.stand_in:Engine", "--set", "model.checkpoint=stand-in")


def generate(*words: str) -> Result:
    """Run `acestep generate` in this process; nothing here gets as far as Ray."""
    return CliRunner().invoke(main, ["generate", *words])


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"id": ["a"], "prompt": ["p"]}), path)
    return str(path)


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys, time; started = time.perf_counter()\n"
        "from jobs.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(time.perf_counter() - started, {'torch', 'ray', 'pydantic', 'numpy', 'pyarrow'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        *shown, last = done.stdout.splitlines()
        assert last.endswith("set()")
        seconds.append(float(last.split()[0]))
    assert min(seconds) < 0.4
    for name, line in COMMANDS.items():
        assert any(name in each and line[:30] in each for each in shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_an_unknown_command_is_said() -> None:
    result = CliRunner().invoke(main, ["genrate"])
    assert result.exit_code == 2
    assert "No such command 'genrate'" in result.output


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no such file or folder"),
        ("", "there are no rows in it"),
        ("id,prompt\n", "there are no rows in it"),
        ("id,lyrics\n1,la\n", "has no column 'prompt'"),
        ("prompt\nx\n", "has no column 'id'"),
    ],
)
def test_an_unusable_manifest_ends_with_2_and_nothing_written(
    tmp_path: Path, content: str | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "m.csv").write_text(content)
    result = generate("--manifest", str(tmp_path / "m.csv"), "--output", str(tmp_path / "out"), *ENGINE)
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--set", "batch.max_batch_siz=2"), "did you mean 'max_batch_size'?"),
        (("--set", "defaults.scheduler=dpm"), "defaults.scheduler: 'dpm' is not allowed"),
        (("--config", "/nope.yaml"), "/nope.yaml cannot be read"),
        (("--set", "model.checkpoint=missing"), "checkpoint 'missing' does not exist"),
        (("--set", "engine=no.such:Engine"), "engine: 'no.such:Engine' is not allowed"),
        (("--set", "nonsense"), "--set 'nonsense' is not allowed"),
        (("--output", "/dev/null/out"), "nothing can be written there"),
        (("--output", "memory://out"), "memory cannot be written"),
        (("--output", "nope://out"), "Protocol not known"),
    ],
)
def test_an_unusable_config_or_output_ends_with_2(
    tmp_path: Path, manifest: str, words: tuple[str, ...], expected: str
) -> None:
    result = generate("--manifest", manifest, "--output", str(tmp_path / "out"), *ENGINE, *words)
    assert result.exit_code == 2, result.output
    assert expected in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_damaged_or_not_there_ends_with_2(tmp_path: Path, manifest: str) -> None:
    import shutil

    from acestep.checkpoint import Checkpoint

    folder = tmp_path / "weights"
    shutil.copytree(Checkpoint.open("tiny").path, folder)
    weights = max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-100])
    for checkpoint, expected in ((str(folder), weights.name), (str(tmp_path / "nowhere"), "does not exist")):
        result = generate(
            "--manifest", manifest, "--output", str(tmp_path / "out"), "--set", f"model.checkpoint={checkpoint}"
        )
        assert result.exit_code == 2, result.output
        assert expected in result.output
        assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached_ends_with_2(tmp_path: Path, manifest: str) -> None:
    words = ["--manifest", manifest, "--output", str(tmp_path / "out"), "--set", "model.checkpoint=nobody/nothing"]
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.generate", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "http://127.0.0.1:1 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_bad_rows_only_ends_with_3_and_all_reasons(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "p", "duration": 0},
        {"id": "b", "prompt": "p", "duration": "abc", "scheduler": "dpm", "num_inference_steps": 0},
        {"prompt": "p"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = time.perf_counter()
    result = generate("--manifest", str(path), "--output", str(tmp_path / "out"), *ENGINE)
    assert result.exit_code == 3, result.output
    assert time.perf_counter() - started < 5, "Ray is not started for nothing"
    for expected in ("duration: '0' is not allowed; it must be 1 to 240", "input: 3", "failed/"):
        assert expected in result.output, result.output
    reasons = [row["message"] for row in pq.read_table(tmp_path / "out" / "plan" / "rejects.parquet").to_pylist()]
    for reason, fields in zip(
        reasons, (["duration"], ["duration", "scheduler", "num_inference_steps"], ["id"]), strict=True
    ):
        assert all(f"{field}: " in reason and "is not allowed" in reason for field in fields), reason
    failed = pq.read_table(tmp_path / "out" / "failed").to_pylist()
    assert sorted((row["row"], row["error_class"]) for row in failed) == [(1, "input"), (2, "input"), (3, "input")]
