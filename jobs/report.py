"""`acestep report`: one HTML page about a catalog, to look at and to hear."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(context_settings={"max_content_width": 110})
@click.argument("output")
@click.option("--sample", default=12, show_default=True, type=click.IntRange(0, 500), help="Songs to hear.")
@click.option(
    "--max-quarantined",
    default=200,
    show_default=True,
    type=click.IntRange(0, 5000),
    help="Quarantined songs to hear; the others are listed.",
)
@click.option(
    "--max-mb",
    default=30.0,
    show_default=True,
    type=click.FloatRange(1, 2000),
    help="Size of the page, about; excerpts become shorter to keep to it.",
)
@click.option("--seed", default=0, show_default=True, help="Draws the sample.")
@click.option("-o", "--to", "target", metavar="FILE", help="Write the page there. [default: report.html in OUTPUT]")
@click.option("--config", help="YAML file; its section storage says how OUTPUT is reached.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="An option of the config; may be repeated.")
def command(
    output: str,
    sample: int,
    max_quarantined: int,
    max_mb: float,
    seed: int,
    target: str | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Write a page about the catalog OUTPUT: figures, charts, failures, songs to hear, quarantined songs.

    The page is one file that opens without a network. It may be written while a run is at work.

    \b
    acestep report out/demo
    acestep report s3://bucket/catalog -o report.html --sample 24
    """
    import logging

    from acestep.errors import ACEStepError
    from acestep.whole_file import write_whole
    from pipelines.config import RunConfig
    from pipelines.report import REPORT, ReportOptions, report_page
    from pipelines.storage import Storage

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("pipelines.report").setLevel(logging.INFO)
    try:
        settings = RunConfig.load(config, overrides).storage
        storage = Storage(output, settings.storage_options, attempts=settings.attempts)
        link = "" if target is None else f"{Path(storage.url).as_uri()}/" if storage.is_local else None
        page = report_page(storage, ReportOptions(sample, max_quarantined, max_mb, seed, link)).encode()
        if target is None:
            storage.put(REPORT, page)
        else:
            write_whole(target, page)
    except (ACEStepError, OSError) as error:
        print(f"acestep report: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{target or f'{storage.url}/{REPORT}'} ({len(page) / 1e6:.1f} MB)")


if __name__ == "__main__":
    command()
