"""Configs: every problem at once and in words, YAML and overrides, and the files that we ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from pipelines.config import RunConfig
from pipelines.config_file import FileConfig
from pipelines.errors import ConfigError
from pipelines.training.config import TrainingConfig
from pipelines.training_data.config import PrepareConfig

ROOT = Path(__file__).parents[1]
OTHERS: dict[str, type[FileConfig]] = {"prepare.yaml": PrepareConfig, "train.yaml": TrainingConfig}
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name not in {"serve.yaml", *OTHERS})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert RunConfig.load(path).seed == 0


def options_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted names of all options with their defaults."""
    options: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel) and name != "audio":
            options |= options_of(type(default), f"{prefix}{name}.")
        else:
            options[prefix + name] = default
    return options


def test_the_tiny_config_shows_every_option_with_its_default() -> None:
    shown = yaml.safe_load(CONFIGS[-1].read_text())
    assert CONFIGS[-1].name == "tiny.yaml"
    for name, default in options_of(RunConfig).items():
        value = shown
        for part in name.split("."):
            assert part in value, f"{name} is missing"
            value = value[part]
        if name != "audio":
            assert value == default, name
    assert RunConfig.load(CONFIGS[-1]) == RunConfig()


@pytest.mark.parametrize("name", OTHERS)
def test_the_configs_of_training_show_every_option_with_its_default(name: str) -> None:
    shown = yaml.safe_load((ROOT / "configs" / name).read_text())
    kind = OTHERS[name]
    for option, default in options_of(kind).items():
        value = shown
        for part in option.split("."):
            assert part in value, f"{option} is missing"
            value = value[part]
        assert value == (list(default) if isinstance(default, tuple) else default), option
    assert kind.load(ROOT / "configs" / name) == kind()


def test_the_options_that_the_readme_sets_go_with_the_tiny_config() -> None:
    words = (ROOT / "README.md").read_text(encoding="utf-8").split("command line: `", 1)[1].split("`", 1)[0].split()
    settings = [setting for flag, setting in zip(words[::2], words[1::2], strict=True) if flag == "--set"]
    config = RunConfig.load(CONFIGS[-1], settings)
    assert len(settings) == 3
    assert (config.audio.format, config.audio.bitrate_kbps, config.loudness.mode) == ("mp3", 320, "lufs")


@pytest.mark.parametrize("kind", [RunConfig, PrepareConfig, TrainingConfig])
def test_every_option_says_what_it_is(kind: type[FileConfig]) -> None:
    def check(model: type[BaseModel]) -> None:
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{name}"
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                check(info.annotation)

    check(kind)


def test_overrides_win_over_the_file_and_are_yaml(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("batch: {max_batch_size: 4}\ndefaults: {duration: 10}\n")
    config = RunConfig.load(
        file,
        ["batch.max_batch_size=2", "defaults.scheduler=heun", "audio={format: mp3}", "resources.num_actors=null"],
    )
    assert config.batch.max_batch_size == 2
    assert config.defaults == {"duration": 10, "scheduler": "heun"}
    assert config.audio.bitrate_kbps == 320
    assert RunConfig.load(None, ["audio.bit_depth=24"]).audio.rendition == "flac-24"


def test_all_problems_are_told_at_once_with_the_nearest_name() -> None:
    overrides = ["batch.frame_budgt=3", "comit.every_songs=3", "model.dtype=bf16", "audio.format=mp4"]
    overrides += ["defaults.schedular=heun", "defaults.duration=0", "defaults.id=x", "resources.num_actors=0"]
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(None, overrides)
    text = str(caught.value)
    for expected in (
        "batch.frame_budgt: 3 is not allowed; there is no such field; did you mean 'frame_budget'?",
        "did you mean 'commit'?",
        "model.dtype: 'bf16' is not allowed",
        "audio.format: 'mp4' is not allowed",
        "defaults.schedular: 'heun' is not allowed; there is no such field; did you mean 'scheduler'?",
        "defaults.duration: 0 is not allowed",
        "defaults.id: 'x' is not allowed; every row of the manifest has its own",
        "resources.num_actors: 0 is not allowed",
    ):
        assert expected in text, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch: [1, 2]", "batch: [1, 2] is not allowed"),
        ("- 1", "holds list, not names and values"),
        ("a: [", "is not YAML"),
        ("model: {device: cuda}", "model.device: 'cuda' is not allowed; engines have no GPU"),
        ("engine: Engine", "it must be like acestep.engine:Engine"),
        ("audio: {format: mp3, bit_depth: 16}", "mp3 has no such setting"),
        ("defaults: {duration: .nan}", "defaults.duration: nan is not allowed"),
    ],
)
def test_a_bad_file_is_a_clear_message(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(file)
    assert expected in str(caught.value)
    assert "bad.yaml" in str(caught.value)


@pytest.mark.parametrize("override", ["batch", "=3", "batch.x.y=3", "seed=["])
def test_a_bad_override_is_a_clear_message(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        RunConfig.load(None, ["batch.x=1", override])


def test_a_missing_file_is_a_clear_message() -> None:
    with pytest.raises(ConfigError, match=r"/nope\.yaml cannot be read"):
        RunConfig.load("/nope.yaml")


def test_what_is_written_down_holds_no_secrets() -> None:
    config = RunConfig.load(
        None,
        [
            "storage.storage_options.secret=hush",
            "model.storage_options.key=hush",
            "ray.runtime_env={env_vars: {A: hush}}",
        ],
    )
    assert "hush" not in str(config.shown())
    assert config.shown()["storage"] == {"attempts": 6}


def test_dtype_and_device_are_settled_by_the_config() -> None:
    assert (RunConfig().dtype, RunConfig().device) == ("float32", "cpu")
    config = RunConfig.load(None, ["resources.num_gpus=1"])
    assert (config.dtype, config.device) == ("bfloat16", "cuda")
