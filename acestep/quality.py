"""What is wrong with a finished song, measured on its samples; needs no torch and no network."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class QualityLimits(BaseModel):
    """Where a song fails. Levels are measured as the model made it, before any loudness target."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    silence_dbfs: float = Field(default=-60.0, description="Level under which a moment is silent.", le=0)
    max_silence_share: float = Field(default=0.5, description="Of the song.", ge=0, le=1)
    max_leading_silence: float = Field(default=5.0, description="Seconds.", ge=0)
    max_trailing_silence: float = Field(default=10.0, description="Seconds.", ge=0)
    max_clipping_share: float = Field(default=0.01, description="Share of samples at full scale.", ge=0, le=1)
    max_dc: float = Field(default=0.05, description="Mean of a channel, full scale is 1.", ge=0, le=1)
    max_imbalance_db: float = Field(default=20.0, description="Difference in level between the channels.", ge=0)
    min_lufs: float = Field(default=-50.0, description="Integrated loudness, as the model made it.", le=0)
    max_lufs: float = Field(default=0.0, description="The same, upwards.", le=30)
    max_similarity: float = Field(default=0.98, description="To another song of the same row, 1: the same.", gt=0, le=1)
