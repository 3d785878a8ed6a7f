"""ACE-Step v1: text tags and lyrics in, stereo music out.

    from acestep import ACEStepPipeline
    pipe = ACEStepPipeline.from_pretrained("tiny")
    pipe(prompt="lo-fi hip-hop", duration=10, seed=42).save("song.mp3")

Axes in shapes throughout: B batch, C latent channels, F latent mel bins, T latent frames, N condition tokens,
S prompt tokens, L lyric tokens, H heads, D head width, M mel bins, W samples.

Importing this package is cheap: torch is loaded with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acestep.engine import Engine
    from acestep.errors import ACEStepError, CheckpointError, InvalidRequestError
    from acestep.pipeline import ACEStepPipeline
    from acestep.request import GenerationRequest
    from acestep.result import GenerationFailure, GenerationResult

__version__ = "0.1.0"

_HOMES = {
    "ACEStepError": "errors",
    "ACEStepPipeline": "pipeline",
    "CheckpointError": "errors",
    "Engine": "engine",
    "GenerationFailure": "result",
    "GenerationRequest": "request",
    "GenerationResult": "result",
    "InvalidRequestError": "errors",
}

__all__ = [
    "ACEStepError",
    "ACEStepPipeline",
    "CheckpointError",
    "Engine",
    "GenerationFailure",
    "GenerationRequest",
    "GenerationResult",
    "InvalidRequestError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'acestep' has no attribute {name!r}")
    return getattr(importlib.import_module(f"acestep.{_HOMES[name]}"), name)
