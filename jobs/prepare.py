"""`acestep prepare`: music in, data to train on out."""

from __future__ import annotations

import sys

import click

from jobs.log import exit_codes, start_logging


@click.command(context_settings={"max_content_width": 110})
@click.option("--source", help="Manifest with audio and prompt, or a folder of audio. [default: synth.pieces]")
@click.option("--output", required=True, help="Folder or URL of the data; what is there already is not made again.")
@click.option("--config", help="YAML file; see configs/prepare.yaml.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="An option of the config; may be repeated.")
@click.option("--checkpoint", help="Whose autoencoder and tokenizers: tiny, a folder, a hub id or a URL.")
@click.option("--synth", "pieces", type=int, help="So many pieces of the built-in synthesiser, in place of a source.")
@click.option("--address", help="Ray cluster, such as auto or host:port. [default: RAY_ADDRESS, else this machine]")
@click.option("--local", is_flag=True, help="In this process, without Ray.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    source: str | None,
    output: str,
    config: str | None,
    overrides: tuple[str, ...],
    checkpoint: str | None,
    pieces: int | None,
    address: str | None,
    local: bool,
    verbose: bool,
) -> None:
    """Encode music to latents and tokens, as `acestep train` reads them.

    A manifest (Parquet, JSONL, CSV) has the columns audio and prompt, perhaps lyrics, language and id. In a folder,
    beside a.mp3 stand its tags in a.txt or a_prompt.txt, one prompt a line, and perhaps its words in a_lyrics.txt.

    Songs that cannot be used are listed in rejects/ with the reason, and end nothing. Run the same command again to go
    on after a crash.

    Ends with 0 when all songs were used, 3 when some could not be, 2 when source, config or output cannot be used, 4
    when storage or Ray ended it early (start it again), 130 after Ctrl-C.

    \b
    acestep prepare --source songs.parquet --output s3://b/data --checkpoint ACE-Step/ACE-Step-v1-3.5B
    acestep prepare --synth 1000 --output out/data
    """
    start_logging(verbose)
    given = {"model.checkpoint": checkpoint, "synth.pieces": pieces, "ray.address": address}
    overrides += tuple(f"{name}={value}" for name, value in given.items() if value is not None)
    with exit_codes("prepare"):
        from pipelines.training_data.config import PrepareConfig
        from pipelines.training_data.job import prepare_data

        summary = prepare_data(PrepareConfig.load(config, overrides), output, source, local=local)
    print(summary.text())
    sys.exit(summary.exit_code)


if __name__ == "__main__":
    command()
