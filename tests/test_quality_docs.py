"""The page about quality and provenance: its examples run as they stand, its numbers are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from acestep.provenance import SIGNABLE_FORMATS, read_credentials
from acestep.quality import NOTHING, QualityLimits, assess
from acestep.scoring import Clean, load_scorer, scored
from pipelines.config import RunConfig

PAGE = (Path(__file__).parents[1] / "docs" / "quality.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the examples define, run in a row; those with weights of their own define a class and load nothing."""
    found: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        for block in blocks("python"):
            exec(compile(block, "docs/quality.md", "exec"), found)
    return found


def test_every_example_runs(names: dict) -> None:
    assert names["score"] > 0.5
    assert read_credentials(names["signed"], "mp3")["facts"]["seed"] == 1


def test_the_examples_of_scorers_judge_or_say_what_they_lack(names: dict) -> None:
    song = names["song"]
    heard = (song.waveform.numpy(), song.sample_rate, song.request, names["found"])
    score, error = scored(names["Bright"](above_hz=1000.0), *heard)
    assert error is None and score is not None and 0 < score < 1
    with pytest.raises(ValueError, match="axis: 'XX' is not allowed"):
        names["Aesthetics"](axis="XX")
    assert names["Clap"].name == "clap"


def test_the_package_of_the_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project,) = blocks("toml")
    (group, points), (module,) = (
        re.search(r'\[project\.entry-points\."(.*?)"\]\n(.*?)\n\n', project, re.DOTALL).groups(),  # type: ignore[union-attr]
        re.search(r'py-modules = \["(\w+)"\]', project).groups(),  # type: ignore[union-attr]
    )
    (source,) = (block for block in blocks("python") if "class Bright" in block)
    (tmp_path / f"{module}.py").write_text(source)
    info = tmp_path / "acestep_scorer_bright-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acestep-scorer-bright\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}\n".replace('"', ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_scorer("bright", {"above_hz": 500.0}).name == "bright"
    with pytest.raises(ValueError, match="above_hz: -1 is not allowed"):
        load_scorer("bright", {"above_hz": -1})


def test_the_table_of_checks_is_whole_and_true() -> None:
    rows = re.findall(r"^\| (`.*`) \| .*? \| (.*?) \|(.*?)\|$", PAGE, re.MULTILINE)
    limits = QualityLimits()
    said = {}
    for _, names_, values in rows:
        numbers = [float(value) for value in re.findall(r"-?[\d.]+", values)]
        said |= dict(zip(re.findall(r"`(\w+)`", names_), numbers, strict=True))
    assert said == limits.model_dump(exclude={"silence_dbfs"})
    assert f"`silence_dbfs` ({limits.silence_dbfs:g})" in PAGE
    checks = {check for row in rows for check in re.findall(r"`(\w+)`", row[0])}
    measured = {name.partition("_")[2] for name in said} & NOTHING.keys()
    assert checks == measured | {"non_finite_samples", "shape", "length", "near_duplicate"}
    for name in NOTHING:
        assert f"`{name}`" in PAGE


def test_the_configs_are_configs() -> None:
    config = RunConfig.parse({name: value for block in blocks("yaml") for name, value in yaml.safe_load(block).items()})
    assert config.quality.rerolls == 4
    assert config.best_of.candidates == 4
    assert config.provenance.mode == "c2pa"
    assert config.audio.format in SIGNABLE_FORMATS
    load_scorer(config.best_of.scorer, config.best_of.options)


def test_clean_names_its_parts_as_the_page_does() -> None:
    parts = Clean.parts(NOTHING)
    assert all(f"`{part}`" in PAGE for part in parts)


def test_the_fade_of_the_page_has_the_silence_that_it_says() -> None:
    from tests.test_quality import quiet_with_a_fade

    measures = assess(quiet_with_a_fade(48_000), 48_000, QualityLimits()).measures
    assert measures["lufs"] == pytest.approx(-35, abs=0.5)
    assert measures["trailing_silence"] == pytest.approx(7, abs=0.7)
