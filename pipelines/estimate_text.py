"""An `Estimate` in words and numbers that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.quantities import duration_text, size_text
from pipelines.sections import BudgetSection
from pipelines.speed import Range

if TYPE_CHECKING:
    from pipelines.estimate import Estimate, RunEstimate


def text_of(estimate: Estimate) -> str:
    """What is left, how fast it goes, what it takes, and on how many GPUs how long."""
    failed = f", {estimate.failed:,} failed before" if estimate.failed else ""
    manifest = f"{estimate.rows:,} rows, {estimate.refused:,} refused{failed}"
    songs = f"{estimate.to_make:,} to make of {estimate.planned:,} planned ({manifest})"
    if not estimate.to_make:
        return f"songs      {songs}"
    unit = "GPU" if estimate.on_gpus else "engine"
    batches = f"{estimate.batches:,} batch{'' if estimate.batches == 1 else 'es'}"
    lines = [
        f"songs      {songs}, {duration_text(estimate.audio_seconds)} of audio, {batches}",
        f"speed      {estimate.model} on {estimate.speed.device}: {estimate.speed.basis}",
        *([f"           {estimate.advice}"] if estimate.advice else []),
        f"work       {_hours(estimate.gpu_hours)} {unit}-hours",
        f"disk       {_disk(estimate)}",
    ]
    if estimate.encode_hours is not None:
        lines.append(f"encoding   {_number(estimate.encode_hours)} CPU-hours, beside the {unit}s")
    headings = [f"{unit}s", "time left", f"{unit}-hours held", *(["cost"] if estimate.price is not None else [])]
    rows = [headings, *(_cells(run) for run in estimate.runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("In four of five cases the truth lies between the numbers in brackets.")
    return "\n".join(lines)


def over_budget(run: RunEstimate, budget: BudgetSection, unit: str) -> list[str]:
    """Why a run is over the budget; empty: it is not."""
    where = f"on {run.gpus:g} {unit}{'' if run.gpus == 1 else 's'}"
    reasons = []
    hours = run.seconds.times(1 / 3600)
    if budget.max_hours is not None and hours.middle > budget.max_hours:
        reasons.append(
            f"the job is estimated to run {_hours(hours)} hours {where}, and may run {budget.max_hours:g}"
            f"{_even(hours.low > budget.max_hours)} (budget.max_hours, --max-hours)"
        )
    if budget.max_cost is not None and run.cost is not None and run.cost.middle > budget.max_cost:
        reasons.append(
            f"the job is estimated to cost {_hours(run.cost)} {where}, and may cost {budget.max_cost:g}"
            f"{_even(run.cost.low > budget.max_cost)} (budget.max_cost, --max-cost)"
        )
    return reasons


def _even(low_is_over: bool) -> str:
    return ", which even the low end of the estimate is over" if low_is_over else ""


def _disk(estimate: Estimate) -> str:
    sizes = [f"{_size(size)} {rendition}" for rendition, size in estimate.bytes.items()]
    latents = f", {size_text(estimate.latent_bytes)} latents beside it" if estimate.latent_bytes else ""
    return f"{sizes[0]}{latents}\n           instead: {', '.join(sizes[1:])}"


def _cells(run: RunEstimate) -> list[str]:
    time = [duration_text(each) for each in (run.seconds.middle, run.seconds.low, run.seconds.high)]
    cells = [f"{run.gpus:g}", f"{time[0]} ({time[1]} to {time[2]})", _hours(run.gpu_hours)]
    return [*cells, *([_hours(run.cost)] if run.cost is not None else [])]


def _hours(value: Range) -> str:
    return f"{_number(value.middle)} ({_number(value.low)} to {_number(value.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size(value: Range) -> str:
    if value.low == value.high:
        return size_text(value.middle)
    return f"{size_text(value.middle)} ({size_text(value.low)} to {size_text(value.high)})"
