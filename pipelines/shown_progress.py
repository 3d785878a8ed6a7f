"""`ShownProgress`: how far counted work is: a bar at a terminal, a line every so often in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from pipelines.quantities import duration_text

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0


class ShownProgress:
    """Shows how much of `total` is done.

    Args:
        unit: what is counted, in the plural.
        done: before this run; not counted in its speed.
    """

    def __init__(self, total: int, unit: str, done: int = 0):
        self.total, self.unit, self.done = total, unit, done
        self._before = done
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit=unit.removesuffix("s"), dynamic_ncols=True, leave=False)

    def show(self, done: int, words: str = "") -> None:
        """So much is done by now; `words` say more."""
        self.done, now = done, time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._last_line >= LOG_SECONDS:
            logger.info("%s", self.line(words))
            self._last_line = now

    def line(self, words: str = "") -> str:
        """Where the work stands, in a few words."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        made = self.done - self._before
        left = duration_text((self.total - self.done) / made * seconds) + " left" if made else "time left unknown"
        more = f", {words}" if words else ""
        return f"{self.done:,} of {self.total:,} {self.unit}{more}, {made / seconds:.2f} {self.unit}/s, {left}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
