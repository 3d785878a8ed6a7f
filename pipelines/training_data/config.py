"""`PrepareConfig`: everything that the preparation of training data can be told.

Each option and its default stands in `configs/prepare.yaml` too.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from acestep.problems import Problem, ProblemsError
from pipelines.config_file import FileConfig
from pipelines.sections import RaySection, Section, StorageSection


class EncoderSection(Section):
    """Whose autoencoder and tokenizers."""

    checkpoint: str = Field(default="tiny", description="tiny, a folder, a model hub id, or a URL such as s3://...")
    device: str | None = Field(default=None, description="cpu, cuda, mps; null: cuda with GPUs, cpu without.")
    lyric_vocab: str | None = Field(
        default=None, description="Path or URL of the lyric vocabulary, if the checkpoint lacks it."
    )
    storage_options: dict[str, Any] = Field(default_factory=dict, description="For a checkpoint at an fsspec URL.")


class SynthSection(Section):
    """Pieces of the built-in synthesiser, where there is no source."""

    pieces: int = Field(default=0, description="How many; their seeds follow each other.", ge=0)
    first_seed: int = Field(default=0, description="Of the first piece.", ge=0)
    captions: int = Field(
        default=4, description="Prompts for each piece; those that the evaluation asks for are left out.", ge=1
    )
    leave_out_combinations: bool = Field(
        default=False,
        description="Also leave out pieces of an instrument, key and tempo that the evaluation puts together (4% of "
        "all): a model that makes them well did not learn them by heart.",
    )
    durations: list[float] = Field(
        default=[6.0, 10.0, 16.0, 24.0, 32.0], description="Seconds; each piece gets one of them.", min_length=1
    )
    weights: list[float] = Field(default=[3.0, 3.0, 2.0, 1.0, 1.0], description="How often each length is drawn.")

    @model_validator(mode="after")
    def _each_length_has_a_weight(self) -> SynthSection:
        problems = []
        if min(self.durations) < 1:
            problems.append(Problem("synth.durations", self.durations, "the shortest is 1 second"))
        if len(self.weights) != len(self.durations) or min(self.weights) < 0 or not sum(self.weights):
            allowed = f"it must be {len(self.durations)} numbers, one for each length, not below 0 and not all 0"
            problems.append(Problem("synth.weights", self.weights, allowed))
        if problems:
            raise ProblemsError(problems)
        return self


class PrepareResourcesSection(Section):
    """What the encoders take of the cluster."""

    num_actors: int | None = Field(
        default=None, description="Encoders; null: one for each GPU there is, or one without GPUs.", ge=1
    )
    num_gpus: float = Field(default=0, description="GPUs of one encoder; a share such as 0.25 is possible.", ge=0)
    num_cpus: float = Field(default=1, description="CPUs that one encoder reserves, with its readers.", gt=0)
    readers: int = Field(
        default=2, description="Threads of an encoder that read, decode and resample songs ahead of it.", ge=1
    )


class PrepareConfig(FileConfig):
    """The config of `acestep prepare`; every field has a default."""

    model: EncoderSection = Field(default_factory=EncoderSection, description="What encodes.")
    synth: SynthSection = Field(default_factory=SynthSection, description="Music that is made for the purpose.")
    max_seconds: float | None = Field(
        default=240.0,
        description="Longer songs are cut into parts of this length; of a song with lyrics only the first part is "
        "kept, for nobody knows which words fall into which part. null: songs stay whole.",
        ge=1,
    )
    min_seconds: float = Field(
        default=1.0, description="Shorter songs are rejected, shorter last parts left out.", gt=0
    )
    teachers: list[str] = Field(
        default_factory=list,
        description="Frozen audio encoders whose features are kept beside the latents, for repa: logmel-chroma, "
        "hub:m-a-p/MERT-v1-330M ...",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run code that comes with a teacher of the hub, which MERT needs."
    )
    shard_songs: int = Field(default=512, description="Songs of the source in one file, the unit of restarting.", ge=1)
    resources: PrepareResourcesSection = Field(
        default_factory=PrepareResourcesSection, description="What the encoders take."
    )
    storage: StorageSection = Field(default_factory=StorageSection, description="How source and output are reached.")
    ray: RaySection = Field(default_factory=RaySection, description="Which Ray the job runs on.")

    @model_validator(mode="after")
    def _device_has_a_gpu(self) -> PrepareConfig:
        if (self.model.device or "").startswith("cuda") and not self.resources.num_gpus:
            allowed = "encoders have no GPU while resources.num_gpus is 0"
            raise ProblemsError([Problem("model.device", self.model.device, allowed)])
        return self

    @property
    def device(self) -> str:
        """The device that the encoders use."""
        return self.model.device or ("cuda" if self.resources.num_gpus else "cpu")

    def settings(self) -> dict[str, Any]:
        """What decides about the content of the files."""
        return self.model_dump(mode="json", include={"synth", "max_seconds", "min_seconds", "teachers", "shard_songs"})
