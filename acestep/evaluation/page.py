"""A page to look at and to hear an evaluation: its figures, and some songs with spectrograms and players.

`draw` needs matplotlib, which the extra `train` brings.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acestep.evaluation.findings import Comparison
from acestep.evaluation.report import Report
from acestep.evaluation.songs import Song
from acestep.evaluation.spectra import mono, power
from acestep.frames import SAMPLE_RATE

NUM_SHOWN = 12
_TEMPLATE = Path(__file__).with_name("page.html")
_SIZE, _HOP = 4096, 1024
_ROWS = np.geomspace(50, 16000, 220)
"""Hz, of a picture."""
_TICKS = (100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(frozen=True, slots=True)
class Shown:
    """A song on the page: its waveform `[2, W]`, and where its sound lies beside the page."""

    song: Song
    waveform: np.ndarray
    address: str


def verdicts(song: Song) -> list[tuple[bool, str]]:
    """What was heard, each with whether it is right."""
    if song.heard is None:
        return [(False, f"not made: {song.failure}")]
    wanted, verdict, heard = song.item.piece, song.verdict, song.heard
    found = [
        (verdict.tempo, f"{heard.tempo:.0f} bpm (wanted {wanted.tempo})"),
        (verdict.key, f"{verdict.key_share:.0%} in {wanted.key}"),
        (verdict.instrument, heard.instrument + ("" if verdict.instrument else f" (wanted {wanted.instrument})")),
    ]
    return found + [(False, fault) for fault in heard.faults]


def draw(shown: Sequence[Shown]) -> bytes:
    """Log-frequency spectrograms with prompts and verdicts, as one PNG.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    columns = 3
    lines = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(18, 4.1 * lines), dpi=80, layout="constrained")
    for place, (axes, one) in enumerate(zip(figure.subplots(lines, columns, squeeze=False).flat, shown, strict=False)):
        seconds = one.waveform.shape[1] / SAMPLE_RATE
        axes.imshow(
            spectrogram(one.waveform),
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, len(_ROWS)),
            vmin=-80,
            vmax=0,
            cmap="magma",
        )
        axes.set_yticks(np.interp(np.log(_TICKS), np.log(_ROWS), np.arange(len(_ROWS))))
        axes.set_yticklabels([f"{hertz / 1000:g}k" if hertz >= 1000 else str(hertz) for hertz in _TICKS], fontsize=8)
        said = ", ".join(("✓ " if right else "✗ ") + text for right, text in verdicts(one.song))
        prompt = textwrap.fill(f"{place + 1}. {one.song.item.prompt}", 68)
        axes.set_title(f"{prompt}\n{textwrap.shorten(said, 84)}", fontsize=10, loc="left")
        axes.set_xlabel("seconds", fontsize=8)
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def spectrogram(waveform: np.ndarray) -> np.ndarray:
    """Decibels below full scale `[220, frames]` of `[2, W]`, its rows equally far apart in pitch: 50 Hz to 16 kHz."""
    spectra = power(mono(waveform), _SIZE, _HOP)
    places = _ROWS * _SIZE / SAMPLE_RATE
    low = np.minimum(places.astype(int), spectra.shape[1] - 2)
    part = (places - low)[:, None]
    # High rows are wide: the loudest bin of each, so that no partial falls between two.
    reach = np.maximum(1, np.diff(np.append(places, places[-1])).astype(int))
    rows = np.stack([spectra[:, first : first + size].max(axis=1) for first, size in zip(low, reach, strict=True)])
    between = spectra.T[low] * (1 - part) + spectra.T[low + 1] * part
    return 10 * np.log10(np.where(reach[:, None] > 1, rows, between) + 1e-12)


def page(report: Report, shown: Sequence[Shown], picture: str | None, about: dict[str, Any]) -> str:
    """The page in HTML.

    Args:
        picture: address of what `draw` drew; None: there is none.
        about: what else is to be said, by name.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        shown=[(one, verdicts(one.song)) for one in shown],
        picture=picture,
        about=about,
        comparisons=[_line(found) for found in report.comparisons],
    )


def table(report: Report) -> str:
    """The figures for a console."""
    lines = [f"{'':34}{'share':>7}{'songs':>9}{'95%':>13}{'by chance':>11}{'goal':>7}"]
    shares = [*report.shares, *(report.round_trip.shares if report.round_trip else ())]
    for share in shares:
        low, high = share.interval
        chance = "" if share.by_chance is None else f"{share.by_chance:.0%}"
        goal = "" if share.goal is None else f"{share.goal:.0%}"
        mark = {True: "  met", False: "  MISSED", None: ""}[share.met]
        songs, interval = f"{share.num_good}/{share.num}", f"{low:.0%} to {high:.0%}"
        lines.append(f"{share.name:34}{share.share:>7.0%}{songs:>9}{interval:>13}{chance:>11}{goal:>7}{mark}")
    lines += [_line(found) for found in report.comparisons]
    if report.round_trip:
        codec = report.round_trip
        lines.append(f"codec: log-mel error {codec.log_mel_error:.3f} nats, STFT distance {codec.stft_distance:.3f}")
    if report.speed:
        speed = report.speed
        lines.append(
            f"speed: {speed.audio_seconds:.0f} s of music in {speed.steps} steps took {speed.seconds:.1f} s, "
            f"{speed.audio_seconds / speed.seconds:.1f} times real time"
        )
    return "\n".join(lines)


def _line(found: Comparison) -> str:
    sides = [
        f"{value:g}: " + ", ".join(f"{name} {shares[name]:.0%}" for name in ("tempo", "key", "instrument"))
        for value, shares in (found.less, found.more)
    ]
    return f"{found.name} {'; '.join(sides)}: {'more is better' if found.met else 'MORE IS NOT BETTER'}"
