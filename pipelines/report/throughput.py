"""Throughput over time: the hours in which a run was at work, side by side, with the time between them left out."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from markupsafe import Markup

from pipelines.report.bins import Bins
from pipelines.report.charts import Bar, Tick, bar_chart
from pipelines.report.survey import moment

MOST_BARS = 96
SONGS_IN_A_BAR = 3
"""At least, on average: fewer make a comb."""
FEWEST_BARS = 12
MOST_SPELLS = 24
"""Stretches of work drawn: the last ones."""

_STEPS = (*(1, 2, 5, 10, 15, 30), *(60, 120, 300, 600, 900, 1800), *(3600, 7200, 10_800, 21_600, 43_200, 86_400))
_CLEAR = 16.0
"""Percent between two texts below the chart; dates are twice as long, and alone there on a phone."""


@dataclass(slots=True)
class Spell:
    """A stretch of time, in seconds since 1970, in which runs were at work."""

    start: float
    end: float
    slots: list[list[float]] = field(default_factory=list)
    """Songs and seconds of audio in each step; the last one is up to half a step longer or shorter."""

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Throughput:
    """Two charts over the same time, and what must be said about them."""

    songs: Markup
    speed: Markup
    note: str


def throughput(timeline: Bins, times: Sequence[tuple[float, float]]) -> Throughput | None:
    """Charts of songs per minute and of seconds of audio per second; None where no time is known.

    Args:
        times: begin and end of each run, in seconds since 1970.
    """
    all_spells = _spells(times)
    spells = all_spells[-MOST_SPELLS:]
    if not spells or not timeline.count:
        return None
    bars = min(max(timeline.count / SONGS_IN_A_BAR, FEWEST_BARS), MOST_BARS)
    step = _step(sum(spell.seconds for spell in spells) / bars, timeline.width)
    _fill(spells, timeline, step)
    songs, speed, ticks, place = [], [], [], 0.0
    width = 100 / sum(len(spell.slots) for spell in spells)
    for spell in spells:
        ticks += _ticks(spell, step, place, width)
        for number, (count, audio) in enumerate(spell.slots):
            begin = spell.start + number * step
            lasted = step if number < len(spell.slots) - 1 else max(spell.end - begin, 1.0)
            when = f"{moment(begin):%d %b %H:%M:%S}"
            said = f"{when}: {count:,.0f} song{'' if count == 1 else 's'}, {audio:,.0f} s of audio in {lasted:,.0f} s"
            songs.append(Bar(place, width, 60 * count / lasted, said))
            speed.append(Bar(place, width, audio / lasted, said))
            place += width
    shown = _clear(ticks)
    span = f"{moment(spells[0].start):%d %b %Y %H:%M} to {moment(spells[-1].end):%d %b %Y %H:%M} UTC"
    note = f"{span}; a bar is {_step_text(step)}. A dashed line: work begins; the time between runs is left out."
    if len(all_spells) > len(spells):
        note += f" The last {len(spells)} of {len(all_spells)} stretches."
    return Throughput(
        bar_chart(songs, shown, label=f"Songs per minute, {span}", kind="time"),
        bar_chart(speed, shown, label=f"Seconds of audio made in a second, {span}", kind="time"),
        note,
    )


def _spells(times: Sequence[tuple[float, float]]) -> list[Spell]:
    spells: list[Spell] = []
    for start, end in sorted(times):
        if spells and start <= spells[-1].end:
            spells[-1].end = max(spells[-1].end, end)
        else:
            spells.append(Spell(start, end))
    return spells


def _step(least: float, resolution: float) -> float:
    step = next((float(step) for step in _STEPS if step >= least), math.ceil(least / 86_400) * 86_400.0)
    return max(step, resolution)


def _fill(spells: list[Spell], timeline: Bins, step: float) -> None:
    for spell in spells:
        spell.slots = [[0.0, 0.0] for _ in range(max(1, round(spell.seconds / step)))]
    starts = [spell.start for spell in spells]
    for middle, (count, audio) in timeline.occupied():
        # A bin may begin before the run did.
        position = bisect_right(starts, middle + timeline.width / 2) - 1
        if position >= 0:
            spell = spells[position]
            slot = spell.slots[min(max(int((middle - spell.start) / step), 0), len(spell.slots) - 1)]
            slot[0] += count
            slot[1] += audio


def _ticks(spell: Spell, step: float, place: float, width: float) -> list[Tick]:
    ticks = [Tick(place, f"{moment(spell.start):%d %b %H:%M}", is_line=True)]
    every = _step(spell.seconds / 5, step)
    mark = (spell.start // every + 1) * every
    before = moment(spell.start)
    while mark < spell.end:
        now = moment(mark)
        slots = min((mark - spell.start) / step, len(spell.slots))
        ticks.append(Tick(place + width * slots, _clock(now, before, every)))
        before, mark = now, mark + every
    return ticks


def _clock(now: datetime, before: datetime, every: float) -> str:
    if now.date() != before.date():
        return f"{now:%d %b %H:%M}"
    return f"{now:%H:%M}" if every >= 60 else f"{now:%H:%M:%S}"


def _clear(ticks: Sequence[Tick]) -> list[Tick]:
    """The ticks without the text of those that would lie over another's, starts of work first."""
    written: list[float] = []
    texts = {}
    for tick in sorted(ticks, key=lambda tick: not tick.is_line):
        if all(abs(tick.place - other) >= _CLEAR * (1 + tick.is_line) for other in written):
            written.append(tick.place)
            texts[tick] = tick.text
    return [Tick(tick.place, texts.get(tick, ""), tick.is_line) for tick in ticks]


def _step_text(step: float) -> str:
    for seconds, name in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if step >= seconds:
            count = step / seconds
            return f"{count:g} {name}{'' if count == 1 else 's'}"
    raise AssertionError("a step is at least a second")
