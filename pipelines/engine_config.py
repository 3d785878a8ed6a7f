"""`EngineConfig`: what a batch job and a server alike can be told of their engines, from YAML and `--set a.b=c`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from acestep.audio_format import AudioFormat
from acestep.errors import InvalidRequestError
from acestep.loudness import Loudness
from acestep.problems import Problem, ProblemsError
from acestep.provenance import SIGNABLE_FORMATS
from acestep.request import GenerationRequest
from pipelines.config_file import FileConfig
from pipelines.sections import (
    BatchSection,
    ModelSection,
    ProvenanceSection,
    QualitySection,
    RaySection,
    ResourcesSection,
    StorageSection,
)

DEFAULT_ENGINE = "acestep.engine:Engine"
DEFAULT_FORMAT: Literal["flac"] = "flac"
_NOT_DEFAULTS = ("id", "prompt")


class EngineConfig(FileConfig):
    """Engines, what they are asked for by default, and what becomes of their songs."""

    engine: str = Field(
        default=DEFAULT_ENGINE, description="Import path of the engine's class, or serve://<application>."
    )
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
    quality: QualitySection = Field(default_factory=QualitySection, description="What songs are checked for.")
    provenance: ProvenanceSection = Field(default_factory=ProvenanceSection, description="Signed content credentials.")
    batch: BatchSection = Field(default_factory=BatchSection, description="How requests share a pass.")
    resources: ResourcesSection = Field(default_factory=ResourcesSection, description="What the stages take.")
    storage: StorageSection = Field(default_factory=StorageSection, description="How manifest and output are reached.")
    ray: RaySection = Field(default_factory=RaySection, description="Which Ray the job runs on.")

    @field_validator("engine")
    @classmethod
    def _is_an_import_path(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+|\w+://[\w.-]+", value):
            raise ValueError(f"it must be like {DEFAULT_ENGINE}, or like serve://acestep for one that is running")
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
    def _can_be_signed(self) -> Self:
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

    @field_validator("provenance", mode="before")
    @classmethod
    def _mode_of_provenance(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @field_validator("audio", mode="before")
    @classmethod
    def _has_a_format(cls, value: Any) -> Any:
        return {"format": DEFAULT_FORMAT, **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _device_has_a_gpu(self) -> Self:
        if (self.model.device or "").startswith("cuda") and not self.resources.num_gpus:
            allowed = "engines have no GPU while resources.num_gpus is 0"
            raise ProblemsError([Problem("model.device", self.model.device, allowed)])
        return self

    @model_validator(mode="after")
    def _running_engine_has_gpus_of_its_own(self) -> Self:
        if "://" in self.engine and self.resources.num_gpus:
            allowed = f"the engine {self.engine} has GPUs of its own: 0"
            raise ProblemsError([Problem("resources.num_gpus", self.resources.num_gpus, allowed)])
        return self

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
