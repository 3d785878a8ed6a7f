"""`acestep export`: a catalog's songs as a data set for other people's readers."""

from __future__ import annotations

from typing import Any

import click

from jobs.log import exit_codes, start_logging


@click.command(context_settings={"max_content_width": 110})
@click.argument("catalog")
@click.argument("destination")
@click.option(
    "--as",
    "kind",
    required=True,
    type=click.Choice(["parquet", "webdataset", "audiofolder", "jsonl"]),
    help="parquet: for the Hugging Face Hub; webdataset: tar files; audiofolder: plain files with tables; "
    "jsonl: addresses of the catalog's own files.",
)
@click.option(
    "--rendition",
    "renditions",
    multiple=True,
    metavar="FORMAT[:NAME=VALUE,...]",
    help="Make such files instead of copying: mp3:bitrate_kbps=320, flac, opus ...; several make several of each song.",
)
@click.option(
    "--loudness", type=float, metavar="LUFS", help="Of the renditions, such as -14; true peak at most -1 dBTP."
)
@click.option("--sample-rate", type=int, metavar="HZ", help="Of the renditions. [default: each song's own]")
@click.option("--split", default="train", show_default=True, help="Several splits may go to one destination.")
@click.option(
    "--only-ids", type=click.File(encoding="utf-8"), metavar="FILE", help="One id a line; - reads from a pipe."
)
@click.option("--columns", metavar="A,B", help="Of the rows. [default: all that say something about the song]")
@click.option("--shard-bytes", default="500MB", show_default=True, help="About so much goes into one shard.")
@click.option("--no-latents", is_flag=True, help="Make renditions from lossless files only: quicker, and no weights.")
@click.option("--checkpoint", help="Weights that decode latents. [default: what the catalog was made with]")
@click.option("--device", default="cpu", show_default=True, help="Where latents are decoded.")
@click.option("--workers", type=click.IntRange(1), help="Processes that encode. [default: one a core; on a GPU one]")
@click.option("--title", help="Of the data set, for its card.")
@click.option("--license", default="other", show_default=True, help="For its card; the Hub's names, such as cc-by-4.0.")
@click.option("--overwrite", is_flag=True, help="Replace what another export left of this split.")
@click.option("--storage-options", metavar="YAML", help="For catalog and destination: {endpoint_url: ..., key: ...}.")
@click.option("--destination-options", metavar="YAML", help="For the destination, if others.")
@click.option("--checkpoint-options", metavar="YAML", help="For a checkpoint at a URL.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    catalog: str,
    destination: str,
    kind: Any,
    renditions: tuple[str, ...],
    only_ids: Any,
    columns: str | None,
    shard_bytes: str,
    no_latents: bool,
    verbose: bool,
    **more: Any,
) -> None:
    """Make a data set of the songs of CATALOG in DESTINATION, both folders or URLs.

    Run the same command again to go on after a crash: only what is missing is made, and the bytes are the same. A
    data-set card (README.md) says what is in it and how to load it.

    Ends with 0 when all is there, 2 when options, catalog or destination cannot be used, 4 when storage failed, 130
    after Ctrl-C.

    \b
    acestep export out/demo out/dataset --as parquet
    acestep export s3://b/catalog s3://b/tars --as webdataset --rendition mp3:bitrate_kbps=192 --loudness -14
    """
    start_logging(verbose)
    with exit_codes("export"):
        from pipelines.export.card import About
        from pipelines.export.options import ExportOptions, parse_bytes, parse_renditions
        from pipelines.export.run import Resources, export_catalog
        from pipelines.storage import Storage

        options = ExportOptions(
            kind=kind,
            split=more["split"],
            renditions=parse_renditions(renditions),
            target_lufs=more["loudness"],
            sample_rate=more["sample_rate"],
            shard_bytes=parse_bytes(shard_bytes),
            columns=tuple(name.strip() for name in columns.split(",") if name.strip()) if columns else None,
            use_latents=not no_latents,
        )
        storage_options = _options("storage-options", more["storage_options"])
        other_options = _options("destination-options", more["destination_options"])
        summary = export_catalog(
            Storage(catalog, storage_options),
            Storage(destination, other_options or storage_options),
            options,
            only={line.rstrip("\r\n") for line in only_ids} - {""} if only_ids else None,
            about=About(more["title"], more["license"]),
            resources=Resources(
                workers=more["workers"],
                checkpoint=more["checkpoint"],
                checkpoint_options=_options("checkpoint-options", more["checkpoint_options"]),
                device=more["device"],
            ),
            overwrite=more["overwrite"],
        )
    print(summary.text())


def _options(name: str, text: str | None) -> dict[str, Any]:
    """Values of an fsspec filesystem, written as YAML.

    Raises:
        UnusableInputError: for anything but names and values.
    """
    import yaml

    from pipelines.errors import UnusableInputError

    try:
        values = yaml.safe_load(text or "{}")
    except yaml.YAMLError as error:
        raise UnusableInputError(f"{name}: it is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UnusableInputError(f"{name}: it must be like {{endpoint_url: http://host:9000, key: ..., secret: ...}}")
    return values


if __name__ == "__main__":
    command()
