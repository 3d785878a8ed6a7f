"""Leaving: songs that nobody wants any more go out of a running batch, between two steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch

from acestep.errors import CancelledError

Cancelled = Callable[[], Collection[int]]
"""Which songs nobody wants any more, by the names that their caller gave them."""


class Company:
    """The songs of a batch that are still wanted. Who leaves does not come back.

    Args:
        members: a name for each row of the batch.
        cancelled: asked who is not wanted any more; None: everybody stays.
    """

    def __init__(self, members: Iterable[int], cancelled: Cancelled | None = None):
        self.members = list(members)
        """Who is here, in the order of the rows."""
        self.left: dict[int, str] = {}
        """Who is not, and what is to be said of it."""
        self._cancelled = cancelled
        self._when = "before it began"

    def after_step(self, done: int, total: int) -> list[int] | None:
        """`ask`, now that `done` steps of `total` are over."""
        self._when = f"at step {done} of {total}"
        return self.ask()

    def ask(self) -> list[int] | None:
        """Let go of whoever is not wanted any more.

        Returns:
            The rows that stay, of those that there were before; None: all of them.

        Raises:
            CancelledError: when nobody stays.
        """
        unwanted = self._cancelled() if self._cancelled is not None else ()
        if not unwanted:
            return None
        rows = [row for row, member in enumerate(self.members) if member not in unwanted]
        if len(rows) == len(self.members):
            return None
        staying = [self.members[row] for row in rows]
        message = f"cancelled {self._when}"
        self.left |= {member: message for member in self.members if member not in staying}
        self.members = staying
        if not staying:
            raise CancelledError(message)
        return rows


class Remainder:
    """What goes on of a batch of several songs, applied to all that its run remembers.

    Args:
        rows: of the songs that stay, rising.
        num_frames: of the longest of them.
        device: where the batch is.
    """

    def __init__(self, rows: Sequence[int], num_frames: int, device: torch.device):
        self.rows = rows
        self.num_frames = num_frames
        self.index = torch.tensor(rows, device=device)

    def __call__(self, batched: torch.Tensor) -> torch.Tensor:
        """`[B, ..., T]` -> `[len(rows), ..., num_frames]`; what has one row or one frame has it for all of them."""
        batched = batched[..., : self.num_frames]
        return batched if len(batched) == 1 else batched[self.index]
