"""A server's config: the shipped file shows every option as the code has it; bad values are told of, all at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipelines.config import RunConfig
from pipelines.engine_config import EngineConfig
from pipelines.errors import ConfigError
from serve.config_file import load_config
from serve.settings import ServeConfig

ROOT = Path(__file__).parents[1]
FILE = ROOT / "configs" / "serve.yaml"
TINY = ROOT / "configs" / "tiny.yaml"
BATCH_ONLY = ("quality.quarantine", "quality.limits.max_similarity", "resources.num_actors", "resources.max_actors")
BATCH_ONLY += ("resources.recycle_after_batches", "resources.encode_cpus")
SAID_OTHERWISE = (*BATCH_ONLY, "defaults", "storage.storage_options", "ray.address", "ray.runtime_env")
SAID_OTHERWISE += ("ray.no_progress_seconds",)
"""Shared with the batch job, and not the same for a server."""


def options_of(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Dotted names of all options with their defaults and descriptions."""
    options: dict[str, tuple[Any, str]] = {}
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        assert info.description, f"{model.__name__}.{name}"
        if isinstance(default, BaseModel) and name != "audio":
            options |= options_of(type(default), f"{prefix}{name}.")
        else:
            options[prefix + name] = (default, info.description)
    return options


def comments_of(path: Path) -> dict[str, str]:
    """What stands behind each option, by dotted name; a comment goes on in lines that begin with `#   `."""
    comments: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    last = ""
    for line in path.read_text(encoding="utf-8").rpartition("args:\n")[2].splitlines():
        if match := re.fullmatch(r"( *)(\w+):(.*?)(?: +# (.*))?", line):
            indent = len(match[1])
            parents = [parent for parent in parents if parent[0] < indent] + [(indent, match[2])]
            last = ".".join(name for _, name in parents)
            comments[last] = match[4] or ""
        elif match := re.fullmatch(r" +#   (.*)", line):
            comments[last] += f" {match[1]}"
        else:
            last = "(none)"
            comments[last] = ""
    return comments


def settings() -> dict[str, Any]:
    (application,) = yaml.safe_load(FILE.read_text(encoding="utf-8"))["applications"]
    return application["args"]


def test_the_file_shows_every_option_with_its_default() -> None:
    shown, options = settings(), options_of(ServeConfig)
    assert len(options) > 60
    for name, (default, _) in options.items():
        value: Any = shown
        for part in name.split("."):
            assert part in value, f"{name} is missing"
            value = value[part]
        if name != "audio":
            assert value == default and type(value) is type(default), name
    plain = ServeConfig()
    assert ServeConfig.parse(shown) == plain
    of_this_machine = {"model": plain.model, "resources": plain.resources}
    assert load_config(FILE).model_copy(update=of_this_machine) == plain


def test_the_file_says_what_the_code_says() -> None:
    comments = comments_of(FILE)
    for name, (_, description) in options_of(ServeConfig).items():
        if name.partition(".")[0] not in EngineConfig.model_fields and name != "store":
            said = description.removesuffix(".")
            assert comments[name] == said[0].lower() + said[1:], name


def test_options_of_batch_jobs_are_explained_alike() -> None:
    ours, theirs = comments_of(FILE), comments_of(TINY)
    shared = [name for name in options_of(EngineConfig) if name not in SAID_OTHERWISE and name != "audio"]
    assert len(shared) > 30
    for name in shared:
        assert ours[name] == theirs[name], name
    assert all(ours[name].startswith("batch jobs only") for name in BATCH_ONLY)
    assert set(SAID_OTHERWISE) <= options_of(RunConfig).keys()


def test_the_file_is_one_that_serve_deploys() -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))
    (application,) = schema.applications
    assert (application.import_path, application.route_prefix) == ("serve.app:build", "/")
    assert schema.http_options.port == 8000
    assert schema.http_options.request_timeout_s is None


def test_a_file_with_the_options_alone_will_do(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: tiny\nqueue: {max_songs: 7}\nhttp: {port: 1234}\n")
    config = load_config(file, ["http.port=4321"])
    assert (config.queue.max_songs, config.http.port, config.model.checkpoint) == (7, 4321, "tiny")
    assert ServeConfig.parse({"model": "tiny"}).model == ServeConfig().model
    file.write_text("")
    assert load_config(file).http.port == 7865


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"http": {"prot": 1}}, "http.prot: 1 is not allowed; there is no such field; did you mean 'port'?"),
        ({"http": {"port": 70_000}}, "http.port: 70000 is not allowed"),
        ({"http": {"cors_origins": "https://a.example"}}, "http.cors_origins"),
        ({"queue": {"max_songs": 0}}, "queue.max_songs: 0 is not allowed"),
        ({"queue": {"window_seconds": float("nan")}}, "queue.window_seconds: nan is not allowed"),
        ({"queue": {"latency_target_seconds": float("inf")}}, "queue.latency_target_seconds"),
        ({"jobs": {"max_duration": 300}}, "jobs.max_duration: 300 is not allowed"),
        ({"jobs": {"expire_seconds": -1}}, "jobs.expire_seconds: -1 is not allowed"),
        ({"jobs": {"loras": "a"}}, "jobs.loras"),
        ({"scaling": {"min_engines": 3, "max_engines": 2}}, "scaling.min_engines: 3 is not allowed; max_engines is 2"),
        ({"sources": {"allowed_urls": ["file:///etc/"]}}, "sources.allowed_urls"),
        ({"auth": {"keys": {"ann": "secret"}}}, "auth.keys.ann: '(not shown)' is not allowed; it must be sha256:"),
        ({"auth": {"keys": ["secret"]}}, "auth.keys"),
        ({"defaults": {"duration": 0}}, "defaults.duration: 0 is not allowed"),
        ({"audio": {"format": "mp4"}}, "audio.format: 'mp4' is not allowed"),
        ({"model": ["tiny"]}, "model: ['tiny'] is not allowed"),
        ({"model": None}, "model: None is not allowed"),
        ({"queu": {}}, "did you mean 'queue'?"),
        ({"seed": 1}, "seed: 1 is not allowed; there is no such field"),
    ],
)
def test_a_hostile_value_is_a_clear_message(values: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServeConfig.parse(values)
    text = str(caught.value)
    assert expected in text
    assert "secret" not in text and "Traceback" not in text


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["http.port=0", "queue.attempts=0", "scaling.max_engins=2"])
    text = str(caught.value)
    assert all(name in text for name in ("http.port", "queue.attempts", "did you mean 'max_engines'?"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- 1\n", "holds no options of serve.app:build, but [1]"),
        ("a: [", "cannot be read"),
        ("just words", "but 'just words'"),
        ("\xff\xfe\x00", "cannot be read"),
        ("applications: [{import_path: other:app, args: {}}]", "holds no options of serve.app:build"),
        ("applications: [{import_path: 'serve.app:build', args: [1]}]", "but [1]"),
    ],
)
def test_a_bad_file_is_a_clear_message(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert expected in str(caught.value)
    assert "bad.yaml" in str(caught.value)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_what_is_written_down_holds_no_secrets() -> None:
    hidden = {
        "storage": {"storage_options": {"secret": "hush"}},
        "sources": {"storage_options": {"secret": "hush"}},
        "model": {"storage_options": {"secret": "hush"}},
    }
    assert "hush" not in str(ServeConfig.parse(hidden).shown())
    assert "sha256:" not in str(ServeConfig.parse({"auth": {"keys": {"ann": f"sha256:{'0' * 64}"}}}).shown())
