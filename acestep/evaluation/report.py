"""The whole evaluation of a model: what is made and judged, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from acestep.evaluation.checks import RoundTrip, Speed, repeatability, round_trip, speed
from acestep.evaluation.findings import Comparison, Share, agreement, compared
from acestep.evaluation.prompts import HeldOut, held_out
from acestep.evaluation.songs import Maker, Outcome, Song, Studio
from acestep.evaluation.task_checks import TaskChecks
from acestep.request import GenerationRequest

FEW_STEPS = 4
_MOST_COMPARED, _MOST_REPEATED, _MOST_TASKS, _MOST_ROUND_TRIPS = 24, 2, 10, 16
_UNGUIDED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is made, and how.

    Attributes:
        num_prompts: of the held-out ones, from the first on.
        steps: denoising steps.
        duration: seconds of a song.
        guidance_scale: as in `GenerationRequest`.
        tasks: whether the tasks are tried as well.
    """

    num_prompts: int = 100
    steps: int = 27
    duration: float = 12.0
    guidance_scale: float = float(GenerationRequest.model_fields["guidance_scale"].default)
    tasks: bool = False
    batch_size: int = 16

    @property
    def items(self) -> tuple[HeldOut, ...]:
        """The prompts."""
        return held_out()[: self.num_prompts]

    @property
    def compared(self) -> dict[str, tuple[str, float]]:
        """Settings that are also tried with less of them, and how much, by name in words."""
        settings = {"guidance scale": ("guidance_scale", _UNGUIDED), "steps": ("num_inference_steps", FEW_STEPS)}
        usual = {"guidance scale": self.guidance_scale, "steps": self.steps}
        return {name: less for name, less in settings.items() if usual[name] > less[1]}

    @property
    def total_steps(self) -> int:
        """Denoising steps of all songs that will be made."""
        num, again = len(self.items), min(_MOST_COMPARED, len(self.items))
        songs = num + 3 * min(_MOST_REPEATED, num) + 1
        songs += again * ("guidance scale" in self.compared)
        songs += TaskChecks.SONGS_PER_PROMPT * min(_MOST_TASKS, num) * self.tasks
        return songs * self.steps + again * FEW_STEPS * ("steps" in self.compared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        songs: of every prompt of the plan.
        shares: of the songs, and of what the model's settings and tasks do.
    """

    plan: Plan
    songs: list[Song]
    shares: list[Share]
    comparisons: list[Comparison]
    round_trip: RoundTrip | None
    speed: Speed | None

    @property
    def met(self) -> bool:
        """Whether every goal is reached."""
        return all(share.met is not False for share in self.shares) and all(found.met for found in self.comparisons)

    def row(self) -> dict[str, Any]:
        """For JSON; the songs are left out."""
        plan = self.plan
        return {
            "met": self.met,
            "prompts": len(plan.items),
            "steps": plan.steps,
            "duration": plan.duration,
            "guidance_scale": plan.guidance_scale,
            "shares": [share.row() for share in self.shares],
            "comparisons": [found.row() for found in self.comparisons],
            "round_trip": self.round_trip and self.round_trip.row(),
            "speed": self.speed and self.speed.row(),
        }


def evaluate(
    maker: Maker,
    plan: Plan,
    *,
    there_and_back: Callable[[np.ndarray], np.ndarray] | None = None,
    on_song: Callable[[Song, Outcome], object] = lambda song, outcome: None,
    advance: Callable[[int], object] = lambda steps: None,
) -> Report:
    """Make and judge everything.

    Args:
        there_and_back: a waveform `[2, W]` through the model's codec; None: that is left out.
        on_song: gets every song of the plan's prompts with its sound.
        advance: told of denoising steps done, `plan.total_steps` in all.

    Raises:
        InvalidRequestError: for a plan whose settings are out of range.
        DeviceError: when the device breaks.
    """
    items = plan.items
    settings = {
        "duration": plan.duration,
        "num_inference_steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
    }
    studio = Studio(maker, settings, plan.batch_size, advance)
    songs = studio.songs(items, on_song)
    shares = agreement(songs) + repeatability(studio, items[:_MOST_REPEATED], songs)
    comparisons = _comparisons(studio, plan, songs)
    if plan.tasks:
        shares += TaskChecks(studio, items[:_MOST_TASKS]).run()
    codec = there_and_back and round_trip(there_and_back, items[:_MOST_ROUND_TRIPS], plan.duration)
    return Report(
        plan=plan,
        songs=songs,
        shares=shares,
        comparisons=comparisons,
        round_trip=codec,
        speed=speed(studio, items[0], plan.steps),
    )


def _comparisons(studio: Studio, plan: Plan, songs: Sequence[Song]) -> list[Comparison]:
    """The first prompts again with no guidance, and with few steps."""
    items, usual = plan.items[:_MOST_COMPARED], songs[:_MOST_COMPARED]
    found = []
    for name, (field, less) in plan.compared.items():
        changes: dict[str, Any] = {field: less}
        more = getattr(usual[0].request, field)
        found.append(compared(name, (less, studio.songs(items, **changes)), (more, usual)))
    return found
