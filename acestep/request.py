"""`GenerationRequest`: one song asked for, validated and complete. The noun that flows through everything."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from acestep.errors import InvalidRequestError
from acestep.frames import num_latent_frames
from acestep.problems import Problem, ProblemsError, nearest, problems_of
from acestep.task_fields import TASK_DEFAULTS, USE_VARIATION, task_problems

MAX_SEED = 2**64 - 1
SOUND_VERSION = 1
"""Raised whenever the code changes what a request sounds like beyond rounding; part of every fingerprint."""

LANGUAGES = (
    *("en", "de", "fr", "es", "it", "pt", "pl", "tr", "ru"),
    *("cs", "nl", "ar", "zh", "ja", "hu", "ko", "hi"),
)
"""The languages that the lyric vocabulary has a token for."""

BESIDE_SOURCE = (
    *("source", "seed", "repaint_start", "repaint_end", "extend_left", "extend_right", "variance", "variation_seed"),
    *("target_prompt", "target_lyrics", "edit_n_min", "edit_n_max", "edit_n_avg", "reference_strength"),
)
"""What requests with a source have to agree in, to be no different in a pass."""

Unit = Annotated[float, Field(ge=0, le=1)]


class GenerationRequest(BaseModel):
    """One song: what to make and how. Every field but `prompt` has the default of the model's authors or ours.

    Arrow and numpy scalars are as good as Python's; `None` means the default. Validation reports every problem
    at once, see `GenerationRequest.parse`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str | None = Field(default=None, description="Name of the song in a catalog; free text.", max_length=512)
    prompt: str = Field(
        description="Tags or a sentence: style, instruments, mood, voice.", min_length=1, max_length=4096
    )
    lyrics: str = Field(
        default="", description="Lines with structure tags such as [verse]; empty: instrumental.", max_length=32_768
    )
    language: str = Field(default="auto", description="Language of the lyrics: a code, auto (whole song) or per-line.")
    normalize_tags: bool = Field(
        default=True, description="Read [Verse 2], [Chorus x2], (Bridge) as the tags that the model was trained on."
    )
    duration: float = Field(default=30.0, description="Length in seconds.", ge=1, le=240)
    seed: int | None = Field(
        default=None,
        description="Seed of the noise; none: drawn (a catalog derives it from the id).",
        ge=0,
        le=MAX_SEED,
    )
    num_inference_steps: int = Field(
        default=27, description="Denoising steps: 27 is fast, 40 balanced, 60 best.", ge=1, le=200
    )
    guidance_scale: float = Field(default=15.0, description="Strength of the guidance; 0 and 1: none.", ge=0, le=100)
    scheduler: Literal["euler", "heun", "pingpong"] = Field(default="euler", description="The stepper.")
    guidance: Literal["apg", "cfg", "cfg_star"] = Field(default="apg", description="The kind of guidance.")
    guidance_interval: Unit = Field(default=0.5, description="Share of the steps, in the middle, that are guided.")
    guidance_interval_decay: Unit = Field(
        default=0.0, description="How far the scale falls over the interval, towards min_guidance_scale."
    )
    min_guidance_scale: float = Field(default=3.0, description="Where a decaying scale ends.", ge=0, le=100)
    guidance_scale_text: float = Field(
        default=0.0, description="With guidance_scale_lyric, both above 1: prompt guided apart.", ge=0, le=100
    )
    guidance_scale_lyric: float = Field(
        default=0.0, description="With guidance_scale_text, both above 1: lyrics guided apart.", ge=0, le=100
    )
    oss_steps: tuple[Annotated[int, Field(ge=1, le=200)], ...] = Field(
        default=(),
        description="Which steps of a longer schedule to take, in rising order; replaces the number of steps.",
    )
    omega_scale: float = Field(
        default=10.0, description="Granularity: rescales each step about its mean.", ge=-100, le=100
    )
    use_erg_tag: bool = Field(default=True, description="Unguided branch sees a weakened prompt, not none.")
    use_erg_lyric: bool = Field(default=True, description="Unguided branch sees weakened lyrics, not none.")
    use_erg_diffusion: bool = Field(default=True, description="Unguided branch has weakened attention.")
    task: Literal["text2music", "retake", "repaint", "extend", "edit", "audio2audio"] = Field(
        default="text2music", description="What to make; all but the first two begin with a source."
    )
    source: str | None = Field(
        default=None, description="Path or URL of audio, or of latents kept from a song (.safetensors)."
    )
    variance: Unit | None = Field(
        default=None,
        description="retake, repaint, extend: how far to turn the noise; 0: the same song. None: 0.5, and 1 beside a "
        "source.",
    )
    variation_seed: int | None = Field(
        default=None, description="Seed of the other noise; none: derived from the seed.", ge=0, le=MAX_SEED
    )
    repaint_start: float | None = Field(
        default=None, description="repaint: seconds, begin of the new span.", ge=0, le=240
    )
    repaint_end: float | None = Field(
        default=None, description="repaint: seconds, its end; none: the end.", ge=0, le=240
    )
    extend_left: float | None = Field(
        default=None, description="extend: seconds to add before the source.", ge=0, le=239
    )
    extend_right: float | None = Field(default=None, description="extend: seconds to add behind it.", ge=0, le=239)
    target_prompt: str | None = Field(
        default=None,
        description="edit: what to make of the source; none: `prompt` stays.",
        min_length=1,
        max_length=4096,
    )
    target_lyrics: str | None = Field(
        default=None, description="edit: the lyrics to sing; none: `lyrics` stay.", max_length=32_768
    )
    edit_n_min: Unit | None = Field(default=None, description="edit: share of the steps that are left out. None: 0.")
    edit_n_max: Unit | None = Field(
        default=None, description="edit: share after which the target is sampled freely. None: 1."
    )
    edit_n_avg: int | None = Field(default=None, description="edit: draws averaged a step. None: 1.", ge=1, le=16)
    reference_strength: Unit | None = Field(
        default=None, description="audio2audio: how much of the source stays. None: 0.5."
    )
    lora: str | None = Field(default=None, description="Adapter: a folder, file, hub id or URL.", min_length=1)
    lora_weight: float = Field(default=1.0, description="Strength of the adapter; 1: as trained.", ge=-10, le=10)
    sample_rate: Literal[44100, 48000] = Field(default=44100, description="Hz; 44,100 is what the model makes.")

    resampler: Literal["kaiser", "upstream"] = Field(
        default="kaiser", description="Kernel for 48,000 Hz; upstream: the original's, bit for bit."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        """Arrow and numpy scalars become Python's."""
        if hasattr(value, "as_py"):
            value = value.as_py()
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            value = value.item()
        return value

    @field_validator("lyrics", mode="before")
    @classmethod
    def _no_lyrics(cls, value: Any) -> Any:
        return "" if value is None else value

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it must say something: tags or a sentence")
        return value

    @field_validator("seed", mode="before")
    @classmethod
    def _seed_is_a_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(f"it must be a whole number from 0 to {MAX_SEED}")
        return value

    @field_validator("oss_steps", mode="before")
    @classmethod
    def _listed_steps(cls, value: Any) -> Any:
        """The original takes "16,29,52"; a list is as good."""
        if isinstance(value, str):
            return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
        return value.tolist() if hasattr(value, "tolist") else value

    @field_validator("oss_steps")
    @classmethod
    def _rising_steps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in itertools.pairwise(value)):
            raise ValueError("it must rise from step to step")
        return value

    @field_validator("language")
    @classmethod
    def _known_language(cls, value: str) -> str:
        allowed = ("auto", "per-line", *LANGUAGES)
        if value not in allowed:
            hint = nearest(value, allowed)
            raise ValueError(f"allowed: {', '.join(allowed)}" + (f"; {hint}" if hint else ""))
        return value

    @model_validator(mode="after")
    def _task_fits(self) -> GenerationRequest:
        if problems := task_problems(self):
            raise ProblemsError(problems)
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> GenerationRequest:
        """A request from plain values; `None` means the default.

        Raises:
            InvalidRequestError: with every problem of every field.
        """
        try:
            return cls.model_validate({name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            raise InvalidRequestError(problems_of(error, cls)) from None

    @property
    def num_frames(self) -> int:
        """Latent frames T: the cost of the request."""
        return num_latent_frames(self.duration)

    @property
    def is_guided(self) -> bool:
        """Whether any guidance happens at all."""
        return self.guidance_scale not in (0.0, 1.0) and self.guidance_interval > 0

    @property
    def is_double(self) -> bool:
        """Whether prompt and lyrics are guided apart (double condition)."""
        return self.is_guided and self.guidance_scale_text > 1 and self.guidance_scale_lyric > 1

    @property
    def num_steps(self) -> int:
        """Denoising steps really taken."""
        return len(self.oss_steps) or self.num_inference_steps

    def batch_key(self) -> tuple:
        """Requests with equal keys may share a pass; scales, lengths, texts and seeds may differ within it."""
        return (
            *(self.num_inference_steps, self.oss_steps, self.scheduler, self.guidance, self.guidance_interval),
            *(self.is_guided, self.is_double),
            *(self.use_erg_tag, self.use_erg_lyric, self.use_erg_diffusion, self.sample_rate),
            *((self.lora, self.lora_weight) if self.lora is not None else ()),
            self.task,
            # A source has a length of its own, and a span or a target: such a request goes alone.
            *((getattr(self, name) for name in BESIDE_SOURCE) if self.source is not None else ()),
        )

    def resolved(self) -> GenerationRequest:
        """The same request with the defaults of its task filled in; its seed must be there.

        A request that leaves a task's field open and one that spells its default out are one sound.
        """
        assert self.seed is not None, "resolve the seed first"
        filled = {
            name: value for name, value in TASK_DEFAULTS.get(self.task, {}).items() if getattr(self, name) is None
        }
        if self.task in USE_VARIATION and self.variation_seed is None:
            filled["variation_seed"] = derived_seed("variation", self.seed)
        return self.model_copy(update=filled) if filled else self

    def settings(self) -> dict[str, Any]:
        """Every resolved field that changes the sound: all but `id`."""
        return self.model_dump(exclude={"id"})

    def fingerprint(self, model: str, rendition: str = "", adapter: str = "") -> str:
        """16 hex digits that name the sound: settings, code version, and the fingerprints of what makes and writes it.

        Args:
            model: fingerprint of the checkpoint.
            rendition: the file format with its settings.
            adapter: fingerprint of the content of `lora`.

        Raises:
            InvalidRequestError: when the seed is still open, for then the sound is too.
        """
        if self.seed is None:
            raise InvalidRequestError([Problem("seed", None, "a fingerprint needs one")])
        what = {
            "sound": SOUND_VERSION,
            "model": model,
            "rendition": rendition,
            "adapter": adapter,
            **self.resolved().settings(),
        }
        text = json.dumps(what, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def derived_seed(*parts: str | int) -> int:
    """A seed that depends on `parts` alone, so that a run without seeds can be repeated."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big")
