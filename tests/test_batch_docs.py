"""The page about the batch job and the README: commands, options, names and queries are the code's."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import click
import duckdb
import pytest
from pydantic import BaseModel

from acestep.errors import ACEStepError
from jobs.cli import COMMANDS, main
from jobs.log import INTERRUPTED
from pipelines import execution, layout, metrics, schema
from pipelines.config import RunConfig
from pipelines.estimate import ESTIMATE
from pipelines.preflight import RULES
from pipelines.progress import Counts, Progress
from pipelines.rejects import DUPLICATE_ID
from pipelines.report import REPORT
from pipelines.sections import PreflightSection
from pipelines.storage import Storage
from pipelines.summary import Summary
from tests.small_catalog import commit, fail, make_catalog, song_row

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/batch.md")}
PAGE = PAGES["docs/batch.md"]
BOTH = pytest.mark.parametrize("page", PAGES)

RAYS_OPTIONS = {"--runtime-env-json", "--metrics-export-port"}
NO_OPTIONS = {"ray.util.metrics"}
FILES = (".json", ".html", ".parquet", ".py", ".md")
SAID = (
    *("is in use by", "which is dead", "has taken over", "nothing heard for", "the run died"),
    *(
        "failed before and are not tried again",
        "made by another model or with other settings",
        "every song is made anew",
    ),
    *("the job is estimated to cost", "the engine cannot be loaded on", "once more ends at once"),
    *("loading the model, then the first batch", "out of memory at", "frame budget is now", "the model was not taught"),
)
"""Words of the program that people look for on the page."""


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)
    return [block for of, block in found if of == language]


def spans(page: str) -> list[str]:
    """Code within the text."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL))


def table(heading: str) -> list[list[str]]:
    """The cells of the table whose first column is called `heading`."""
    _, rows = re.split(rf"^\| {heading} \|.*\n\|[-|]+\|\n", PAGE, flags=re.MULTILINE)
    lines = rows.partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of each command of ours in blocks of the shell."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for position, word in enumerate(words):
                if word == "acestep":
                    yield words[position + 1], words[position + 2 :]
                elif word.startswith("jobs."):
                    yield word.removeprefix("jobs."), words[position + 1 :]


def command_of(name: str) -> click.Command:
    assert name in COMMANDS, name
    command = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]
    assert command is not None
    return command


def options_of(name: str) -> set[str]:
    return {option for each in command_of(name).params for option in (*each.opts, *each.secondary_opts)}


@BOTH
def test_every_command_can_be_typed(page: str) -> None:
    found = list(commands(page))
    assert {"plan", "generate", "status", "retry", "verify", "report", "export"} <= {name for name, _ in found}
    for name, arguments in found:
        with command_of(name).make_context(name, list(arguments)) as context:
            overrides = list(context.params.get("overrides", ()))
            if "overrides" in context.params:
                config = context.params.get("config")
                RunConfig.load(ROOT / config if config else None, overrides)
        manifest = context.params.get("manifest")
        if page == "docs/batch.md" and manifest:
            assert (ROOT / manifest).exists(), "it runs as it stands"


@BOTH
def test_every_command_and_option_in_the_text_is_there(page: str) -> None:
    every = RAYS_OPTIONS.union(*(options_of(name) for name in COMMANDS), *(each.opts for each in main.params))
    for span in spans(page):
        words = span.split()
        if words[0] == "acestep" and len(words) > 1:
            assert {word for word in words[2:] if word.startswith("-")} <= options_of(words[1]) | {"--help"}, span
        elif words[0] in COMMANDS and len(words) > 1 and words[1].startswith("--"):
            assert words[1] in options_of(words[0]), span
        elif re.match(r"--?[a-z]", span):
            assert words[0] in every | {"--help"}, span


@BOTH
def test_every_option_of_the_config_is_there(page: str) -> None:
    found = 0
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for name, default in re.findall(r"`([a-z_]+\.[a-z_.]+)(?:=[^`]*)?`(?: \((-?[\d.]+)\))?", text):
        section, *parts = name.split(".")
        if section not in RunConfig.model_fields or name.endswith(FILES) or name in NO_OPTIONS:
            continue
        value: object = getattr(RunConfig(), section)
        for part in parts:
            assert isinstance(value, BaseModel), name
            assert part in type(value).model_fields, name
            value = getattr(value, part)
        if default:
            assert value == float(default), name
        found += 1
    assert found or page == "README.md"


def test_the_table_of_rules_is_whole_and_true() -> None:
    severities = {name: getattr(PreflightSection(), name) for name in (DUPLICATE_ID, *RULES)}
    assert {names_in(row[0])[0]: row[2] for row in table("rule")} == severities


def test_the_table_of_error_classes_is_whole() -> None:
    def classes(kind: type[ACEStepError]) -> set[str]:
        return {kind.error_class}.union(*map(classes, kind.__subclasses__()))

    ours = {each for each in ACEStepError.__subclasses__() if not each.__module__.startswith("tests")}
    assert {names_in(row[0])[0] for row in table("class")} == {"internal"}.union(*map(classes, ours))


def test_the_table_of_metrics_is_whole() -> None:
    said = [name for row in table("metric") for name in names_in(row[0])]
    assert {name.removeprefix("ray_").removesuffix("_total") for name in said} == set(metrics.NAMES)
    assert {name.removeprefix("ray_") for name in said} == set(re.findall(r"^acestep_\w+", metrics.__doc__ or "", re.M))
    assert set(re.findall(r"ray_acestep_\w+", PAGE)) <= set(said)


def test_the_table_of_progress_is_whole(tmp_path: Path) -> None:
    Progress(Counts(1, 1.0), Storage(str(tmp_path)), "r", lambda: None).close("finished")
    written = json.loads((tmp_path / layout.PROGRESS).read_text())
    assert {name for row in table("field") for name in names_in(row[0])} == written.keys()


def test_the_exit_codes_are_the_programs() -> None:
    codes = {row[0] for row in table("exit code")}
    ended = {str(Summary("out", "r", signal=number).exit_code) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped = Summary("out", "r", stopped="why").exit_code
    failed = Summary("out", "r", failed_before=1).exit_code
    assert codes == {str(Summary("out", "r").exit_code), "2", str(failed), str(stopped), *ended}
    assert str(INTERRUPTED) in ended
    assert all(f"**{code}**" in PAGES["README.md"] for code in codes)


def test_every_place_of_a_catalog_is_shown() -> None:
    (shown,) = (block for block in blocks("docs/batch.md", "") if "<output>/" in block)
    places = [line.split()[0] for line in (layout.__doc__ or "").splitlines() if re.match(r"[a-z]+[/.]\S* ", line)]
    assert len(places) > 10
    places += [layout.REJECTS, layout.WARNINGS, layout.PROGRESS, ESTIMATE, REPORT]
    assert not [place for place in places if not re.search(rf"^  {re.escape(place)}(\s|$)", shown, re.MULTILINE)]
    roots = {place.partition("/")[0] for place in places}
    assert not [root for root in roots if not re.search(rf"(^| ){re.escape(root)}(/|\s)", PAGES["README.md"], re.M)]


def test_the_words_of_the_program_are_the_programs() -> None:
    sources = [
        path.read_text(encoding="utf-8") for room in ("acestep", "pipelines") for path in (ROOT / room).rglob("*.py")
    ]
    for words in SAID:
        assert words in PAGE, words
        assert any(words in source for source in sources), words


@BOTH
def test_what_the_page_points_to_is_there(page: str) -> None:
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path) if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, link
    for module in re.findall(r"`(?:python -m )?benchmarks\.(\w+)", PAGES[page]):
        assert (ROOT / "benchmarks" / f"{module}.py").exists(), module


@pytest.fixture
def queried(tmp_path: Path) -> str:
    """A catalog with what a query may trip over: a row that is there twice, old settings, failures of all kinds."""
    storage = Storage(str(tmp_path / "catalog"))
    rows = make_catalog(storage, songs=6)
    again = dict(rows[0], run="r2", created_at=rows[-1]["created_at"])
    commit(storage, "r2-000000", [again, song_row(storage, "s1", "older", language="de")])
    return storage.url


def refuse(storage: Storage, row: int) -> None:
    """A row without an id that the plan refused."""
    values = {"fingerprint": "", "error_class": "input", "message": "why", "file": "m", "row": row, "run": "p"}
    key = f"{layout.bucket_folder(layout.FAILED, row % 2)}/{layout.REJECTED_FILE}"
    storage.write_table(key, schema.table_of([values], schema.FAILED))


def answers(query: str, catalog: str) -> list[dict]:
    with duckdb.connect() as connection:
        found = connection.sql(query.replace("out/demo", catalog))
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def test_the_query_of_failures_counts_each_that_stands_once(queried: str) -> None:
    storage = Storage(queried)
    fail(storage, ["bad"], run="r2")
    fail(storage, ["s1"], run="r2", error_class="timeout")  # It was made.
    fail(storage, ["lost"], run="r2", error_class="device")
    for row in (1, 2):
        refuse(storage, row)
    (query,) = (each for each in blocks("docs/batch.md", "sql") if "failed/" in each)
    found = {row["error_class"]: row["failures"] for row in answers(query, queried)}
    assert found == {"quality": 1, "device": 1, "input": 2}


def test_the_query_of_hours_counts_what_the_plan_has(queried: str) -> None:
    (query,) = (each for each in blocks("docs/batch.md", "sql") if "language" in each)
    (found,) = answers(query, queried)
    assert found == {"language": None, "songs": 6, "hours": pytest.approx(6 * 0.5 / 3600)}


def test_the_query_of_the_readme_runs(queried: str) -> None:
    (query,) = blocks("README.md", "sql")
    assert {row["id"] for row in answers(query, queried)} == {f"s{number}" for number in range(6)}


def test_the_size_of_a_song_is_what_the_page_says() -> None:
    assert round(240 * 44_100 * 2 * 4 / 1e6) == 85
    assert "240 s are 85 MB" in PAGE
    assert f"blocks of {execution.BLOCK_BYTES >> 20} MB" in PAGE
    assert (execution.CALLS, execution.ATTEMPTS) == (2, 3)
    assert "max_errored_blocks = -1" in inspect.getsource(execution)
