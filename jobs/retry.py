"""`acestep retry`: songs of a catalog that failed, once more."""

from __future__ import annotations

import sys

import click

from jobs.log import exit_codes, start_logging


@click.command(context_settings={"max_content_width": 110})
@click.argument("output")
@click.option("--class", "error_class", help="Only failures of this class, such as storage, timeout or quality.")
@click.option("--id", "ids", multiple=True, help="Only this song, or all of this row; may be repeated.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="An option of the config; may be repeated.")
@click.option("--address", help="Ray cluster, such as auto or host:port. [default: RAY_ADDRESS, else this machine]")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    output: str,
    error_class: str | None,
    ids: tuple[str, ...],
    overrides: tuple[str, ...],
    address: str | None,
    verbose: bool,
) -> None:
    """Make songs of the catalog OUTPUT that failed, and whatever else of its plan is missing.

    The catalog's own plan and config are used, so no manifest is needed; what was secret in the config (storage
    options) must be given again with --set. Rows that were refused cannot be retried: mend the manifest, and generate.

    Ends as `acestep generate` does.

    \b
    acestep retry out --class storage
    """
    start_logging(verbose)
    from pipelines.config import RunConfig
    from pipelines.preparation import config_of, open_output
    from pipelines.run import retry_job

    overrides += (f"ray.address={address}",) if address is not None else ()
    with exit_codes("retry"):
        storage = open_output(RunConfig.load(None, overrides), output)
        summary = retry_job(config_of(storage, overrides), output, error_class=error_class, ids=ids or None)
    print(summary.text())
    sys.exit(summary.exit_code)


if __name__ == "__main__":
    command()
