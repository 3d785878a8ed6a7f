"""The work of a whole plan, batch by batch, from its columns alone: a million rows in seconds, none of them parsed.

Batches are those of `acestep.batching.form_batches`, as `cutting` has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from acestep.request import BESIDE_SOURCE
from pipelines import layout
from pipelines.catalog import Catalog
from pipelines.census import BucketState
from pipelines.rows import KEY_COLUMNS, joined_keys, rows_in
from pipelines.storage import Storage
from pipelines.work import DECODE_TFLOP, FRAME_SECONDS, PASS_TFLOP, added_frames, passes

_THREADS = 4
_SAME = (
    *("num_inference_steps", "scheduler", "guidance", "guidance_interval", "sample_rate"),
    *("use_erg_tag", "use_erg_lyric", "use_erg_diffusion", "lora", "task"),
)
"""Columns in which the songs of a batch agree, beside those that `_groups` looks at more closely."""
_BESIDE_LORA = ("lora_weight",)
_OF_PASSES = ("task", "guidance_interval", "variance", "reference_strength", "edit_n_min", "edit_n_max", "edit_n_avg")
_OTHERS = ("oss_steps", "guidance_scale", "guidance_scale_text", "guidance_scale_lyric", "extend_left", "extend_right")
COLUMNS = ("num_frames", *dict.fromkeys((*_SAME, *_BESIDE_LORA, *BESIDE_SOURCE, *_OF_PASSES, *_OTHERS)))
"""Of a plan: all that its work depends on."""


@dataclass(frozen=True, slots=True)
class PlannedWork:
    """What is to be made.

    Attributes:
        batches: parts of the `Work` of each, `[n, 3]`.
        audio_seconds: by sample rate in Hz.
    """

    batches: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    songs: int = 0
    audio_seconds: dict[int, float] = field(default_factory=dict)

    @classmethod
    def total(cls, works: Iterable[PlannedWork]) -> PlannedWork:
        """All of them together."""
        batches, songs, seconds = [cls().batches], 0, defaultdict[int, float](float)
        for work in works:
            batches.append(work.batches)
            songs += work.songs
            for rate, length in work.audio_seconds.items():
                seconds[rate] += length
        return cls(np.concatenate(batches), songs, dict(sorted(seconds.items())))


@dataclass(frozen=True, slots=True)
class Cut:
    """How batches are cut: see `acestep.batching.form_batches`; `candidates` of each song are in one batch."""

    frame_budget: int
    max_batch_size: int
    candidates: int = 1


def work_left(storage: Storage, plan: str, states: Iterable[BucketState], cut: Cut) -> PlannedWork:
    """What is missing of a plan; buckets that are whole are not read."""
    one = partial(_of_bucket, storage, plan, cut)
    with ThreadPoolExecutor(_THREADS) as pool:
        return PlannedWork.total(pool.map(one, [state for state in states if state.missing]))


def work_of_rows(table: pa.Table, cut: Cut, missing: np.ndarray | None = None) -> PlannedWork:
    """The work of one bucket's planned rows (`COLUMNS` at least); with `missing`, of those alone, as they are cut."""
    count = table.num_rows
    if missing is None:
        missing = np.ones(count, dtype=bool)
    if not count or not missing.any():
        return PlannedWork()
    planned = _numbers(table, "num_frames").astype(np.int64)
    frames = planned + _added(table)
    guided, double = _guidance(table)
    group = _groups(table, guided, double)
    order = np.lexsort((np.arange(count), -planned, group))
    starts = _starts(planned[order], group[order], cut)
    made = missing[order]
    songs = np.add.reduceat(made.astype(np.int64), starts)
    longest = np.maximum.reduceat(np.where(made, frames[order], 0), starts)
    together = np.add.reduceat(np.where(made, frames[order], 0), starts)
    first = order[starts]
    calls, rows = _passes(table, first, 1 + guided[first] + double[first])
    decodes = 1 + table.column("source").is_valid().to_numpy()[first]
    parts = [PASS_TFLOP * rows * longest * songs, DECODE_TFLOP * decodes * together]
    batches = np.stack([*(cut.candidates * part for part in parts), calls.astype(float)], axis=1)
    rates = _numbers(table, "sample_rate").astype(np.int64)
    seconds = {
        int(rate): float(frames[missing & (rates == rate)].sum() * FRAME_SECONDS) for rate in np.unique(rates[missing])
    }
    return PlannedWork(batches[songs > 0], int(missing.sum()), seconds)


def _of_bucket(storage: Storage, plan: str, cut: Cut, state: BucketState) -> PlannedWork:
    part = state.missing < state.planned
    names = [*COLUMNS, *(KEY_COLUMNS if part else ())]
    table = storage.read_table(layout.plan_key(state.bucket, plan), names)
    if not part:
        return work_of_rows(table, cut)
    catalog = Catalog(storage)
    keys = [catalog.done_keys(state.bucket), catalog.failed_keys(state.bucket)]
    over = pa.concat_tables([each.select(KEY_COLUMNS) for each in keys])
    return work_of_rows(table, cut, pc.invert(rows_in(table, joined_keys(over))).to_numpy())


def _starts(frames: np.ndarray, group: np.ndarray, cut: Cut) -> np.ndarray:
    """Where batches begin among rows sorted by group and falling length."""
    most = max(1, cut.max_batch_size // cut.candidates)
    budget = max(1, cut.frame_budget // cut.candidates)
    starts: list[int] = []
    ends = [*(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
    sizes = np.minimum(most, np.maximum(1, budget // np.maximum(frames, 1))).tolist()
    place = 0
    for end in ends:
        while place < end:
            starts.append(place)
            place = min(place + sizes[place], end)
    return np.array(starts)


def _guidance(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row is guided at all, and whether doubly, as `GenerationRequest` says it; 0 or 1."""
    scale = _numbers(table, "guidance_scale")
    guided = (scale != 0) & (scale != 1) & (_numbers(table, "guidance_interval") > 0)
    double = guided & (_numbers(table, "guidance_scale_text") > 1) & (_numbers(table, "guidance_scale_lyric") > 1)
    return guided.astype(np.int64), double.astype(np.int64)


def _groups(table: pa.Table, *more: np.ndarray) -> np.ndarray:
    """A number for each row, the same for rows that may share a batch (`GenerationRequest.batch_key`)."""
    columns = [*(_codes(table, name) for name in _SAME), *more]
    lists = table.column("oss_steps").to_pylist() if _steps(table).any() else []
    if lists:
        columns.append(np.unique([str(each or []) for each in lists], return_inverse=True)[1])
    for switch, names in (("lora", _BESIDE_LORA), ("source", BESIDE_SOURCE)):
        there = table.column(switch).is_valid().to_numpy()
        if there.any():
            columns += [np.where(there, 1 + _codes(table, name), 0) for name in names]
    group = np.zeros(table.num_rows, dtype=np.int64)
    for codes in columns:
        most = int(codes.max(initial=0))
        if most:
            group = np.unique(group * (most + 1) + codes, return_inverse=True)[1]
    return group


def _codes(table: pa.Table, name: str) -> np.ndarray:
    """A number for each value of a column, null too."""
    column = table.column(name).combine_chunks()
    codes = pc.dictionary_encode(column, null_encoding="encode").indices
    return codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return pc.fill_null(table.column(name), 0).to_numpy()


def _steps(table: pa.Table) -> np.ndarray:
    """How many steps each row chose itself; 0: none."""
    return pc.fill_null(pc.list_value_length(table.column("oss_steps")), 0).to_numpy()


def _added(table: pa.Table) -> np.ndarray:
    """Frames beside the source's, of songs that are extended."""
    left, right = table.column("extend_left"), table.column("extend_right")
    if left.null_count == right.null_count == table.num_rows:
        return np.zeros(table.num_rows, dtype=np.int64)
    return np.array([added_frames(*each) for each in zip(left.to_pylist(), right.to_pylist(), strict=True)])


def _passes(table: pa.Table, rows: Sequence[int] | np.ndarray, branches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Calls, and rows for a song, of the batches that begin with `rows`."""
    chosen = _steps(table)[rows]
    heads = table.select([*_OF_PASSES, "num_inference_steps", "scheduler"]).take(pa.array(rows))
    counted = [
        passes(
            task=row["task"],
            steps=int(own) or row["num_inference_steps"],
            heun=row["scheduler"] == "heun",
            interval=row["guidance_interval"],
            branches=int(width),
            variance=row["variance"],
            strength=row["reference_strength"],
            n_min=row["edit_n_min"],
            n_max=row["edit_n_max"],
            n_avg=row["edit_n_avg"],
        )
        for row, own, width in zip(heads.to_pylist(), chosen, branches, strict=True)
    ]
    return np.array([calls for calls, _ in counted]), np.array([each for _, each in counted])
