"""The sections of a job's config, one class each. `configs/tiny.yaml` shows every option with its default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from acestep.problems import Problem, ProblemsError
from acestep.quality import QualityLimits


class Section(BaseModel):
    """A part of the config: frozen, and a name that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which weights, and how they are loaded."""

    checkpoint: str = Field(
        default="tiny",
        description="tiny (comes along, random weights: noise), a folder, a model hub id, or a URL such as s3://...",
    )
    dtype: Literal["float32", "bfloat16", "float16", "float8"] | None = Field(
        default=None,
        description="Of the weights; null: bfloat16 with GPUs, float32 without. float8: the transformer's large layers "
        "in that and all else in bfloat16, on a CPU or a GPU such as L4 and H100.",
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
    max_actors: int | None = Field(
        default=None, description="With num_actors as the least: let the pool grow and shrink with the backlog.", ge=1
    )
    recycle_after_batches: int | None = Field(
        default=None, description="Replace an engine's process after so many batches, against leaks; null: never.", ge=1
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
        default=7200, description="Give up when nothing moves for so long (loading weights counts); -1: never.", ge=-1
    )


Severity = Literal["error", "warning", "off"]


class PreflightSection(Section):
    """What is looked at in every row before anything is made: an error refuses the row, a warning only says so.

    Settings out of range or unknown are always errors.
    """

    duplicate_id: Severity = Field(default="error", description="An id that an earlier row has.")
    prompt_length: Severity = Field(default="warning", description="A prompt over 256 tokens: the rest is not read.")
    lyrics_length: Severity = Field(default="error", description="Lyrics over the 4,096 tokens of the training.")
    lyrics_density: Severity = Field(default="warning", description="More lyrics than can be sung in the length.")
    language: Severity = Field(default="warning", description="A script that none of the model's languages has.")
    unknown_tokens: Severity = Field(default="warning", description="Lyrics that the vocabulary cannot spell.")
    structure_tags: Severity = Field(default="warning", description="A [tag] that the model was not trained on.")
    lora: Severity = Field(default="error", description="An adapter that is not there or cannot be read.")
    source: Severity = Field(default="error", description="A source that is not there or cannot be read.")
    max_characters_per_second: float = Field(
        default=30.0,
        description="lyrics_density: letters sung in a second, at most; Han, Kana, Hangul: three.",
        gt=0,
    )
    max_unknown_share: float = Field(
        default=0.05, description="unknown_tokens: share of the lyrics' characters, at most.", ge=0, le=1
    )

    @field_validator("*", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, value: Any) -> Any:
        """YAML reads a plain `off` as false."""
        return "off" if value is False else value


class QualitySection(Section):
    """The gate that every song passes before it is kept."""

    enabled: bool = Field(default=True, description="Off: everything finite of the right length is kept.")
    rerolls: int = Field(
        default=2,
        description="A song that fails is made again so many times, each with a seed of its own.",
        ge=0,
        le=100,
    )
    quarantine: bool = Field(default=True, description="Keep the audio of what failed to the end, for a person's ear.")
    limits: QualityLimits = Field(default_factory=QualityLimits, description="What fails.")


class BestOfSection(Section):
    """Several candidates for each song, of which the best is kept; `best_of: 4` is short for four candidates."""

    candidates: int = Field(default=1, description="Made for each song.", ge=1, le=64)
    scorer: str = Field(default="clean", description="What judges them: the name of an installed scorer.")
    options: dict[str, Any] = Field(default_factory=dict, description="Of the scorer.")


class BudgetSection(Section):
    """What the job may cost; an estimate above it is refused before anything starts."""

    price_per_gpu_hour: float | None = Field(default=None, description="In any currency; null: cost is not told.", ge=0)
    max_cost: float | None = Field(default=None, description="Refuse a job estimated to cost more.", ge=0)
    max_hours: float | None = Field(default=None, description="Refuse a job estimated to run longer.", gt=0)
    device: str | None = Field(
        default=None,
        description="GPU that the estimate is for, such as NVIDIA H100; null: this machine's, or the last one used.",
    )

    @model_validator(mode="after")
    def _cost_has_a_price(self) -> BudgetSection:
        if self.max_cost is not None and self.price_per_gpu_hour is None:
            allowed = "it needs budget.price_per_gpu_hour, which is null"
            raise ProblemsError([Problem("budget.max_cost", self.max_cost, allowed)])
        return self


class StoppingSection(Section):
    """How a run ends early."""

    drain_seconds: float = Field(
        default=60.0,
        description="After Ctrl-C, SIGTERM: time for batches in work to end; a second signal ends at once.",
        ge=0,
    )
    batch_timeout_factor: float = Field(
        default=10.0, description="A batch may take so many times what batches of its cost took.", gt=1
    )
    batch_timeout_min_seconds: float = Field(default=600.0, description="... but always this long.", gt=0)


class LeaseSection(Section):
    """One run at a time on an output."""

    heartbeat_seconds: float = Field(default=5.0, description="How often a run says that it lives.", gt=0)
    stale_seconds: float = Field(
        default=30.0, description="A run that said nothing for so long is dead, and its place is taken.", gt=0
    )


class ProvenanceSection(Section):
    """What a file can prove of its origin."""

    mode: Literal["off", "c2pa"] = Field(
        default="off", description="c2pa: signed content credentials in wav, flac and mp3 (extra: provenance)."
    )
    certificate: str | None = Field(default=None, description="c2pa: PEM file of the certificate chain.")
    private_key: str | None = Field(default=None, description="c2pa: PEM file of its key, on every node.")
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = Field(
        default="es256", description="c2pa: of the key."
    )

    def sign(self, data: bytes, format: str, facts: dict[str, Any]) -> bytes:
        """The file with signed content credentials; `mode` must be c2pa. Raises what `acestep.provenance.sign` does."""
        from acestep.provenance import sign

        assert self.certificate is not None and self.private_key is not None, "the config has checked it"
        return sign(
            data,
            format,
            facts=facts,
            certificate=self.certificate,
            private_key=self.private_key,
            algorithm=self.algorithm,
        )
