"""What does a song cost after it is made: judging, normalising, encoding? How many cores is that beside a GPU?

    python -m benchmarks.encode --seconds 60 --real-time-factor 180

One core, a synthetic song (chords, drums of noise, two different channels): encoders take longer over music than over
silence. The last column is the cores that keep up with an engine that makes so many seconds of audio a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import numpy as np

from acestep.audio import encode_audio
from acestep.audio_format import AudioFormat
from acestep.loudness import normalize
from acestep.quality import QualityLimits, assess
from benchmarks.log import append_to_log

RATE = 44_100
FORMATS: dict[str, dict[str, int | float]] = {
    "wav": {},
    "flac": {},
    "flac 24": {"bit_depth": 24},
    "mp3 320": {},
    "mp3 128": {"bitrate_kbps": 128},
    "ogg": {},
    "opus": {},
}


def song(seconds: float) -> np.ndarray:
    """Four-note chords that change every two seconds, under bursts of noise: float32 `[2, W]`."""
    random = np.random.default_rng(0)
    times = np.arange(int(seconds * RATE)) / RATE
    bars = (times / 2).astype(int)
    roots = 110 * 2 ** (random.integers(0, 12, bars[-1] + 1) / 12)
    chord = sum(np.sin(2 * np.pi * times * roots[bars] * ratio) for ratio in (1, 1.26, 1.5, 2)) / 8
    drums = random.standard_normal((2, len(times))) * np.exp(-20 * (times % 0.5)) * 0.3
    return (np.stack([chord, 0.8 * chord]) + drums).astype(np.float32)


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Of this thread: the median."""
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        run()
        times.append(time.thread_time() - started)
    return statistics.median(times)


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Of the song.")
@click.option(
    "--real-time-factor", default=180.0, show_default=True, help="Seconds of audio a second that one GPU makes."
)
@click.option("--repeats", default=3, show_default=True)
@click.option("--log", is_flag=True, help="Append the table to benchmarks/LOG.md.")
def main(seconds: float, real_time_factor: float, repeats: int, log: bool) -> None:
    """Measure, print, and log if asked."""
    waveform = song(seconds)
    lines = [
        f"{'':22} {'ms a second':>12} {'x real time':>12} {'MiB a minute':>13} {f'cores at {real_time_factor:g}x':>14}"
    ]

    def line(name: str, run: Callable[[], object], size: int | None = None) -> None:
        cost = cpu_seconds(run, repeats) / seconds
        shown = f"{size / seconds * 60 / 2**20:13.2f}" if size else " " * 13
        lines.append(f"{name:22} {1000 * cost:12.2f} {1 / cost:12.0f} {shown} {real_time_factor * cost:14.2f}")
        print(lines[-1], flush=True)

    print(lines[0])
    line("quality gate", lambda: assess(waveform, RATE, QualityLimits()))
    line("loudness to -14 LUFS", lambda: normalize(waveform, RATE, mode="lufs"))
    for name, settings in FORMATS.items():
        audio = AudioFormat(format=name.split()[0], **settings)  # type: ignore[arg-type]
        line(name, lambda audio=audio: encode_audio(waveform, RATE, audio), len(encode_audio(waveform, RATE, audio)))  # type: ignore[misc]
    if log:
        append_to_log("encoding, one core", "CPU", lines)


if __name__ == "__main__":
    main()
