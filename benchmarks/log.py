"""Append a table to `benchmarks/LOG.md`, with what is needed to get it again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

LOG = Path(__file__).with_name("LOG.md")


def append_to_log(title: str, hardware: str, lines: Sequence[str]) -> None:
    """Write date, commit, hardware, the command that is running, and its table."""
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    module = Path(sys.argv[0]).stem
    command = " ".join(["python -m", f"benchmarks.{module}", *(each for each in sys.argv[1:] if each != "--log")])
    entry = [f"## {day}, {_commit()}, {hardware}: {title}", "", f"`{command}`", "", "```", *lines, "```"]
    text = LOG.read_text(encoding="utf-8").rstrip()
    LOG.write_text("\n".join([text, "", *entry]) + "\n", encoding="utf-8")


def _commit() -> str:
    words = ["git", "-C", str(LOG.parent), "describe", "--always", "--dirty"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no commit"
