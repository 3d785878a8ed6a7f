"""`Holder`: who holds the lease of an output, as `lease.json` says, and whether its process can still be alive."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that holds a lease, or claims it."""

    run: str
    host: str
    machine: str
    """Tells process ids apart that mean different processes: of another boot, or another container."""
    pid: int
    started: str
    """When the process started, in the system's own ticks; empty where that is not known."""
    token: str
    """Drawn for each lease."""
    beat: int
    """Counts up while the holder lives; 0: it is a claim, not yet a lease."""
    time: str
    """Of the last beat, by the holder's clock."""
    heartbeat_seconds: float
    stale_seconds: float

    @classmethod
    def here(cls, run: str, heartbeat_seconds: float, stale_seconds: float) -> Holder:
        """This process."""
        pid = os.getpid()
        return cls(
            run=run,
            host=socket.gethostname(),
            machine=_machine(),
            pid=pid,
            started=_start_of(pid) or "",
            token="",
            beat=0,
            time="",
            heartbeat_seconds=heartbeat_seconds,
            stale_seconds=stale_seconds,
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder:
        """From the bytes of `lease.json`; what cannot be read is a holder without a name."""
        unknown = cls("unknown", "unknown", "", 0, "", hashlib.sha256(data).hexdigest(), 1, "", 5.0, 30.0)
        try:
            values = json.loads(data)
            known = {each.name: type(getattr(unknown, each.name))(values[each.name]) for each in fields(cls)}
            return cls(**known)
        except (ValueError, KeyError, TypeError):
            return unknown

    def text(self) -> str:
        """For `lease.json`."""
        return json.dumps(asdict(self), indent=2)

    @property
    def name(self) -> str:
        """For people."""
        return f"run {self.run} on host {self.host} (pid {self.pid})"

    @property
    def is_claim(self) -> bool:
        """Whether it waits to see if it may hold the lease."""
        return self.beat == 0

    def age(self) -> float:
        """Seconds since the last beat, if our clock and the holder's agree; 0 where no time is told."""
        try:
            beaten = datetime.fromisoformat(self.time)
        except ValueError:
            return 0.0
        if beaten.tzinfo is None:
            beaten = beaten.replace(tzinfo=timezone.utc)
        return (datetime.now(timezone.utc) - beaten).total_seconds()

    def same_beat(self, other: Holder) -> bool:
        """Whether nothing was said in between."""
        return (self.token, self.beat) == (other.token, other.beat)

    def is_gone(self) -> bool:
        """Whether it is sure that the process is no more: it ran on this machine, and here is no such process."""
        if not self.machine or self.machine != _machine():
            return False
        started = _start_of(self.pid)
        return started is None or (bool(self.started) and started != self.started)


def _machine() -> str:
    """This boot of this machine and its space of process ids; only the host's name where that is not told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_of(pid: int) -> str | None:
    """When a process started; empty when that is not known, None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return ""
    else:
        state, *numbers = stat.rpartition(")")[2].split()  # The name before it may hold anything.
        return None if state in "ZX" else numbers[18]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    return ""
