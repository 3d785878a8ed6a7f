"""`acestep generate`: a manifest in, a catalog of songs out.

Also as a job of a cluster: `ray job submit --working-dir . -- python -m jobs.generate --manifest ... --output s3://...`
"""

from __future__ import annotations

import logging
import sys

import click

INTERRUPTED = 130


@click.command(context_settings={"max_content_width": 110})
@click.option("--manifest", required=True, help="Parquet, JSONL or CSV with id and prompt: file, folder, glob or URL.")
@click.option("--output", required=True, help="Folder or URL of the catalog; what is there already is not made again.")
@click.option("--config", help="YAML file; see configs/.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="An option of the config; may be repeated.")
@click.option("--address", help="Ray cluster, such as auto or host:port. [default: RAY_ADDRESS, else this machine]")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    manifest: str, output: str, config: str | None, overrides: tuple[str, ...], address: str | None, verbose: bool
) -> None:
    """Make every song of a manifest that the output does not hold yet.

    Songs that fail are recorded and end nothing. Run the same command again to go on after a crash, to try failed
    songs again, or with a longer manifest.

    Ends with 0 when all songs are there, 3 when some failed, 2 when manifest, config or output cannot be used, 130
    after Ctrl-C.

    \b
    acestep generate --manifest songs.parquet --output out --config configs/tiny.yaml
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for name in ("botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "asyncio", "filelock", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from acestep.errors import ACEStepError
    from pipelines.config import RunConfig
    from pipelines.run import run_job

    if address:
        overrides = (*overrides, f"ray.address={address}")
    try:
        summary = run_job(RunConfig.load(config, overrides), manifest, output)
    except KeyboardInterrupt:
        print("acestep generate: interrupted before anything was made", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ACEStepError as error:
        print(f"acestep generate: {error}", file=sys.stderr)
        sys.exit(2 if error.error_class == "input" else 3)
    print(summary.text())
    sys.exit(summary.exit_code)


if __name__ == "__main__":
    command()
