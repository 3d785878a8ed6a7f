"""The page about the server: every example runs as it stands against a real one, every name is the code's."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from acestep.errors import ACEStepError
from jobs.cli import COMMANDS, main
from pipelines.config import RunConfig
from serve import errors, openapi, records
from serve.auth import KEYS_VARIABLE, AuthSection, Keys
from serve.job import _CODES
from serve.settings import ServeConfig
from serve.wire import ALIASES, DELIVERY
from tests.running_server import RunningServer, running_server

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://localhost:7865"
NOT_FIELDS = {"stream_format"}
NEVER_ANSWERED = {"forbidden"}
"""Codes of classes that nothing raises."""


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [block for of, block in found if of == language]


SHELL = [block for block in blocks("bash") if "curl" in block]
COMMAND_LINES = [
    shlex.split(line, comments=True)
    for block in blocks("bash")
    if "curl" not in block
    for line in block.replace("\\\n", " ").splitlines()
]


def table(heading: str, number: int = 0) -> list[list[str]]:
    """The cells of one of the tables whose first column is called `heading`."""
    rest = re.split(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\|\n", PAGE, flags=re.MULTILINE)[1:]
    lines = rest[number].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def names_of(rows: list[list[str]], column: int = 0) -> set[str]:
    return {name for row in rows for name in names_in(row[column])}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples leave their files."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def shell(server: RunningServer, folder: Path) -> list[str]:
    """What each block of the shell printed, run in a row in one shell."""
    mark = "---- the next block"
    script = "\n".join(f"echo '{mark}'\n{block}" for block in SHELL).replace(ADDRESS, server.url)
    environ = {**os.environ, "ACESTEP_API_KEY": "any"}
    words = ["bash", "-euo", "pipefail", "-c", script]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environ, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout.split(f"{mark}\n")[1:]


def test_every_example_of_the_shell_runs(shell: list[str], folder: Path) -> None:
    assert len(shell) == len(SHELL) >= 8
    by_first_words = {block.split("-d ")[0]: said for block, said in zip(SHELL, shell, strict=True)}
    assert len(by_first_words) == len(SHELL)
    for name, head in {"song.mp3": b"", "choir.wav": b"RIFF", "techno.opus": b"OggS", "take.wav": b"RIFF"}.items():
        data = (folder / name).read_bytes()
        assert len(data) > 1000 and data.startswith(head), name
    assert len((folder / "beginning.flac").read_bytes()) <= 100_000
    errors_said = [said for said in shell if '"type":' in said and '"items"' not in said]
    assert len(errors_said) == 1, "only the example with a mistake in it"
    assert "did you mean 'prompt'?" in errors_said[0]


def test_the_job_of_the_example_goes_its_way(shell: list[str]) -> None:
    (said,) = (said for block, said in zip(SHELL, shell, strict=True) if "/events" in block)
    assert "event: completed" in said
    assert '"has_more":' in said
    assert said.rstrip().endswith('"deleted":true}')


def test_every_example_in_python_runs(
    shell: list[str], server: RunningServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "docs"}
    found = blocks("python")
    assert len(found) >= 4
    for block in found:
        code = block.replace("Client()", f'Client("{ADDRESS}")').replace(ADDRESS, server.url)
        exec(compile(code, "docs/serving.md", "exec"), names)
    said = capsys.readouterr().out
    assert "completed 100%" in said
    assert (
        "422 invalid_value ['schedular', 'duration']" in said or "422 invalid_value ['duration', 'schedular']" in said
    )
    assert len(names["takes"]) == 3
    for name in ("rain.mp3", "many-0.flac", "many-1.flac", "bossa nova.mp3", "choir.mp3"):
        assert (folder / name).stat().st_size > 1000


def test_every_command_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [words for words in COMMAND_LINES if words and words[0] == "acestep"]
    assert len(commands) >= 4
    for _, name, *arguments in commands:
        assert name in COMMANDS
        command = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]
        assert command is not None
        with command.make_context(name, arguments) as context:
            overrides = context.params["overrides"]
        if name == "serve":
            path = context.params["config"]
            assert path is None or (ROOT / path).exists()
            ServeConfig.load(None, overrides)
        else:
            RunConfig.load(None, overrides)
            assert (ROOT / context.params["manifest"]).exists()
    options = {option for each in main.params for option in each.opts}
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    assert {"--port", "--server_name", "--checkpoint_path", "--bf16"} <= set(re.findall(r"`(--\w+)`", text)) <= options


def test_the_commands_of_ray_are_about_what_is_there() -> None:
    runs = [words for words in COMMAND_LINES if words[:2] == ["serve", "run"]]
    deploys = [words for words in COMMAND_LINES if words[:2] == ["serve", "deploy"]]
    assert runs and deploys
    for _, _, target, *arguments in runs:
        assert target == "serve.app:build"
        ServeConfig.parse(dict(argument.split("=", 1) for argument in arguments))
    for words in deploys:
        (application,) = yaml.safe_load((ROOT / words[2]).read_text(encoding="utf-8"))["applications"]
        assert application["name"] == "acestep", "the name that batch jobs are told on the page"


def test_the_key_of_the_example_is_one() -> None:
    (line,) = (words for words in COMMAND_LINES if words[:1] == ["export"])
    name, _, value = line[1].partition("=")
    assert name == KEYS_VARIABLE
    assert Keys.of(AuthSection(), {name: value})
    assert ["python", "-m", "serve.auth"] in COMMAND_LINES


def test_the_table_of_endpoints_is_whole(server: RunningServer) -> None:
    said = {name for name in names_of(table("endpoint")) if " " in name}
    schema = server.client().get("/openapi.json").json()
    known = {f"{method.upper()} {path}" for path, each in schema["paths"].items() for method in each}
    assert said - {"GET /metrics", "GET /openapi.json"} == known - {"GET /metrics", "GET /openapi.json"}
    routes = {f"{method} {route.path}" for route in _routes(server) for method in route.methods - {"HEAD"}}
    assert said <= routes
    assert {route for route in routes if "/v1/" in route} <= said


def _routes(server: RunningServer) -> list[Any]:
    from starlette.routing import Route

    from serve.api import create_app

    found: list[Any] = []

    def walk(routes: Any) -> None:
        for route in routes:
            if hasattr(route, "methods") and hasattr(route, "path"):
                found.append(route)
            walk(getattr(getattr(route, "original_router", None), "routes", ()) or ())

    walk(create_app(server.service).routes)
    assert any(isinstance(route, Route) for route in found)
    return found


def test_the_tables_of_fields_are_whole(server: RunningServer) -> None:
    fields, job = table("field"), table("field", 1)
    properties = openapi.schema(server.service)["components"]["schemas"]["Generation"]["properties"]
    assert names_of(fields) >= set(DELIVERY) - NOT_FIELDS
    assert names_of(fields) <= set(properties)
    shown = server.client().post("/v1/audio/jobs", json={"prompt": "x", "duration": 1}).json()
    assert names_of(job) == shown.keys()
    assert {name: row[1].strip("`") for row in table("also called") for name in names_in(row[0])} == ALIASES


def codes_in_the_code() -> set[str]:
    """Every `code` that an answer of the server may have."""
    found = set()
    for path in (ROOT / "serve").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))

    def classes(kind: type[errors.ServiceError]) -> set[str]:
        return {kind.code}.union(*map(classes, kind.__subclasses__()))

    return (found | classes(errors.ServiceError)) - NEVER_ANSWERED


def test_the_tables_of_errors_are_whole() -> None:
    said, of_jobs = names_of(table("status"), 1), names_of(table("`code` of a job"))

    def classes(kind: type[ACEStepError]) -> set[str]:
        ours = [each for each in kind.__subclasses__() if each.__module__.startswith(("acestep.", "pipelines."))]
        return {kind.error_class}.union(*map(classes, ours))

    known = {_CODES[each][1] if each in _CODES else each for each in classes(ACEStepError)} - {"cancelled"}
    assert of_jobs == known
    assert said == codes_in_the_code() - (known - {"invalid_value"})
    statuses = {code: int(row[0]) for row in table("status") for code in names_in(row[1])}
    for kind in _service_errors(errors.ServiceError):
        if kind.code not in NEVER_ANSWERED:
            assert statuses[kind.code] == kind.status, kind


def _service_errors(kind: type[errors.ServiceError]) -> list[type[errors.ServiceError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in _service_errors(below))]


def test_the_error_that_is_shown_is_the_one_that_comes(server: RunningServer) -> None:
    answer = server.client().post("/v1/audio/generations", json={"prompt": "x", "duration": 1000})
    (shown,) = (block for block in blocks("") if '{"error"' in block)
    error = answer.json()["error"]
    assert f'"{error["message"]}"' in shown
    assert all(f'"{name}"' in shown for name in error)
    assert answer.headers["X-Request-Id"]


def test_the_table_of_metrics_is_whole(server: RunningServer) -> None:
    families = text_string_to_metric_families(server.client().get("/metrics").text)
    known = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    known = {name for name in known if name.startswith("acestep_") and not name.endswith("_created")}
    assert names_of(table("metric")) == known


def test_every_option_on_the_page_is_there_with_that_default() -> None:
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    sections = {**ServeConfig.model_fields}
    named = set()
    for name, default in re.findall(r"`([a-z_]+\.[a-z_.]+)(?:: [^`]*)?`(?: \((-?[\d.]+)\))?", text):
        section, *parts = name.split(".")
        if section not in sections:
            continue
        value: object = getattr(ServeConfig(), section)
        for part in parts:
            assert isinstance(value, BaseModel) and part in type(value).model_fields, name
            value = getattr(value, part)
        if default:
            assert value == float(default), name
        named.add(name)
    assert len(named) >= 30


def test_every_option_is_on_the_page_or_in_the_file() -> None:
    shown = (ROOT / "configs" / "serve.yaml").read_text(encoding="utf-8")

    def check(model: type[BaseModel], prefix: str) -> None:
        for name, info in model.model_fields.items():
            default = info.get_default(call_default_factory=True)
            if isinstance(default, BaseModel):
                check(type(default), f"{prefix}{name}.")
            else:
                assert f"{prefix}{name}" in PAGE or re.search(rf"\b{name}: ", shown), prefix + name

    check(ServeConfig, "")


def test_every_place_of_a_store_is_shown() -> None:
    (shown,) = (block for block in blocks("") if "<store>/" in block)
    places = {line.partition("/")[0] for line in (records.__doc__ or "").splitlines() if re.match(r"\w+/", line)}
    assert len(places) == 6
    assert {line.split("/")[0].strip() for line in shown.splitlines()[1:]} == places


def test_what_the_page_points_to_is_there() -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGE):
        path, _, anchor = link.partition("#")
        target = (ROOT / "docs" / path) if path else ROOT / "docs" / "serving.md"
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, link
