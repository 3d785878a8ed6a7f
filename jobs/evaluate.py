"""`acestep evaluate`: whether what a model makes is what its prompts say, on this machine, without Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from acestep.engine import Engine
    from acestep.evaluation.page import Shown
    from acestep.evaluation.report import Plan, Report
    from acestep.evaluation.songs import Outcome, Song

MISSED = 3
"""Exit code of `--strict` where a goal is missed."""
_BITRATE_KBPS = 192


@click.command(context_settings={"max_content_width": 110})
@click.option("--checkpoint", default="tiny", show_default=True, help="tiny, a folder, a hub id or an fsspec URL.")
@click.option("--prompts", default=100, show_default=True, type=click.IntRange(1, 100), help="Held-out prompts.")
@click.option("--steps", default=27, show_default=True, type=click.IntRange(1, 200), help="Denoising steps.")
@click.option("--duration", default=12.0, show_default=True, type=click.FloatRange(4, 120), help="Seconds of a song.")
@click.option("--guidance-scale", type=click.FloatRange(0, 100), help="[default: that of every song]")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1, 256), help="Songs at once.")
@click.option("--tasks", is_flag=True, help="Try repaint, extend, retake, audio2audio and edit as well.")
@click.option("--device", help="cpu, cuda, cuda:1, mps. [default: the best there is]")
@click.option("--dtype", help="float32, bfloat16, float16 or float8. [default: bfloat16 on CUDA, else float32]")
@click.option("--strict", is_flag=True, help=f"Exit with {MISSED} where a goal is missed.")
@click.option("--output", default="out/evaluation", show_default=True, type=click.Path(file_okay=False, path_type=Path))
def command(
    checkpoint: str,
    prompts: int,
    steps: int,
    duration: float,
    guidance_scale: float | None,
    batch_size: int,
    tasks: bool,
    device: str | None,
    dtype: str | None,
    strict: bool,
    output: Path,
) -> None:
    """Make songs of held-out prompts and judge them: tempo, key, instrument, faults.

    The judge knows the instruments and the music that the built-in model learned from. OUTPUT gets report.json,
    songs.jsonl, audio/, spectrograms.png and index.html, to look at and to hear.

    \b
    acestep evaluate --checkpoint tiny
    acestep evaluate --checkpoint out/model --tasks --strict
    """
    import dataclasses
    import logging

    from acestep.errors import ACEStepError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        from acestep.engine import Engine
        from acestep.evaluation.report import Plan

        plan = Plan(num_prompts=prompts, steps=steps, duration=duration, tasks=tasks, batch_size=batch_size)
        if guidance_scale is not None:
            plan = dataclasses.replace(plan, guidance_scale=guidance_scale)
        engine = Engine.load(checkpoint, device=device, dtype=dtype)
        report = _evaluate(engine, plan, output)
    except (ACEStepError, ValueError, OSError) as error:
        print(f"acestep evaluate: {error}", file=sys.stderr)
        sys.exit(2)
    if strict and not report.met:
        sys.exit(MISSED)


def _evaluate(engine: Engine, plan: Plan, output: Path) -> Report:
    from tqdm import tqdm

    from acestep.evaluation.page import NUM_SHOWN, Shown, table
    from acestep.evaluation.report import evaluate
    from acestep.evaluation.songs import samples_of
    from acestep.result import GenerationResult

    to_show = {item.id for item in _varied(plan, NUM_SHOWN)}
    shown: list[Shown] = []

    def keep(song: Song, outcome: Outcome) -> None:
        if isinstance(outcome, GenerationResult):
            address = f"audio/{song.item.id}.mp3"
            outcome.save(str(output / address), bitrate_kbps=_BITRATE_KBPS)
            if song.item.id in to_show:
                shown.append(Shown(song, samples_of(outcome), address))

    with tqdm(total=plan.total_steps, unit="step", disable=not sys.stderr.isatty(), leave=False) as bar:
        report = evaluate(engine, plan, there_and_back=_codec(engine), on_song=keep, advance=bar.update)
    about = {
        "model": engine.model.name,
        "weights": "random: noise, not music" if engine.model.random_weights else engine.model.fingerprint,
        "dtype": engine.model.dtype,
        "device": engine.device_name,
        "steps": plan.steps,
        "guidance scale": plan.guidance_scale,
    }
    _write(report, shown, about, output)
    print(table(report))
    print(f"\nLook and listen:  {output / 'index.html'}   Figures:  {output / 'report.json'}")
    return report


def _varied(plan: Plan, num: int) -> list[Any]:
    """Prompts to show: the first of every instrument, then the first of the others."""
    firsts = {item.piece.instrument: item for item in reversed(plan.items)}
    rest = [item for item in plan.items if item not in firsts.values()]
    return [*firsts.values(), *rest][:num]


def _codec(engine: Engine) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    codec = engine.networks.codec

    def there_and_back(waveform: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), engine.networks.at_work(codec):
            latents = codec.encode(torch.from_numpy(waveform).to(engine.device))
            return codec.decode(latents)[0].float().cpu().numpy()

    return there_and_back


def _write(report: Report, shown: list[Shown], about: dict[str, Any], output: Path) -> None:
    import json

    from acestep.evaluation.page import draw, page
    from acestep.whole_file import write_whole

    picture: str | None = "spectrograms.png"
    try:
        write_whole(str(output / "spectrograms.png"), draw(shown))
    except ImportError:
        picture = None
        print("no spectrograms: they need matplotlib (pip install 'acestep-ray[train]')", file=sys.stderr)
    lines = "".join(json.dumps(song.row()) + "\n" for song in report.songs)
    write_whole(str(output / "songs.jsonl"), lines.encode())
    write_whole(str(output / "index.html"), page(report, shown, picture, about).encode())
    write_whole(str(output / "report.json"), (json.dumps(about | report.row(), indent=1) + "\n").encode())


if __name__ == "__main__":
    command()
