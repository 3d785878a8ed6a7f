"""`TrainingConfig`: everything that a training can be told.

Each option and its default stands in `configs/train.yaml` too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from acestep.problems import Problem, ProblemsError
from acestep.training.flow_matching import FlowMatchingConfig
from acestep.training.lora import LoRAConfig
from acestep.training.optimization import OptimizationConfig
from pipelines.config_file import FileConfig
from pipelines.sections import Section, StorageSection

Trained = Literal["transformer", "autoencoder", "vocoder", "lora"]


class StartSection(Section):
    """What the training begins with."""

    checkpoint: str = Field(default="tiny", description="tiny, a folder, a model hub id, or a URL such as s3://...")
    lyric_vocab: str | None = Field(
        default=None, description="Path or URL of the lyric vocabulary, if the checkpoint lacks it."
    )
    storage_options: dict[str, Any] = Field(default_factory=dict, description="For a checkpoint at an fsspec URL.")
    lora: str | None = Field(
        default=None, description="part lora: an adapter to go on from; its layers, rank and scale are taken over."
    )


class DataSection(Section):
    """What is learned from."""

    songs: list[str] = Field(
        default_factory=list,
        description="transformer, lora: outputs of `acestep prepare`, or Parquet files of its kind: folders, globs, "
        "files, URLs.",
    )
    audio: list[str] = Field(
        default_factory=list,
        description="autoencoder, vocoder: audio files: folders, globs, files, URLs; none: pieces of the synthesiser.",
    )
    batch_size: int = Field(default=8, description="Songs or crops that each worker takes at a step.", ge=1)
    max_frames: int | None = Field(
        default=None,
        description="transformer, lora: longer songs are cut to so many latent frames (93 ms each), another part of "
        "them each time; null: they stay whole.",
        ge=8,
    )
    crop_frames: int = Field(default=24, description="autoencoder, vocoder: latent frames of a crop.", ge=1)
    crops_per_piece: int = Field(default=2, description="autoencoder, vocoder: crops of each synthesised piece.", ge=1)
    ahead: int = Field(default=2, description="Batches made while a step is taken; 0: none.", ge=0)


class RepaSection(Section):
    """Alignment of a block with what audio encoders hear (REPA); the data must hold their features."""

    enabled: bool = Field(default=False, description="Train with it; its weight is flow_matching.repa_weight.")
    depth: int | None = Field(
        default=None, description="The block that is aligned, 0 the first; null: a third of the way.", ge=0
    )


class CodecSection(Section):
    """Losses of the codec's two networks."""

    latent_noise: float = Field(default=0.15, description="autoencoder: most noise on latents to be decoded.", ge=0)
    latent_pull: float = Field(default=0.05, description="autoencoder: weight of latents being of deviation 1.", ge=0)
    frames: bool = Field(
        default=False,
        description="vocoder: teach its backbone what each frame's samples are, at a tenth of the cost, to begin with; "
        "for sound whose phases follow from its spectrum, as the synthesiser's.",
    )
    mel_noise: float = Field(default=0.03, description="vocoder, frames: most noise on spectra, in nats.", ge=0)
    mel_weight: float = Field(default=0.5, description="vocoder: weight of the log-mel distance.", ge=0)
    phase_weight: float = Field(
        default=0.0, description="vocoder: weight of phases, for sound whose phases follow from its spectrum.", ge=0
    )


class SavingSection(Section):
    """What is written, and when."""

    every_steps: int = Field(default=500, description="A state to go on from.", ge=1)
    keep: int = Field(default=2, description="So many of the newest states stay.", ge=1)
    export_every_steps: int | None = Field(
        default=None, description="A whole checkpoint (or adapter) now and then; null: only at the end.", ge=1
    )
    export_dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="Of trained weights in checkpoints; null: as they are trained, float32."
    )
    log_every_steps: int = Field(default=10, description="Metrics are averaged over so many steps.", ge=1)


class WorkersSection(Section):
    """The processes that train together."""

    count: int = Field(default=1, description="Each takes batches of its own, gradients are averaged.", ge=1)
    use_gpu: bool = Field(default=False, description="One GPU for each.")
    num_cpus: float = Field(default=1, description="CPUs that each reserves.", gt=0)
    threads: int | None = Field(
        default=None, description="Threads of each on a CPU; null: as many as it reserves CPUs.", ge=1
    )
    max_failures: int = Field(
        default=3, description="How often the training starts again from its newest state when a worker dies.", ge=0
    )


class ClusterSection(Section):
    """Which Ray the training runs on."""

    address: str | None = Field(
        default=None, description="Of a running cluster (auto, host:port); null: RAY_ADDRESS if set, else this machine."
    )
    runtime_env: dict[str, Any] | None = Field(
        default=None, description="Ray's runtime_env for the workers, such as {working_dir: .}."
    )


class TrainingConfig(FileConfig):
    """The config of `acestep train`."""

    part: Trained = Field(default="transformer", description="What is trained.")
    train_prompt_encoder: bool = Field(default=False, description="transformer: the prompt encoder learns along.")
    seed: int = Field(default=0, description="Of all that is drawn.", ge=0)
    start: StartSection = Field(default_factory=StartSection, description="What the training begins with.")
    data: DataSection = Field(default_factory=DataSection, description="What is learned from.")
    optimization: OptimizationConfig = Field(
        default=OptimizationConfig.model_validate({}), description="How the weights are changed."
    )
    autocast: bool = Field(default=False, description="Compute in bfloat16 where torch deems it safe.")
    gradient_checkpointing: bool = Field(
        default=False, description="transformer, lora: less memory for a third more time."
    )
    flow_matching: FlowMatchingConfig = Field(
        default=FlowMatchingConfig.model_validate({}), description="transformer, lora: what is taught."
    )
    repa: RepaSection = Field(default_factory=RepaSection, description="transformer: alignment with audio encoders.")
    lora: LoRAConfig = Field(default=LoRAConfig.model_validate({}), description="lora: what the adapter is made of.")
    codec: CodecSection = Field(default_factory=CodecSection, description="autoencoder, vocoder: losses.")
    saving: SavingSection = Field(default_factory=SavingSection, description="What is written, and when.")
    workers: WorkersSection = Field(default_factory=WorkersSection, description="The processes that train.")
    storage: StorageSection = Field(default_factory=StorageSection, description="How data and output are reached.")
    ray: ClusterSection = Field(default_factory=ClusterSection, description="Which Ray the training runs on.")

    @model_validator(mode="after")
    def _options_are_of_the_part(self) -> TrainingConfig:
        problems = []
        learns_from_songs = self.part in ("transformer", "lora")
        for name, value, parts in (
            ("train_prompt_encoder", self.train_prompt_encoder, ("transformer",)),
            ("repa.enabled", self.repa.enabled, ("transformer",)),
            ("start.lora", self.start.lora, ("lora",)),
            ("gradient_checkpointing", self.gradient_checkpointing, ("transformer", "lora")),
            ("data.audio", self.data.audio, ("autoencoder", "vocoder")),
            ("codec.frames", self.codec.frames, ("vocoder",)),
        ):
            if value and self.part not in parts:
                problems.append(Problem(name, value, f"it is for part {' or '.join(parts)}, not {self.part}"))
        if not learns_from_songs and not self.data.audio and self.data.batch_size % self.data.crops_per_piece:
            allowed = f"it must be a multiple of data.crops_per_piece, {self.data.crops_per_piece}"
            problems.append(Problem("data.batch_size", self.data.batch_size, allowed))
        if problems:
            raise ProblemsError(problems)
        return self

    def shown(self) -> dict[str, Any]:
        """The config as it may be written down: without the options that may hold secrets."""
        return self.model_dump(
            mode="json",
            exclude={"start": {"storage_options"}, "storage": {"storage_options"}, "ray": {"runtime_env"}},
        )
