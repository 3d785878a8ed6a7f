"""Hold a folder of golden vectors against this code: `python -m tests.golden DIR [--case NAME] [--vocab FILE]`.

A line per file (name, worst relative error, ok or FAIL), then `N ok, N failed, N unknown`. Exits 1 on a failure.
The relative error of an output is its largest absolute error over its largest absolute expected value.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import safe_open

TOLERANCE = 1e-4
MODULES = tuple(f"tests.golden_cases.{name}" for name in ("audio", "lora", "networks", "sampling"))

Comparison = tuple[str, torch.Tensor, torch.Tensor]
"""What was compared, what this code gives, what the file holds."""


@dataclass(frozen=True)
class Golden:
    """One file of vectors: its tensors, and the settings it was made with."""

    name: str
    tensors: dict[str, torch.Tensor]
    case: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@dataclass(frozen=True)
class Verdict:
    """How one file came out."""

    name: str
    status: str
    """ok, FAIL or unknown."""
    error: float = 0.0
    detail: str = ""


CASES: dict[str, Callable[[Golden], Iterator[Comparison]]] = {}


@dataclass(frozen=True)
class case:  # noqa: N801 - reads as the decorator that it is
    """Register a function that yields the comparisons of one kind of file; `prefix` takes every name it begins."""

    name: str
    prefix: bool = False

    def __call__(self, function: Callable[[Golden], Iterator[Comparison]]) -> Callable[[Golden], Iterator[Comparison]]:
        CASES[self.name + ("*" if self.prefix else "")] = function
        return function


def find_case(name: str) -> Callable[[Golden], Iterator[Comparison]] | None:
    """The function that checks files of this name, loading the case modules on first use."""
    for module in MODULES:
        importlib.import_module(module)
    prefixes = (function for key, function in CASES.items() if key.endswith("*") and name.startswith(key[:-1]))
    return CASES.get(name) or next(prefixes, None)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest absolute error over largest absolute value; infinite for a wrong shape or anything not finite."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double(), want.double()
    if not torch.isfinite(got).all():
        return float("inf")
    return ((got - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()


def load(path: Path) -> Golden:
    """Read one golden file."""
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return Golden(path.stem, tensors, json.loads(metadata.get("case", "{}")))


@torch.inference_mode()
def check(path: Path) -> Verdict:
    """Run one file; an exception is a failure of that file, not of the run."""
    function = find_case(path.stem)
    if function is None:
        return Verdict(path.stem, "unknown")
    worst, where = 0.0, ""
    try:
        for what, got, want in function(load(path)):
            if (error := relative_error(got, want)) >= worst:
                worst, where = error, what
    except NotImplementedError as missing:
        return Verdict(path.stem, "unknown", detail=str(missing))
    except Exception:
        return Verdict(path.stem, "FAIL", float("inf"), traceback.format_exc())
    return Verdict(path.stem, "ok" if worst <= TOLERANCE else "FAIL", worst, where)


def check_lyric_file(path: Path, vocab: Path | None) -> Verdict:
    """Run a file of lyrics: every line and song must give the very ids, so the error is a share."""
    if vocab is None:
        return Verdict(path.stem, "unknown", detail="its ids need the published vocabulary: --vocab FILE")
    from tests.golden_cases.lyrics import check_lyrics, check_songs

    equal, total, different = 0, 0, []
    for part_equal, part_total, part_different in (check_lyrics(path, vocab), check_songs(path, vocab)):
        equal, total, different = equal + part_equal, total + part_total, different + part_different
    detail = f"{equal} of {total} lines" + "".join(f"\n    {line}" for line in different[:10])
    return Verdict(path.stem, "ok" if equal == total else "FAIL", 1 - equal / total, detail)


def vocab_places(folder: Path) -> list[Path]:
    """Where the published lyric vocabulary may lie beside golden files, if nobody says."""
    folder = folder.resolve()
    return [folder / "vocab.json", folder.parent / "vocab.json", folder.parent / "data" / "vocab.json"]


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--case", "only", multiple=True, help="Only files of this name (repeatable).")
@click.option(
    "--vocab",
    type=click.Path(exists=True, path_type=Path),
    envvar="ACESTEP_LYRIC_VOCAB",
    help="Published lyric vocabulary, for lyrics.json. [default: a vocab.json in FOLDER or beside it]",
)
def main(folder: Path, only: tuple[str, ...], vocab: Path | None) -> None:
    """Hold every golden file in FOLDER against this code."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("lyrics.json")])
    paths = [path for path in files if not only or path.stem in only]
    missing = set(only) - {path.stem for path in paths}
    if missing or not paths:
        raise click.UsageError(f"no such golden file in {folder}: {', '.join(sorted(missing)) or '*.safetensors'}")
    vocab = vocab or next((path for path in vocab_places(folder) if path.is_file()), None)
    counts = {"ok": 0, "FAIL": 0, "unknown": 0}
    for path in paths:
        verdict = check_lyric_file(path, vocab) if path.suffix == ".json" else check(path)
        counts[verdict.status] += 1
        error = f"{verdict.error:.2e}" if verdict.status != "unknown" else "-"
        print(f"{verdict.name:28} {error:>9}  {verdict.status:8} {verdict.detail}".rstrip(), flush=True)
    print(f"{counts['ok']} ok, {counts['FAIL']} failed, {counts['unknown']} unknown")
    sys.exit(1 if counts["FAIL"] else 0)


if __name__ == "__main__":
    from tests.golden import main as entry  # one module object, so that the cases register where they are looked up

    entry()
