"""`DrainSwitch`: tells all stages of a running job to finish what they have begun and begin nothing more."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0


class _Switch:
    """The actor that holds the one bit."""

    def __init__(self) -> None:
        self._on = False

    def turn_on(self) -> None:
        self._on = True

    def is_on(self) -> bool:
        return self._on


class DrainSwitch:
    """A bit that every process of the job can look at; Ray must be connected. Safe to send to other processes.

    A call costs about a millisecond, once for each batch.
    """

    def __init__(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Switch).remote()

    def turn_on(self) -> None:
        """From now on nothing new begins."""
        import ray

        ray.get(self._actor.turn_on.remote(), timeout=_ANSWER_SECONDS)

    def __call__(self) -> bool:
        """Whether the job is to end."""
        import ray

        try:
            return ray.get(self._actor.is_on.remote(), timeout=_ANSWER_SECONDS)
        except Exception as error:  # Its node may be gone; then there is nobody to ask, and work goes on.
            logger.warning("the drain switch does not answer: %s", error)
            return False
