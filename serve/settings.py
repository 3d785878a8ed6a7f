"""`ServeConfig`: everything that a server can be told. `configs/serve.yaml` shows each option with its default."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from acestep.problems import Problem, ProblemsError
from pipelines.engine_config import EngineConfig
from pipelines.sections import Section
from serve.auth import AuthSection
from serve.sources import SourcesSection


class HTTPSection(Section):
    """Where the server listens."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0: every one of this machine's.")
    port: int = Field(default=7865, description="Port to listen on.", ge=1, le=65_535)
    cors_origins: list[str] = Field(
        default_factory=list, description="Pages of other origins that may call the API, such as https://app.example."
    )
    max_body_bytes: int = Field(
        default=16 << 20, description="Longest JSON body; 413 above. Longer audio comes as an upload.", ge=1024
    )


class QueueSection(Section):
    """How requests wait, and for whom."""

    max_frames: int = Field(
        default=200_000,
        description="Latent frames (93 ms each) that may wait; 429 above. 200,000: five hours of music.",
        ge=1,
    )
    max_songs: int = Field(default=2000, description="Songs that may wait; 429 above.", ge=1)
    window_seconds: float = Field(
        default=0.004, description="An idle engine waits so long for company of the first song.", ge=0, le=10
    )
    max_wait_seconds: float = Field(
        default=60.0, description="A song that waited so long goes before all that cost less for their age.", ge=0
    )
    latency_target_seconds: float | None = Field(
        default=None, description="Batches are kept so small that making one takes no longer; null: no limit.", gt=0
    )
    batch_timeout_factor: float = Field(
        default=10.0, description="A batch may take so many times what batches of its cost took.", gt=1
    )
    batch_timeout_min_seconds: float = Field(default=600.0, description="... but always this long.", gt=0)
    attempts: int = Field(default=3, description="How often a song is tried when the engine under it dies.", ge=1)
    engine_timeout_seconds: float = Field(
        default=10.0, description="An engine that was silent for so long is dead; its songs are made by another.", gt=1
    )


class JobsSection(Section):
    """What may be asked, and how long answers are kept."""

    max_n: int = Field(default=8, description="Most songs of one request.", ge=1)
    max_items: int = Field(default=100, description="Most items of one submission of many.", ge=1)
    max_duration: float = Field(default=240.0, description="Longest song, in seconds.", ge=1, le=240)
    deadline_seconds: float = Field(
        default=600.0, description="A caller who waits for the song itself waits so long at most; then 504.", gt=0
    )
    expire_seconds: float = Field(
        default=7 * 86_400.0, description="Records and audio are deleted so long after the request.", gt=0
    )
    loras: list[str] | None = Field(
        default=None, description='Adapters that requests may name; null: none, ["*"]: any.'
    )


class ScalingSection(Section):
    """How many engines there are."""

    min_engines: int = Field(default=1, description="Least; 0: all may go when nobody asks.", ge=0)
    max_engines: int = Field(default=1, description="Most.", ge=1)
    frames_per_engine: int = Field(
        default=32_768, description="One more engine for each so many latent frames that wait or are being made.", ge=1
    )
    upscale_delay_seconds: float = Field(default=10.0, description="The need must last so long.", ge=0)
    downscale_delay_seconds: float = Field(default=300.0, description="The same, for fewer.", ge=0)
    drain_seconds: float = Field(default=120.0, description="An engine that is to go may finish for so long.", ge=0)

    @model_validator(mode="after")
    def _least_is_not_over_most(self) -> ScalingSection:
        if self.min_engines > self.max_engines:
            allowed = f"max_engines is {self.max_engines}"
            raise ProblemsError([Problem("scaling.min_engines", self.min_engines, allowed)])
        return self


class ServeConfig(EngineConfig):
    """A server's config; every field has a default, so an empty one makes noise with the tiny checkpoint."""

    store: str = Field(default="out/serve", description="Folder or URL where records and audio of jobs live.")
    http: HTTPSection = Field(default_factory=HTTPSection, description="Where it listens.")
    queue: QueueSection = Field(default_factory=QueueSection, description="How requests wait.")
    jobs: JobsSection = Field(default_factory=JobsSection, description="What may be asked, and is kept how long.")
    scaling: ScalingSection = Field(default_factory=ScalingSection, description="How many engines there are.")
    sources: SourcesSection = Field(default_factory=SourcesSection, description="Audio that songs may begin with.")
    auth: AuthSection = Field(default_factory=AuthSection, description="Who may call.")

    def shown(self) -> dict[str, Any]:
        """The config as it may be written down: without what may hold secrets."""
        shown = super().shown()
        shown["sources"].pop("storage_options")
        shown["auth"].pop("keys")
        return shown

    @field_validator("model", mode="before")
    @classmethod
    def _checkpoint_by_name(cls, value: Any) -> Any:
        return {"checkpoint": value} if isinstance(value, str) else value
