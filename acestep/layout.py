"""Whether a checkpoint's files fit the networks, told from configs and headers alone: no weights are read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from acestep.checkpoint import FOLDERS, Checkpoint, Part
from acestep.download import SUMS, wrong_sums
from acestep.errors import CheckpointError
from acestep.weight_files import TensorInfo, read_tensors, weight_files


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What one part's folder holds, and what is wrong with it."""

    part: Part
    folder: str
    num_files: int
    size_bytes: int
    num_tensors: int
    num_values: int
    dtypes: tuple[str, ...]
    """As safetensors writes them, the most frequent first."""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """What a whole checkpoint holds."""

    parts: tuple[PartReport, ...]
    problems: tuple[str, ...] = ()
    """What is wrong besides the parts."""

    @property
    def ok(self) -> bool:
        """Whether the checkpoint can be loaded."""
        return not self.problems and not any(part.problems for part in self.parts)

    def explain(self) -> str:
        """All that is wrong, for people; empty if nothing is."""
        found = [f"{part.folder}:\n" + "\n".join(part.problems) for part in self.parts if part.problems]
        return "\n".join([*found, *self.problems])

    def with_problem(self, problem: str) -> LayoutReport:
        """The same report with one more problem besides the parts."""
        return replace(self, problems=(*self.problems, problem))


def read_layout(checkpoint: Checkpoint) -> LayoutReport:
    """What the parts hold, from the headers of their files; networks are not compared, torch is not needed."""
    return LayoutReport(tuple(_report(checkpoint, part, ()) for part in FOLDERS))


def check_layout(checkpoint: Checkpoint) -> LayoutReport:
    """Compare a checkpoint with the networks: configs, tensor names and shapes, and `SHA256SUMS` where it has one."""
    from acestep.loading import build_network
    from acestep.weights import misfits, used_tensors

    reports = []
    for part in FOLDERS:
        try:
            network = build_network(part, checkpoint.config(part))
            tensors = used_tensors(checkpoint.folder(part), network.unused)
            problems = misfits(network.weights_of, tensors, network.transform)
        except CheckpointError as error:
            problems = [f"  {error}"]
        reports.append(_report(checkpoint, part, problems))
    wrong = wrong_sums(checkpoint.path)
    return LayoutReport(tuple(reports), tuple(f"{name}: not what {SUMS} says" for name in wrong))


def _report(checkpoint: Checkpoint, part: Part, problems: list[str] | tuple[str, ...]) -> PartReport:
    folder = checkpoint.folder(part)
    tensors = read_tensors(folder)
    files = weight_files(folder)
    return PartReport(
        part=part,
        folder=FOLDERS[part],
        num_files=len(files),
        size_bytes=sum(file.stat().st_size for file in files),
        num_tensors=len(tensors),
        num_values=sum(math.prod(info.shape) for info in tensors.values()),
        dtypes=_dtypes(list(tensors.values())),
        problems=tuple(problems),
    )


def _dtypes(tensors: list[TensorInfo]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for info in tensors:
        counts[info.dtype] = counts.get(info.dtype, 0) + math.prod(info.shape)
    return tuple(sorted(counts, key=lambda dtype: (-counts[dtype], dtype)))
