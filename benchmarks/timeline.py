"""`draw_timeline`: stages as a strip over time and what ran in them as lanes; an SVG for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, MARGIN, LABELS, NUMBERS = 960, 16, 236, 132
HEADER, STRIP, LANE = 64, 26, 24
PIXELS = 2
"""Of a bar: as high as the share of its time that the lane was busy."""

STYLE = """
  .page { fill: #ffffff; stroke: #d1d9e0 } .text { fill: #1f2328 } .quiet { fill: #59636e }
  .line { stroke: #d1d9e0 } .track { fill: #f0f3f6 }
  .s0 { fill: #8250df } .s1 { fill: #0969da } .s2 { fill: #bc4c00 } .s3 { fill: #1a7f37 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d } .text { fill: #f0f6fc } .quiet { fill: #9198a1 }
    .line { stroke: #3d444d } .track { fill: #1a2029 }
    .s0 { fill: #a371f7 } .s1 { fill: #4493f8 } .s2 { fill: #f0883e } .s3 { fill: #3fb950 }
  }
  text { font: 12px ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
  .title { font-size: 15px; font-weight: 600 } .name { font-family: ui-monospace, Menlo, Consolas, monospace }
"""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took a while, in ms since the beginning."""

    name: str
    start: float
    stop: float

    @property
    def ms(self) -> float:
        """How long."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of the picture: a name, what to say of it, and when it was busy."""

    name: str
    note: str
    spans: Sequence[Span]


def draw_timeline(title: str, stages: Sequence[Span], lanes: Sequence[Lane]) -> str:
    """The picture as SVG text; time begins with the first stage and ends with the last."""
    begin, end = min(stage.start for stage in stages), max(stage.stop for stage in stages)
    left, wide = MARGIN + LABELS, WIDTH - 2 * MARGIN - LABELS - NUMBERS
    top, bottom = HEADER, HEADER + STRIP + 10 + LANE * len(lanes)

    def x(moment: float) -> float:
        return left + wide * (moment - begin) / (end - begin)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{bottom + 33}" rx="6"/>',
        _text(MARGIN, 26, title, "text title"),
        *_legend(stages, MARGIN, 48),
    ]
    per, unit = (1000, "s") if end - begin >= 2000 else (1, "ms")
    for moment in _ticks(end - begin):
        at = x(begin + moment)
        out.append(f'<path class="line" d="M{at:.1f} {top}V{bottom + 4}"/>')
        out.append(_text(at, bottom + 20, f"{moment / per:g} {unit}", "quiet", "middle"))
    for number, stage in enumerate(stages):
        size = max(1.0, x(stage.stop) - x(stage.start))
        out.append(
            f'<rect class="s{number % 4}" x="{x(stage.start):.1f}" y="{top}" width="{size:.1f}" height="{STRIP}"/>'
        )
    out.append(_text(MARGIN, top + 17, "stages", "text"))
    out.append(_text(WIDTH - MARGIN, top + 17, _duration(end - begin), "text", "end"))
    for row, lane in enumerate(lanes):
        y = top + STRIP + 10 + LANE * row
        out.append(_text(MARGIN, y + 15, _cut(lane.name), "text name"))
        out.append(_text(WIDTH - MARGIN, y + 15, lane.note, "quiet", "end"))
        out.append(f'<rect class="track" x="{left}" y="{y + 3}" width="{wide}" height="{LANE - 6}"/>')
        for number, stage in enumerate(stages):
            inside = [span for span in lane.spans if stage.start <= span.start < stage.stop]
            bars = busy_shares([(x(span.start) - left, x(span.stop) - left) for span in inside], wide)
            path = "".join(
                f"M{left + bar * PIXELS} {y + LANE - 3}v{-height:.1f}h{PIXELS}v{height:.1f}z"
                for bar, share in enumerate(bars)
                if (height := share * (LANE - 6)) >= 0.2
            )
            if path:
                out.append(f'<path class="s{number % 4}" d="{path}"/>')
    return "\n".join([*out, "</svg>"]) + "\n"


def busy_shares(spans: Sequence[tuple[float, float]], wide: float) -> list[float]:
    """Of each bar the share, 0..1, that spans in pixels cover; spans within each other count once."""
    bars = [0.0] * (int(wide / PIXELS) + 1)
    reached = 0.0
    for start, stop in sorted(spans):
        at, stop = max(start, reached), min(stop, wide)
        while at < stop:
            bar = int(at / PIXELS)
            until = min(stop, (bar + 1) * PIXELS)
            bars[bar] += (until - at) / PIXELS
            at = until if until > at else stop
        reached = max(reached, stop)
    return [min(1.0, share) for share in bars]


def _legend(stages: Sequence[Span], left: float, y: float) -> list[str]:
    whole, out = sum(stage.ms for stage in stages), []
    for number, stage in enumerate(stages):
        words = f"{stage.name} {_duration(stage.ms)}, {stage.ms / whole:.0%}"
        out.append(f'<rect class="s{number % 4}" x="{left}" y="{y - 10}" width="11" height="11" rx="2"/>')
        out.append(_text(left + 17, y, words, "text"))
        left += 41 + 6.3 * len(words)
    return out


def _ticks(length: float) -> list[float]:
    """Round moments, at most ten beside 0."""
    steps = (digit * 10.0**power for power in range(-3, 9) for digit in (1, 2, 5))
    step = next(step for step in steps if length / step <= 10)
    return [step * number for number in range(int(length / step) + 1)]


def _duration(ms: float) -> str:
    if ms >= 10_000:
        return f"{ms / 1000:.0f} s"
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.0f} ms"


def _cut(name: str) -> str:
    most = LABELS // 8
    return name if len(name) <= most else name[: most - 1] + "…"


def _text(x: float, y: float, words: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
