"""`RunConfig`: everything that a job can be told, from YAML and `--set a.b=c`.

Each option and its default stands in `configs/tiny.yaml` too, with the same words.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from acestep.problems import ProblemsError
from acestep.request import MAX_SEED
from pipelines.engine_config import EngineConfig
from pipelines.sections import (
    BestOfSection,
    BudgetSection,
    CommitSection,
    LeaseSection,
    PlanSection,
    PreflightSection,
    StoppingSection,
)
from pipelines.variants import sweep_problems


class RunConfig(EngineConfig):
    """A job's config; every field has a default, so an empty one makes noise with the tiny checkpoint."""

    seed: int = Field(default=0, description="Songs without a seed get one from this and their id.", ge=0, le=MAX_SEED)
    num_songs: int = Field(
        default=1, description="Songs of each row, each with a seed of its own; a row's num_songs goes before it.", ge=1
    )
    sweep: dict[str, list[Any]] = Field(
        default_factory=dict, description="Settings with lists of values: every row is made with each combination."
    )
    preflight: PreflightSection = Field(default_factory=PreflightSection, description="What rows are checked for.")
    budget: BudgetSection = Field(default_factory=BudgetSection, description="What the job may cost.")
    best_of: BestOfSection = Field(default_factory=BestOfSection, description="Candidates for each song.")
    plan: PlanSection = Field(default_factory=PlanSection, description="How the plan is written down.")
    commit: CommitSection = Field(default_factory=CommitSection, description="When songs become rows.")
    stopping: StoppingSection = Field(default_factory=StoppingSection, description="How a run ends early.")
    lease: LeaseSection = Field(default_factory=LeaseSection, description="One run at a time.")

    @model_validator(mode="after")
    def _sweep_is_of_settings(self) -> RunConfig:
        if problems := sweep_problems(self.sweep, self.defaults):
            raise ProblemsError(problems)
        return self

    @field_validator("best_of", mode="before")
    @classmethod
    def _number_of_candidates(cls, value: Any) -> Any:
        return {"candidates": value} if isinstance(value, int) else value

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
