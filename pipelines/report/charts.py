"""Charts as inline SVG: lengths in x are percentages, so that they fit any screen while their text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.report.bins import Bins

HEIGHT = 150
"""Of the space for bars, in pixels."""

_TOP = 14
_BOTTOM = _TOP + HEIGHT
_FAR_OUT = 3.0
"""How much wider than its middle a histogram may be before outliers are gathered in the bars at its ends."""
_FEWEST_BARS = 5
_MOST_COUNTED = 14
"""Bars that have room for their count above them."""
_ROUND = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Bar:
    """From `left` and `width` in percent, `height` in the chart's unit."""

    left: float
    width: float
    height: float
    title: str
    text: str = ""
    """Above the bar."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark below the chart, at `place` in percent."""

    place: float
    text: str
    is_line: bool = False
    """Drawn through the whole chart."""


def histogram(bins: Bins, *, label: str, unit: str = "", show: Callable[[float], str] = "{:,g}".format) -> Markup:
    """Bars of round widths over what `bins` counted; `label` says what that is."""
    low, high = _range(bins)
    width = max(round_step((high - low) / 24), bins.width)
    first = math.floor(low / width + 1e-9)
    count = math.floor(high / width + 1e-9) - first + 1
    if count < _FEWEST_BARS:  # one bar would fill the whole chart
        first, count = first - (_FEWEST_BARS - count) // 2, _FEWEST_BARS
    counts = [0.0] * count
    for middle, sums in bins.occupied():
        counts[min(max(math.floor(middle / width) - first, 0), count - 1)] += sums[0]
    suffix = f" {unit}" if unit else ""
    bars = []
    for place, number in enumerate(counts):
        start, end = (_round((first + place + step) * width) for step in (0, 1))
        span = f"{show(start)} to {show(end)}{suffix}"
        if place == 0 and bins.lowest < start:
            span = f"under {show(end)}{suffix}"
        if place == count - 1 and bins.highest > end:
            span = f"over {show(start)}{suffix}"
        text = f"{number:,.0f}" if number and count <= _MOST_COUNTED else ""
        bars.append(Bar(100 * place / count, 100 / count, number, f"{span}: {_songs(number)}", text))
    every = max(1, round(round_step(width * count / 6) / width))
    marks = range(math.ceil(first / every) * every, first + count + 1, every)
    ticks = [Tick(100 * (mark - first) / count, show(_round(mark * width))) for mark in marks]
    lowest, median, highest = (show(_round(value)) for value in (bins.lowest, bins.quantile(0.5), bins.highest))
    said = f"{label}: {_songs(bins.count)}, {lowest} to {highest}{suffix}, median {median}{suffix}"
    return bar_chart(bars, ticks, label=said)


def bar_chart(bars: Sequence[Bar], ticks: Sequence[Tick], *, label: str, kind: str = "") -> Markup:
    """An SVG of upright bars over a line with ticks; `label` is read to those who do not see it."""
    levels = _levels(max((bar.height for bar in bars), default=0.0))
    parts = []
    for level in levels:
        y = _BOTTOM - HEIGHT * level / levels[-1]
        parts.append(_tag("line", class_="grid", x1=0, x2="100%", y1=y, y2=y))
        parts.append(_tag("text", f"{level:,g}", class_="level", x=-8, y=y + 4))
    for bar in bars:
        tall = HEIGHT * bar.height / levels[-1]
        tall = max(tall, 1.0) if bar.height else 0.0  # one song of a million is still to be seen
        x, width = _percent(bar.left), _percent(bar.width)
        inside = [
            _tag("title", bar.title),
            _tag("rect", class_="hit", x=x, width=width, y=_TOP, height=HEIGHT),
            _tag("rect", class_="bar", x=x, width=width, y=_BOTTOM - tall, height=tall),
        ]
        if bar.text:
            middle = _percent(bar.left + bar.width / 2)
            inside.append(_tag("text", bar.text, class_="count", x=middle, y=_BOTTOM - tall - 5))
        parts.append(_tag("g", Markup("").join(inside)))
    for tick in ticks:
        x, top = _percent(tick.place), _TOP if tick.is_line else _BOTTOM
        parts.append(_tag("line", class_="run" if tick.is_line else "tick", x1=x, x2=x, y1=top, y2=_BOTTOM + 5))
        anchor = "start" if tick.place < 4 else "end" if tick.place > 96 else "middle"
        kind_of_text = "when" if tick.is_line else "mark"
        parts.append(_tag("text", tick.text, class_=kind_of_text, x=x, y=_BOTTOM + 19, text_anchor=anchor))
    kinds, tall = f"chart {kind}".strip(), _BOTTOM + 26
    return _tag("svg", Markup("").join(parts), class_=kinds, role="img", aria_label=label, width="100%", height=tall)


def _levels(highest: float) -> list[float]:
    """Round numbers for the lines of a chart, from 0 to the first that is not under the highest bar."""
    is_whole = highest == int(highest)
    step = round_step((highest or 1.0) / 4)
    step = max(step, 1.0) if is_whole else step  # there is no half of a song
    return [step * place for place in range(max(1, math.ceil(highest / step - 1e-9)) + 1)]


def _tag(name: str, inside: str | Markup = "", **attributes: str | float) -> Markup:
    """An element; all text is escaped."""
    pairs = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(pairs), inside)


def _percent(share: float) -> str:
    return f"{share:.3f}%"


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... and their decimal fractions that is not under `least`."""
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _ROUND if step * power >= least * (1 - 1e-9))


def _range(bins: Bins) -> tuple[float, float]:
    """What to draw: everything, or the middle where a few songs lie far out."""
    low, high = bins.lowest, bins.highest
    inner_low, inner_high = bins.quantile(0.005), bins.quantile(0.995)
    margin = (inner_high - inner_low) * (_FAR_OUT - 1) / 2
    if margin:
        low, high = max(low, inner_low - margin), min(high, inner_high + margin)
    return low, high


def _round(value: float) -> float:
    """To what is worth saying."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return round(value, max(min(digits, 6), 0))


def _songs(count: float) -> str:
    return f"{count:,.0f} song" + ("" if count == 1 else "s")
