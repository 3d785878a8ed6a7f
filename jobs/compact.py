"""`acestep compact`: one file a bucket, instead of one for each commit."""

from __future__ import annotations

import sys

import click

from jobs.log import exit_codes, start_logging
from jobs.output_options import lease_for, open_output, output_options


@click.command(context_settings={"max_content_width": 110})
@output_options
def command(output: str, config: str | None, overrides: tuple[str, ...]) -> None:
    """Make one file of each bucket's rows in the catalog OUTPUT; readers are quicker, and see the same.

    No run may be at work on it. It may be ended at any moment, and started again.

    \b
    acestep compact out
    """
    start_logging()
    with exit_codes("compact"):
        from tqdm import tqdm

        from pipelines.compaction import compact

        storage, settings = open_output(output, config, overrides)
        bar = tqdm(unit="bucket", disable=not sys.stderr.isatty(), leave=False)
        with lease_for("compact", storage, settings) as lease, bar:
            report = compact(storage, check=lease.check, on_bucket=lambda _: bar.update(1))
        print(f"{storage.url}: {report.files_before:,} files before, {report.files_after:,} now", end="")
        print(f"; {report.buckets:,} bucket{'' if report.buckets == 1 else 's'} rewritten")


if __name__ == "__main__":
    command()
