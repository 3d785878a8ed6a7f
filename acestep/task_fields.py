"""Which fields of a request belong to which task: what a task needs, may have, and takes when nothing is said."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from acestep.problems import Problem

if TYPE_CHECKING:
    from acestep.request import GenerationRequest

NEED_SOURCE = ("repaint", "extend", "edit", "audio2audio")
USE_VARIATION = ("retake", "repaint", "extend")

_OF_TASKS: dict[str, tuple[str, ...]] = {
    "source": NEED_SOURCE,
    "variance": USE_VARIATION,
    "variation_seed": USE_VARIATION,
    "repaint_start": ("repaint",),
    "repaint_end": ("repaint",),
    "extend_left": ("extend",),
    "extend_right": ("extend",),
    "target_prompt": ("edit",),
    "target_lyrics": ("edit",),
    "edit_n_min": ("edit",),
    "edit_n_max": ("edit",),
    "edit_n_avg": ("edit",),
    "reference_strength": ("audio2audio",),
}

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "retake": {"variance": 0.5},
    "repaint": {"variance": 1.0, "repaint_start": 0.0},
    "extend": {"variance": 1.0, "extend_left": 0.0, "extend_right": 0.0},
    "edit": {"edit_n_min": 0.0, "edit_n_max": 1.0, "edit_n_avg": 1},
    "audio2audio": {"reference_strength": 0.5},
}
"""What a task takes for a field that is None."""


def task_problems(request: GenerationRequest) -> list[Problem]:
    """What does not go together: fields of other tasks, and what a task lacks."""
    task, problems = request.task, []
    for name, tasks in _OF_TASKS.items():
        value = getattr(request, name)
        if value is not None and task not in tasks:
            problems.append(Problem(name, value, f"the task {task} has none; it belongs to {', '.join(tasks)}"))
    if task in NEED_SOURCE and not request.source:
        problems.append(
            Problem("source", request.source, f"the task {task} needs one, and it is missing: a path or URL")
        )
    if task == "repaint" and request.repaint_end is not None and request.repaint_end <= (request.repaint_start or 0):
        problems.append(Problem("repaint_end", request.repaint_end, "it must be behind repaint_start"))
    if task == "extend" and not (request.extend_left or request.extend_right):
        problems.append(Problem("extend_right", request.extend_right, "extend needs seconds to add, left or right"))
    if task == "edit":
        if request.target_prompt is None and request.target_lyrics is None:
            problems.append(Problem("target_prompt", None, "edit needs target_prompt or target_lyrics"))
        if (request.edit_n_min or 0.0) >= (1.0 if request.edit_n_max is None else request.edit_n_max):
            problems.append(Problem("edit_n_min", request.edit_n_min, "it must be below edit_n_max"))
    if request.oss_steps and task not in ("text2music", "retake"):
        problems.append(Problem("oss_steps", request.oss_steps, f"the task {task} has none"))
    return problems


def variance_of_alpha(alpha: float) -> float:
    """The `variance` that mixes noise in the proportion alpha : 1 - alpha, at equal loudness.

    An alpha of 1 is the same song (variance 0), 0.9 very similar (0.07), 0.5 half way (0.5), 0 another one (1).

    Raises:
        ValueError: for an alpha outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: {alpha!r} is not allowed; it must be 0 to 1")
    return math.atan2(1 - alpha, alpha) / (math.pi / 2)
