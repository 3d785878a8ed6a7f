"""Where does the time of a batch go: which stage, which kernel? Random weights of the published sizes.

    python -m benchmarks.profile --device cuda --batch 8 --seconds 240 --picture profile.svg --trace trace.json
    python -m benchmarks.profile --blocks 2 --seconds 10 --steps 8 --picture docs/profile_cpu.svg     # a laptop

A batch is made as an engine makes it, once unseen (on a CPU a short one) and once under torch.profiler. On CUDA the
kernels are the GPU's; on a CPU they are torch's operations, each without those that it calls. `between` is time in
which none of them ran: there the device waited. A trace opens in https://ui.perfetto.dev or chrome://tracing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from acestep.device import best_device, best_dtype, device_name, dtype_name, parse_dtype
from acestep.making import Prepared, Stopwatch, make_batch
from acestep.networks import Networks
from acestep.request import GenerationRequest
from acestep.sampling.leaving import Company
from acestep.tokens import Tokens
from benchmarks.log import append_to_log
from benchmarks.random_networks import random_networks
from benchmarks.timeline import Lane, Span, draw_timeline

LYRIC_TOKENS, PROMPT_TOKENS = 500, 99
STAGE = "stage "
LANES = 9


class MarkedStopwatch(Stopwatch):
    """A stopwatch that marks its stages for the profiler."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        with record_function(STAGE + stage), super().__call__(stage):
            yield


@dataclass(slots=True)
class Kernel:
    """All calls of one kernel."""

    calls: int = 0
    spans: list[Span] = field(default_factory=list)
    ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By stage."""

    @property
    def total(self) -> float:
        """In all stages, ms."""
        return sum(self.ms.values())


@dataclass(frozen=True, slots=True)
class Profile:
    """What the profiler saw."""

    stages: list[Span]
    kernels: dict[str, Kernel]

    @classmethod
    def of(cls, profiler: profile, device: torch.device) -> Profile:
        """Read a profiler that has stopped."""
        events = profiler.events() or []
        stages = sorted(
            (
                Span(event.name.removeprefix(STAGE), event.time_range.start / 1000, event.time_range.end / 1000)
                for event in events
                if event.name.startswith(STAGE) and event.device_type == DeviceType.CPU
            ),
            key=lambda span: span.start,
        )
        on_gpu, kernels = device.type == "cuda", defaultdict[str, Kernel](Kernel)
        for event in events:
            if event.is_user_annotation or (event.device_type == DeviceType.CPU) == on_gpu:
                continue
            began = event.time_range.start / 1000
            stage = next((stage.name for stage in stages if stage.start <= began < stage.stop), None)
            if stage is not None:
                kernel = kernels[short(event.name)]
                spans = own_spans(event)
                kernel.calls += 1
                kernel.spans += spans
                kernel.ms[stage] += sum(span.ms for span in spans)
        busiest = sorted(kernels.items(), key=lambda item: -item[1].total)
        return cls(stages, dict(busiest))

    @property
    def total(self) -> float:
        """All stages, ms."""
        return sum(stage.ms for stage in self.stages)

    def table(self, rows: int) -> list[str]:
        """The busiest kernels, a line each, in ms by stage."""
        names = [stage.name for stage in self.stages]
        walls = {stage.name: stage.ms for stage in self.stages}
        lines = [f"{'ms':52} {'calls':>7} {'all':>10} {'share':>7}" + "".join(f" {name:>10}" for name in names)]

        def line(name: str, calls: int | None, ms: dict[str, float]) -> None:
            total = sum(ms.values())
            by_stage = "".join(f" {ms.get(stage, 0.0):10.1f}" for stage in names)
            count = "" if calls is None else f"{calls:,}"
            lines.append(f"{name[:52]:52} {count:>7} {total:10.1f} {total / self.total:7.1%}{by_stage}")

        items = list(self.kernels.items())
        for name, kernel in items[:rows]:
            line(name, kernel.calls, kernel.ms)
        rest = [kernel for _, kernel in items[rows:]]
        line(f"{len(rest)} others", sum(kernel.calls for kernel in rest), _sums(rest, names))
        busy = _sums([kernel for _, kernel in items], names)
        line("between", None, {name: max(0.0, walls[name] - busy[name]) for name in names})
        line("stages", None, walls)
        return lines

    def picture(self, title: str) -> str:
        """The timeline, as SVG."""
        lanes = [
            Lane(name, f"{kernel.total / self.total:.1%}, {kernel.calls:,} calls", kernel.spans)
            for name, kernel in list(self.kernels.items())[:LANES]
        ]
        return draw_timeline(title, self.stages, lanes)


def _sums(kernels: Sequence[Kernel], stages: Sequence[str]) -> dict[str, float]:
    return {stage: sum(kernel.ms.get(stage, 0.0) for kernel in kernels) for stage in stages}


def own_spans(event: FunctionEvent) -> list[Span]:
    """When an event ran but nothing that it called did; a GPU's kernels call nothing."""
    spans, reached = [], event.time_range.start
    for child in sorted(event.cpu_children, key=lambda child: child.time_range.start):
        spans.append((reached, child.time_range.start))
        reached = max(reached, child.time_range.end)
    spans.append((reached, event.time_range.end))
    return [Span(event.name, start / 1000, stop / 1000) for start, stop in spans if stop > start]


def short(name: str) -> str:
    """A kernel's name without what C++ puts around it."""
    name = re.sub(r"\(anonymous namespace\)::|\b(?:at|native|c10|cuda|std)::|^void |^aten::", "", name)
    return name.split("(")[0].strip() or name


def make(networks: Networks, batch: int, seconds: float, steps: int, stopwatch: Stopwatch) -> None:
    """Songs of one length, as an engine makes them."""
    items = {}
    for number in range(batch):
        request = GenerationRequest(prompt="x", duration=seconds, seed=number, num_inference_steps=steps).resolved()
        generator = torch.Generator().manual_seed(number)
        ids = (torch.randint(10, 5000, (count,), generator=generator) for count in (PROMPT_TOKENS, LYRIC_TOKENS))
        prompt, lyrics = (tuple(row.tolist()) for row in ids)
        items[number] = Prepared(request, Tokens(prompt_ids=prompt, lyric_ids=lyrics))
    with torch.inference_mode():
        make_batch(networks, items, Company(items), stopwatch, lambda done, total: None, True)


@click.command()
@click.option("--device", help="[default: the best there is]")
@click.option("--dtype", help="[default: bfloat16 on CUDA, float32 elsewhere]")
@click.option("--blocks", default=24, show_default=True, help="Of the transformer.")
@click.option("--batch", default=1, show_default=True)
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--steps", default=8, show_default=True)
@click.option("--compile/--no-compile", "torch_compile", default=False, show_default=True)
@click.option("--rows", default=24, show_default=True, help="Kernels in the table.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw a timeline: an SVG file.")
@click.option("--trace", type=click.Path(path_type=Path), help="Keep the trace: a JSON file.")
@click.option("--log", is_flag=True, help="Append the table to benchmarks/LOG.md.")
def main(
    device: str | None,
    dtype: str | None,
    blocks: int,
    batch: int,
    seconds: float,
    steps: int,
    torch_compile: bool,
    rows: int,
    picture: Path | None,
    trace: Path | None,
    log: bool,
) -> None:
    """Profile, print, draw, and log if asked."""
    place = best_device(device)
    kind = best_dtype(place) if dtype is None else parse_dtype(dtype)
    networks = random_networks(place, kind, blocks, torch_compile=torch_compile)
    # A GPU chooses its kernels for the sizes that it meets; a CPU has only to have begun.
    make(networks, batch, seconds if place.type == "cuda" else 1.0, steps, Stopwatch(place))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (place.type == "cuda")
    with profile(activities=activities) as profiler:
        make(networks, batch, seconds, steps, MarkedStopwatch(place))
    found = Profile.of(profiler, place)
    songs = f"{batch} song{'s' if batch > 1 else ''} of {seconds:g} s in {steps} steps"
    how = f"{blocks} blocks, {dtype_name(kind)}{', compiled' if torch_compile else ''}, {device_name(place)}"
    lines = found.table(rows)
    print("\n".join([f"{songs}; {how}", *lines]))
    if picture is not None:
        picture.write_text(found.picture(f"{songs}: {how}"), encoding="utf-8")
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    if log:
        append_to_log(f"the time of {songs}", f"{how}, torch {torch.__version__}", lines)


if __name__ == "__main__":
    main()
