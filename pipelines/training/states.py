"""`TrainingStates`: the states of a training in its output, the newest of which it goes on from."""

from __future__ import annotations

import logging
from typing import Any

import torch

from acestep.training.trainer import Trainer
from pipelines.errors import OutputError, StorageError
from pipelines.storage import Storage
from pipelines.training_data.layout import STATES, state_key, state_step

logger = logging.getLogger(__name__)


class TrainingStates:
    """States as files of whole steps; the oldest go when there are more than `keep`."""

    def __init__(self, output: Storage, keep: int):
        self._output, self._keep = output, keep

    def save(self, trainer: Trainer) -> None:
        """Write the state as it is now; it appears whole or not at all.

        Raises:
            StorageError: when it cannot be written.
        """
        with self._output.whole_file(state_key(trainer.step)) as path:
            torch.save(trainer.state_dict(), path)
        self._output.delete(self.keys()[: -self._keep])

    def keys(self) -> list[str]:
        """The states that there are, oldest first."""
        return self._output.keys(STATES, ".pt")

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest state that can be read, and its step; None where there is none."""
        for key in reversed(self.keys()):
            try:
                with self._output.local_copy(key) as path:
                    return state_step(key), torch.load(path, map_location="cpu", weights_only=True)
            except (StorageError, FileNotFoundError):
                raise
            except Exception as error:  # Whatever torch raises for a file that is cut short or damaged.
                logger.warning("the state %s cannot be read (%s); looking for an older one", key, error)
        return None

    def resume(self, trainer: Trainer) -> bool:
        """Go on from the newest state, if there is one.

        Raises:
            OutputError: when it is of another training.
        """
        found = self.newest()
        if found is None:
            return False
        step, state = found
        try:
            trainer.load_state_dict(state)
        except ValueError as error:
            raise OutputError(f"output {self._output.url}: {error}; use another output") from error
        assert trainer.step == step, "states are named after their step"
        logger.info("going on from step %d", step)
        return True
