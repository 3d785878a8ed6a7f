"""`RunConfig`: everything that a job can be told, from YAML and `--set a.b=c`.

Each option and its default stands in `configs/tiny.yaml` too, with the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from acestep.audio_format import AudioFormat
from acestep.errors import InvalidRequestError
from acestep.loudness import Loudness
from acestep.problems import Problem, ProblemsError, problems_of
from acestep.request import MAX_SEED, GenerationRequest
from pipelines.errors import ConfigError

DEFAULT_ENGINE = "acestep.engine:Engine"
DEFAULT_FORMAT: Literal["flac"] = "flac"
_NOT_DEFAULTS = ("id", "prompt")


class Section(BaseModel):
    """A part of the config: frozen, and a name that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which weights, and how they are loaded."""

    checkpoint: str = Field(
        default="tiny",
        description="tiny (comes along, random weights: noise), a folder, a model hub id, or a URL such as s3://...",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="Of the weights; null: bfloat16 with GPUs, float32 without."
    )
    device: str | None = Field(default=None, description="cpu, cuda, mps; null: cuda with GPUs, cpu without.")
    lyric_vocab: str | None = Field(
        default=None, description="Path or URL of the lyric vocabulary, if the checkpoint lacks it."
    )
    storage_options: dict[str, Any] = Field(default_factory=dict, description="For a checkpoint at an fsspec URL.")
    cpu_offload: bool = Field(
        default=False, description="Keep each network in host memory but for its own stage: less GPU memory, slower."
    )
    torch_compile: bool = Field(default=False, description="Compile the transformer; the first batches take minutes.")
    warm_up: bool = Field(default=True, description="Make one short song before the first real one.")


class BatchSection(Section):
    """How requests share a pass."""

    frame_budget: int = Field(
        default=16_384,
        description="Most latent frames (93 ms each) in one pass; 16,384: six songs of 240 s, or fifty of 30 s.",
        ge=1,
    )
    max_batch_size: int = Field(default=16, description="Most songs in one pass.", ge=1)


class ResourcesSection(Section):
    """What the stages take of the cluster."""

    num_actors: int | None = Field(
        default=None, description="Warm engines; null: one for each GPU there is, or one without GPUs.", ge=1
    )
    num_gpus: float = Field(default=0, description="GPUs of one engine; a share such as 0.5 is possible.", ge=0)
    num_cpus: float = Field(default=1, description="CPUs that one engine reserves, next to its GPUs.", ge=0)
    cpu_threads: int | None = Field(
        default=None, description="Threads of an engine on the CPU; null: all cores, shared between engines.", ge=1
    )
    encode_cpus: float = Field(default=1, description="CPUs that one encoding task reserves.", gt=0)


class PlanSection(Section):
    """How the plan is written down."""

    bucket_rows: int = Field(
        default=50_000, description="About so many songs in a bucket, the unit of restarting.", ge=1
    )


class CommitSection(Section):
    """When finished songs become rows of the catalog: whichever comes first, and at the end."""

    every_songs: int = Field(default=256, description="After so many songs.", ge=1)
    every_seconds: float = Field(default=30.0, description="After so many seconds.", ge=0)


class StorageSection(Section):
    """How manifest and output are reached."""

    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="For fsspec: endpoint_url, key, secret, ...; never written down."
    )
    attempts: int = Field(default=6, description="How often an operation is tried, with growing pauses.", ge=1)


class RaySection(Section):
    """Which Ray the job runs on."""

    address: str | None = Field(
        default=None, description="Of a running cluster (auto, host:port); null: RAY_ADDRESS if set, else this machine."
    )
    runtime_env: dict[str, Any] | None = Field(
        default=None, description="Ray's runtime_env for the workers, such as {working_dir: .}."
    )
    no_progress_seconds: int = Field(
        default=3600, description="Give up when nothing moves for so long (loading weights counts); -1: never.", ge=-1
    )


class RunConfig(Section):
    """A job's config; every field has a default, so an empty one makes noise with the tiny checkpoint."""

    engine: str = Field(default=DEFAULT_ENGINE, description="Import path of the engine's class.")
    seed: int = Field(default=0, description="Songs without a seed get one from this and their id.", ge=0, le=MAX_SEED)
    model: ModelSection = Field(default_factory=ModelSection, description="Which weights.")
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="Any setting of a request; a row of the manifest goes before it."
    )
    audio: AudioFormat = Field(
        default=AudioFormat(format=DEFAULT_FORMAT), description="Kind of file, with the settings of that kind."
    )
    keep_latents: bool = Field(
        default=False, description="Keep each song's latents (0.3 MB a minute) as a source for repaint, extend, edit."
    )
    loudness: Loudness = Field(default_factory=Loudness, description="How loud songs are to be.")
    batch: BatchSection = Field(default_factory=BatchSection, description="How requests share a pass.")
    resources: ResourcesSection = Field(default_factory=ResourcesSection, description="What the stages take.")
    plan: PlanSection = Field(default_factory=PlanSection, description="How the plan is written down.")
    commit: CommitSection = Field(default_factory=CommitSection, description="When songs become rows.")
    storage: StorageSection = Field(default_factory=StorageSection, description="How manifest and output are reached.")
    ray: RaySection = Field(default_factory=RaySection, description="Which Ray the job runs on.")

    @field_validator("engine")
    @classmethod
    def _is_an_import_path(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", value):
            raise ValueError(f"it must be like {DEFAULT_ENGINE}")
        return value

    @field_validator("defaults")
    @classmethod
    def _are_settings(cls, values: dict[str, Any]) -> dict[str, Any]:
        problems = [
            Problem(f"defaults.{name}", values[name], "every row of the manifest has its own")
            for name in _NOT_DEFAULTS
            if name in values
        ]
        settings = {name: value for name, value in values.items() if name not in _NOT_DEFAULTS and value is not None}
        try:
            GenerationRequest.parse({**settings, "prompt": "any"})
        except InvalidRequestError as error:
            problems += [Problem(f"defaults.{each.field}", each.value, each.allowed) for each in error.problems]
        if problems:
            raise ProblemsError(problems)
        return settings

    @field_validator("audio", mode="before")
    @classmethod
    def _has_a_format(cls, value: Any) -> Any:
        return {"format": DEFAULT_FORMAT, **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _device_has_a_gpu(self) -> RunConfig:
        if (self.model.device or "").startswith("cuda") and not self.resources.num_gpus:
            allowed = "engines have no GPU while resources.num_gpus is 0"
            raise ProblemsError([Problem("model.device", self.model.device, allowed)])
        return self

    @property
    def rendition(self) -> str:
        """What becomes of a waveform on its way into a file: part of every song's fingerprint."""
        if self.loudness.mode == "off":
            return self.audio.rendition
        return f"{self.audio.rendition} {self.loudness.model_dump_json()}"

    @property
    def dtype(self) -> str:
        """The dtype that the engines use: part of every song's fingerprint, so it is settled here, not there."""
        return self.model.dtype or ("bfloat16" if self.resources.num_gpus else "float32")

    @property
    def device(self) -> str:
        """The device that the engines use."""
        return self.model.device or ("cuda" if self.resources.num_gpus else "cpu")

    def shown(self) -> dict[str, Any]:
        """The config as it may be written down: without the options that may hold secrets."""
        return self.model_dump(
            mode="json",
            exclude={"model": {"storage_options"}, "storage": {"storage_options"}, "ray": {"runtime_env"}},
        )

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
        """Read a YAML file (none: the defaults) and apply `a.b=c` overrides, values as in YAML.

        Raises:
            ConfigError: with every problem.
        """
        values = _read_yaml(Path(path)) if path else {}
        for override in overrides:
            _apply(values, override)
        where = f"the config {path}" if path else "the config"
        return cls.parse(values, f"{where} with --set" if overrides else where)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "the config") -> RunConfig:
        """A config from nested plain values.

        Raises:
            ConfigError: with every problem.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError.of(where, problems_of(error, cls)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config {path} is not YAML: {error}") from error
    if not isinstance(values or {}, dict):
        raise ConfigError(f"the config {path} holds {type(values).__name__}, not names and values")
    return values or {}


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {override!r} is not allowed; it must be like batch.max_batch_size=4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error
    *sections, last = name.strip().split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r}: {section} is {inner!r} and has no parts")
        values = inner
    values[last] = value
