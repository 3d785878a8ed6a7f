"""Every golden vector in the repository agrees to 1e-4, and the runner says so in its words and exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import TOLERANCE, check, relative_error

DATA = Path(__file__).parent / "golden_data"


@pytest.mark.parametrize("path", sorted(DATA.glob("*.safetensors")), ids=lambda path: path.stem)
def test_agrees_with_the_original(path: Path) -> None:
    verdict = check(path)
    assert verdict.status == "ok", f"{verdict.error}: {verdict.detail}"
    assert verdict.error <= TOLERANCE


def test_error_is_infinite_where_a_number_would_mislead() -> None:
    want = torch.ones(2, 3)
    assert relative_error(torch.ones(3, 2), want) == float("inf")
    assert relative_error(torch.full((2, 3), float("nan")), want) == float("inf")
    assert relative_error(want * 1.5, want) == pytest.approx(0.5)


def test_runner_reports_failures_and_strangers(tmp_path: Path) -> None:
    broken = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2)}
    save_file(broken, tmp_path / "text_encoder.safetensors", metadata={"case": "{}"})
    save_file({"x": torch.zeros(1)}, tmp_path / "theremin.safetensors")
    run = subprocess.run(
        [sys.executable, "-m", "tests.golden", str(tmp_path)], capture_output=True, text=True, check=False
    )
    lines = run.stdout.splitlines()
    assert run.returncode == 1, run.stderr
    assert any(line.startswith("text_encoder") and "FAIL" in line for line in lines)
    assert any(line.startswith("theremin") and "unknown" in line for line in lines)
    assert lines[-1] == "0 ok, 1 failed, 1 unknown"
