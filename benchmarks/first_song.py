"""What a fresh process does until its first song, stage by stage: `benchmarks.startup` starts it and reads its JSON."""

from __future__ import annotations

import time

BEGAN = time.time()

import json  # noqa: E402  # Only now: importing counts.
import logging  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any  # noqa: E402


class Stages:
    """Seconds of each stage by its name: on the clock, and of this process's CPU.

    What goes on within a stage and is one itself counts there only.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}
        self.settle: Callable[[], object] = lambda: None
        """Called at the end of a stage: waits for what the device was given."""
        self._within = [(0.0, 0.0)]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        clock, cpu = time.perf_counter(), time.process_time()
        self._within.append((0.0, 0.0))
        yield
        self.settle()
        whole = time.perf_counter() - clock, time.process_time() - cpu
        self.add(name, whole, self._within.pop())
        self._within[-1] = self._within[-1][0] + whole[0], self._within[-1][1] + whole[1]

    def add(self, name: str, whole: tuple[float, float], within: tuple[float, float] = (0.0, 0.0)) -> None:
        """Count seconds, less those within that count elsewhere."""
        clock, cpu = self.seconds.get(name, (0.0, 0.0))
        self.seconds[name] = clock + whole[0] - within[0], cpu + whole[1] - within[1]

    def watch(self, owner: Any, function: str, name: Callable[..., str]) -> None:
        """Make a stage of each call of a function in the main thread; `name` is given what the function is."""
        called = getattr(owner, function)

        def staged(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():  # It goes on beside another stage.
                return called(*args, **kwargs)
            with self(name(*args)):
                return called(*args, **kwargs)

        setattr(owner, function, staged)


def main() -> None:
    """Print stages, `{name: [seconds, CPU seconds]}`, and the peak of memory, mapped files included, in bytes."""
    started, source, device, dtype, seconds, steps = json.loads(sys.argv[1])
    logging.disable(logging.WARNING)  # Random weights are meant.
    stages = Stages()
    stages.add("start Python", (BEGAN - started, time.process_time()))
    with stages("import torch"):
        import torch
    with stages("import the rest"):
        from acestep import checkpoint, download, networks
        from acestep.device import best_device, synchronize
        from acestep.engine import Engine
        from acestep.request import GenerationRequest
        from acestep.result import GenerationFailure
    place = best_device(device)
    with stages("start the device"):
        torch.ones(1, device=place).sum().item()
    stages.settle = lambda: synchronize(place)
    stages.watch(checkpoint, "fetch_folder", lambda *_: "fetch")
    stages.watch(download, "wrong_sums", lambda *_: "compare checksums")
    stages.watch(networks, "load_part", lambda _, part, *rest: f"load {part}")
    stages.watch(checkpoint.Checkpoint, "fingerprint", lambda *_: "fingerprint")
    with stages("open"):
        found = checkpoint.Checkpoint.open(source)
    with stages("rest of loading"):
        engine = Engine.load(found, device=place, dtype=dtype)
    with stages("warm-up"):
        engine.warm_up()
    for name in ("first song", "second song"):
        request = GenerationRequest(
            prompt="bossa nova, vibraphone, slow",
            lyrics="[verse]\nOver the hills the morning comes\nand nobody is awake",
            duration=seconds,
            num_inference_steps=steps,
            seed=7,
        )
        with stages(name):
            (song,) = engine.generate([request])
        assert not isinstance(song, GenerationFailure), song.message
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"stages": stages.seconds, "peak": peak}))


if __name__ == "__main__":
    main()
