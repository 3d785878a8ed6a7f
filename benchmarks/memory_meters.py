"""Meters of memory: counted on the meta device, measured on CUDA, read from the profiler on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from acestep.making import Stopwatch
from benchmarks.counted_memory import CountedMemory
from benchmarks.meta_networks import without_data


class Meter(Protocol):
    """Bytes beyond what was there when the meter was made."""

    def restart(self) -> None:
        """Begin another peak."""

    def read(self) -> tuple[int, int]:
        """The peak since `restart`, and what is held now."""


class CudaMeter:
    """What PyTorch's allocator has given out."""

    def __init__(self, device: torch.device):
        torch.cuda.empty_cache()
        self._device, self._before = device, torch.cuda.memory_allocated(device)

    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> tuple[int, int]:
        peak, held = torch.cuda.max_memory_allocated(self._device), torch.cuda.memory_allocated(self._device)
        return peak - self._before, held - self._before


class CpuMeter:
    """What the profiler saw PyTorch's allocator give out and take back: slow, for small cases."""

    def __init__(self) -> None:
        self._held = 0

    def restart(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.start()

    def read(self) -> tuple[int, int]:
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json")
            self._profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        found = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
        levels = list(accumulate((size for _, size in found), initial=self._held))
        self._held = levels[-1]
        return max(levels), self._held


class MemoryWatch(Stopwatch):
    """A stopwatch that also knows what memory each stage took."""

    def __init__(self, device: torch.device, meter: Meter):
        super().__init__(device)
        self.peaks: dict[str, int] = {}
        """Bytes at the peak of each stage."""
        self.kept: dict[str, int] = {}
        """Bytes that each stage left behind."""
        self._meter = meter

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._meter.restart()
        with super().__call__(stage):
            yield
        self.peaks[stage], self.kept[stage] = self._meter.read()


@contextmanager
def watching(device: torch.device) -> Iterator[MemoryWatch]:
    """Watch the stages of what runs on a device within this context."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        meter: Meter
        if device.type == "meta":
            stack.enter_context(without_data())
            meter = stack.enter_context(CountedMemory())
        else:
            meter = CudaMeter(device) if device.type == "cuda" else CpuMeter()
        yield MemoryWatch(device, meter)
