"""`RunConfig`: everything that a job can be told, from YAML and `--set a.b=c`.

Each option and its default stands in `configs/tiny.yaml` too, with the same words.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from acestep.audio_format import AudioFormat
from acestep.errors import InvalidRequestError
from acestep.loudness import Loudness
from acestep.problems import Problem, ProblemsError, problems_of
from acestep.provenance import SIGNABLE_FORMATS
from acestep.request import MAX_SEED, GenerationRequest
from pipelines.errors import ConfigError
from pipelines.sections import (
    BatchSection,
    BestOfSection,
    BudgetSection,
    CommitSection,
    LeaseSection,
    ModelSection,
    PlanSection,
    PreflightSection,
    ProvenanceSection,
    QualitySection,
    RaySection,
    ResourcesSection,
    Section,
    StoppingSection,
    StorageSection,
)
from pipelines.variants import sweep_problems

DEFAULT_ENGINE = "acestep.engine:Engine"
DEFAULT_FORMAT: Literal["flac"] = "flac"
_NOT_DEFAULTS = ("id", "prompt")


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
    num_songs: int = Field(
        default=1, description="Songs of each row, each with a seed of its own; a row's num_songs goes before it.", ge=1
    )
    sweep: dict[str, list[Any]] = Field(
        default_factory=dict, description="Settings with lists of values: every row is made with each combination."
    )
    preflight: PreflightSection = Field(default_factory=PreflightSection, description="What rows are checked for.")
    budget: BudgetSection = Field(default_factory=BudgetSection, description="What the job may cost.")
    quality: QualitySection = Field(default_factory=QualitySection, description="What songs are checked for.")
    best_of: BestOfSection = Field(default_factory=BestOfSection, description="Candidates for each song.")
    keep_latents: bool = Field(
        default=False, description="Keep each song's latents (0.3 MB a minute) as a source for repaint, extend, edit."
    )
    loudness: Loudness = Field(default_factory=Loudness, description="How loud songs are to be.")
    batch: BatchSection = Field(default_factory=BatchSection, description="How requests share a pass.")
    resources: ResourcesSection = Field(default_factory=ResourcesSection, description="What the stages take.")
    plan: PlanSection = Field(default_factory=PlanSection, description="How the plan is written down.")
    commit: CommitSection = Field(default_factory=CommitSection, description="When songs become rows.")
    provenance: ProvenanceSection = Field(default_factory=ProvenanceSection, description="Signed content credentials.")
    stopping: StoppingSection = Field(default_factory=StoppingSection, description="How a run ends early.")
    lease: LeaseSection = Field(default_factory=LeaseSection, description="One run at a time.")
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

    @model_validator(mode="after")
    def _sweep_is_of_settings(self) -> RunConfig:
        if problems := sweep_problems(self.sweep, self.defaults):
            raise ProblemsError(problems)
        return self

    @model_validator(mode="after")
    def _can_be_signed(self) -> RunConfig:
        signing, problems = self.provenance, []
        if signing.mode == "c2pa":
            if self.audio.format not in SIGNABLE_FORMATS:
                allowed = f"provenance.mode c2pa signs {', '.join(SIGNABLE_FORMATS)}"
                problems.append(Problem("audio.format", self.audio.format, allowed))
            problems += [
                Problem(f"provenance.{name}", None, "provenance.mode c2pa needs one: a PEM file")
                for name in ("certificate", "private_key")
                if getattr(signing, name) is None
            ]
        if problems:
            raise ProblemsError(problems)
        return self

    @field_validator("best_of", mode="before")
    @classmethod
    def _number_of_candidates(cls, value: Any) -> Any:
        return {"candidates": value} if isinstance(value, int) else value

    @field_validator("provenance", mode="before")
    @classmethod
    def _mode_of_provenance(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

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
        """What is chosen and becomes of a waveform on its way into a file: part of every song's fingerprint."""
        parts = [self.audio.rendition]
        if self.loudness.mode != "off":
            parts.append(self.loudness.model_dump_json())
        if self.best_of.candidates > 1:
            parts.append(self.best_of.model_dump_json())
        if self.provenance.mode != "off":
            parts.append(self.provenance.mode)
        return " ".join(parts)

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
    def load(cls, path: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> RunConfig:
        """Read a YAML file (or its content; none: the defaults) and apply `a.b=c` overrides, values as in YAML.

        Raises:
            ConfigError: with every problem.
        """
        if isinstance(path, Mapping):
            values, path = copy.deepcopy(dict(path)), "of the catalog"
        else:
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
