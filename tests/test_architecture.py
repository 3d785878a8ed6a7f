"""The rooms and who may import whom; what must stay cheap to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("acestep", "pipelines", "serve", "jobs")


def imports_of(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at whatever depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    above = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests", "benchmarks"}
    for path in (ROOT / room).rglob("*.py"):
        assert not imports_of(path) & above, f"{path} imports from a room above"


def test_the_library_knows_nothing_of_ray() -> None:
    for path in (ROOT / "acestep").rglob("*.py"):
        assert "ray" not in imports_of(path), path


def test_files_stay_small_enough_to_hold_one_noun() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
            assert path.stem not in {"utils", "helpers", "common", "misc"}, path


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["acestep", "acestep.request", "acestep.checkpoint", "acestep.tokens"])
def test_describing_a_song_needs_no_torch(module: str) -> None:
    assert run_python(f"import sys, {module}; print('torch' in sys.modules, 'ray' in sys.modules)") == "False False"


def test_help_is_quick_and_light() -> None:
    code = (
        "import sys; from jobs.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'ray' in sys.modules, 'pydantic' in sys.modules)"
    )
    assert run_python(code).splitlines()[-1] == "False False False"
