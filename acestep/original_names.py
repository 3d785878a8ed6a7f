"""The original's argument names, and ours for the same thing."""

from __future__ import annotations

import warnings
from typing import Any

from acestep.errors import InvalidRequestError
from acestep.problems import Problem

OURS = {
    "audio_duration": "duration",
    "infer_step": "num_inference_steps",
    "infer_steps": "num_inference_steps",
    "scheduler_type": "scheduler",
    "cfg_type": "guidance",
    "manual_seeds": "seed",
    "retake_seeds": "variation_seed",
    "retake_variance": "variance",
    "src_audio_path": "source",
    "ref_audio_input": "source",
    "ref_audio_strength": "reference_strength",
    "edit_target_prompt": "target_prompt",
    "edit_target_lyrics": "target_lyrics",
    "lora_name_or_path": "lora",
}
"""Names that mean the same; those that are alike in both are not listed."""


def translated(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` under our names; each of the original's is pointed out with a DeprecationWarning.

    Raises:
        InvalidRequestError: where both names of one thing are given.
    """
    ours: dict[str, Any] = {}
    for name, value in settings.items():
        known = OURS.get(name, name)
        if known in ours or (known != name and known in settings):
            raise InvalidRequestError([Problem(name, value, f"{known} says the same; give one of them")])
        if known != name:
            warnings.warn(f"{name} is called {known} here", DeprecationWarning, stacklevel=3)
        ours[known] = value
    return ours
