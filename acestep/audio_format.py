"""`AudioFormat`: which file to write, with the settings that this kind of file has and no others."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from acestep.errors import AudioFormatError
from acestep.problems import nearest, problems_of

MP3_BITRATES = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320)


@dataclass(frozen=True, slots=True)
class Kind:
    """What one format is called elsewhere, and its settings with their defaults and allowed values."""

    media_type: str
    defaults: dict[str, Any]
    allowed: dict[str, tuple[int, ...]] = field(default_factory=dict)


KINDS = {
    "wav": Kind("audio/wav", {"bit_depth": 16}, {"bit_depth": (16, 24, 32)}),
    "flac": Kind("audio/flac", {"bit_depth": 16}, {"bit_depth": (16, 24)}),
    "mp3": Kind("audio/mpeg", {"bitrate_kbps": 320}, {"bitrate_kbps": MP3_BITRATES}),
    "ogg": Kind("audio/ogg", {"quality": 0.7}),
    "opus": Kind("audio/ogg; codecs=opus", {"quality": 0.4}),
}


class AudioFormat(BaseModel):
    """A file format and its settings; those left open get the format's default, those it lacks are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    format: Literal["wav", "flac", "mp3", "ogg", "opus"] = Field(description="Kind of file; ogg is Vorbis.")
    bit_depth: int | None = Field(default=None, description="wav: 16, 24 or 32 (float); flac: 16 or 24. Default 16.")
    bitrate_kbps: int | None = Field(default=None, description="mp3, constant: 64 to 320 kbit/s. Default 320.")
    quality: float | None = Field(
        default=None, description="ogg, opus: 0 (smallest) to 1. Default about 220 to 250 kbit/s.", ge=0, le=1
    )

    @field_validator("bit_depth", "bitrate_kbps", "quality", mode="before")
    @classmethod
    def _belongs_to_the_format(cls, value: Any, info: ValidationInfo) -> Any:
        kind = KINDS.get(info.data.get("format", ""))
        if kind is None:  # The format itself was refused.
            return value
        assert info.field_name is not None
        if value is None:
            return kind.defaults.get(info.field_name)
        if info.field_name not in kind.defaults:
            raise ValueError(f"{info.data['format']} has no such setting; it has {', '.join(kind.defaults)}")
        return value

    @field_validator("bit_depth", "bitrate_kbps")
    @classmethod
    def _is_allowed(cls, value: int | None, info: ValidationInfo) -> int | None:
        kind = KINDS.get(info.data.get("format", ""))
        allowed = kind.allowed.get(info.field_name or "") if kind else None
        if value is not None and allowed and value not in allowed:
            raise ValueError(f"allowed for {info.data['format']}: {', '.join(map(str, allowed))}")
        return value

    @classmethod
    def parse(cls, **values: Any) -> AudioFormat:
        """An `AudioFormat` from plain values.

        Raises:
            AudioFormatError: with every problem of every field.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise AudioFormatError("; ".join(str(problem) for problem in problems_of(error, cls))) from None

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], **options: Any) -> AudioFormat:
        """The format that the extension of a path or URL names, in either case; `options` are the other fields.

        Raises:
            AudioFormatError: for an unknown extension, or an option that the format does not have.
        """
        extension = os.path.splitext(os.fspath(path))[1].lower()
        if "format" not in options and extension.removeprefix(".") not in KINDS:
            known = [f".{name}" for name in KINDS]
            hint = nearest(extension, known) if extension else ""
            known_text = f"the extension must be one of {', '.join(known)}"
            raise AudioFormatError(f"{os.fspath(path)!r}: " + known_text + (f"; {hint}" if hint else ""))
        return cls.parse(**{"format": extension.removeprefix("."), **options})

    @property
    def extension(self) -> str:
        """With its dot: `.mp3`."""
        return f".{self.format}"

    @property
    def media_type(self) -> str:
        """For a `Content-Type` header."""
        return KINDS[self.format].media_type

    @property
    def rendition(self) -> str:
        """The format and its settings in one word, such as `mp3-320`: equal for files that sound the same."""
        return f"{self.format}-{getattr(self, next(iter(KINDS[self.format].defaults)))}"

    def soundfile_options(self) -> dict[str, Any]:
        """Arguments of `soundfile.SoundFile` for writing it."""
        if self.format == "mp3":
            assert self.bitrate_kbps is not None
            # libsndfile spreads 320..32 kbit/s over levels 0..1 and takes the nearest bitrate that MP3 has.
            level = (320 - self.bitrate_kbps) / 288
            return {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": level}
        if self.format in ("ogg", "opus"):
            assert self.quality is not None
            subtype = "VORBIS" if self.format == "ogg" else "OPUS"
            return {"format": "OGG", "subtype": subtype, "compression_level": 1 - self.quality}
        subtype = "FLOAT" if self.bit_depth == 32 else f"PCM_{self.bit_depth}"
        return {"format": self.format.upper(), "subtype": subtype}
