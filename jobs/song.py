"""`acestep song`: one prompt to one file, on this machine, without Ray."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from acestep.request import GenerationRequest
from acestep.task_fields import variance_of_alpha

_NOT_OPTIONS = ("id", "prompt", "lyrics")


def settings_options(function: Callable[..., None]) -> Callable[..., None]:
    """A click option for every setting of a request, with the request's own words and default."""
    for name, field in reversed(GenerationRequest.model_fields.items()):
        if name in _NOT_OPTIONS:
            continue
        words = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
        default = f" [default: {field.default}]" if field.default not in (None, ()) else ""
        choices = f" One of: {', '.join(words)}." if words else ""
        option = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar=_metavar(name, field.annotation),
            help=f"{field.description}{choices}{_range(field.metadata)}{default}",
        )
        function = option(function)
    return function


def _metavar(name: str, annotation: Any) -> str:
    """The kind of value that an option takes, as its help shows it."""
    kinds = (annotation, *get_args(annotation))
    if bool in kinds:
        return "TRUE|FALSE"
    if name in ("duration", "repaint_start", "repaint_end", "extend_left", "extend_right"):
        return "SECONDS"
    return "NUMBER" if int in kinds or float in kinds else "VALUE"


def _range(limits: Sequence[Any]) -> str:
    low, high = (
        next((value for limit in limits if (value := getattr(limit, at, None)) is not None), None)
        for at in ("ge", "le")
    )
    return f" {low:,} to {high:,}." if low is not None and high is not None else ""


@click.command(context_settings={"max_content_width": 110})
@click.argument("prompt")
@click.option("-o", "--output", default="song.mp3", show_default=True, help="File or URL; mp3, wav, flac, ogg or opus.")
@click.option("--lyrics", help="The lyrics, with \\n between lines.")
@click.option("--lyrics-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File of lyrics.")
@click.option("--alpha", type=float, help="Another way to say --variance: 0.9 is very similar, 0.1 very different.")
@click.option("--checkpoint", default="tiny", show_default=True, help="tiny, a folder, a hub id or an fsspec URL.")
@click.option("--device", help="cpu, cuda, cuda:1, mps. [default: the best there is]")
@click.option("--dtype", help="float32, bfloat16, float16 or float8. [default: bfloat16 on CUDA, else float32]")
@click.option("--cpu-offload", is_flag=True, help="Keep each network in host memory but for its own stage.")
@click.option("--torch-compile", is_flag=True, help="Compile the transformer; worth it for long runs only.")
@click.option("--lyric-vocab", help="Path or URL of the lyric vocabulary, if the checkpoint lacks it.")
@settings_options
def command(
    prompt: str,
    output: str,
    lyrics: str | None,
    lyrics_file: Path | None,
    alpha: float | None,
    checkpoint: str,
    **options: Any,
) -> None:
    """Make one song from PROMPT: tags or a sentence.

    acestep song "lo-fi hip-hop, soft piano" --duration 20 --seed 42 -o song.mp3
    """
    from acestep.errors import ACEStepError

    if lyrics and lyrics_file:
        raise click.UsageError("give --lyrics or --lyrics-file, not both")
    words = lyrics_file.read_text(encoding="utf-8") if lyrics_file else (lyrics or "").replace("\\n", "\n")
    try:
        # Settings and format are checked before the model is loaded, which may take minutes.
        settings = {name: options.pop(name) for name in GenerationRequest.model_fields if name in options}
        if alpha is not None:
            settings["variance"] = variance_of_alpha(alpha)
        request = GenerationRequest.parse({"prompt": prompt, "lyrics": words, **settings})
        _check_format(output)
        _make(request, output, checkpoint, options)
    except (ACEStepError, ValueError, OSError) as error:
        print(f"acestep song: {error}", file=sys.stderr)
        sys.exit(2)


def _check_format(output: str) -> None:
    from acestep.audio import AudioFormat

    AudioFormat.from_path(output)


def _make(request: GenerationRequest, output: str, checkpoint: str, options: dict[str, Any]) -> None:
    import logging

    from tqdm import tqdm

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    from acestep.pipeline import ACEStepPipeline

    pipe = ACEStepPipeline.from_pretrained(checkpoint, torch_dtype=options.pop("dtype"), **options)
    started = time.perf_counter()
    with tqdm(unit="step", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = pipe(**request.model_dump(exclude_none=True, exclude_defaults=True), callback=show)
    elapsed = time.perf_counter() - started
    path = result.save(output)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    noise = " (random weights: noise, not music)" if result.model.random_weights else ""
    print(
        f"{path}: {result.duration:.1f} s, seed {result.seed}, model {result.model.name}{noise}; "
        f"made in {elapsed:.1f} s, {result.duration / elapsed:.1f} times real time"
    )


if __name__ == "__main__":
    command()
