"""The examples of the docs run as they stand, in a row, with the tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from acestep import GenerationResult
from acestep.original_names import OURS
from acestep.request import GenerationRequest

ROOT = Path(__file__).parents[1]
LIBRARY = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def test_every_example_of_the_library_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL)
    assert len(blocks) >= 9
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)
    results = {name: value for name, value in names.items() if isinstance(value, GenerationResult)}
    assert {"song", "variation", "repainted", "longer", "edited", "like_it", "final"} <= results.keys()
    assert len(names["songs"]) == 2
    assert (tmp_path / "song.mp3").stat().st_size > 10_000
    assert "<audio controls" in results["song"]._repr_html_()
    assert "latents only" in results["longer"]._repr_html_()


def test_the_table_of_names_is_whole_and_true() -> None:
    rows = dict(re.findall(r"^\| (`.*`) \| (`.*`) \|$", LIBRARY, re.MULTILINE))
    said = {theirs for row in rows for theirs in re.findall(r"`(\w+)`", row)}
    assert said | {"infer_steps"} == set(OURS)
    assert set(OURS.values()) <= set(GenerationRequest.model_fields)


def test_names_of_the_original_are_understood() -> None:
    from acestep.errors import InvalidRequestError
    from acestep.original_names import translated

    with pytest.warns(DeprecationWarning, match="infer_step is called num_inference_steps here"):
        assert translated({"infer_step": 5, "seed": 1}) == {"num_inference_steps": 5, "seed": 1}
    with pytest.raises(InvalidRequestError, match="says the same"):
        translated({"infer_step": 5, "num_inference_steps": 6})
