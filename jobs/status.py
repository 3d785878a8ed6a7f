"""`acestep status`: where the work on an output stands, from any machine."""

from __future__ import annotations

import json
import sys
import time

import click

from jobs.log import exit_codes, start_logging
from jobs.output_options import open_output, output_options

_CLEAR = "\x1b[2J\x1b[H"


@click.command(context_settings={"max_content_width": 110})
@output_options
@click.option("--watch", metavar="SECONDS", type=click.FloatRange(min=0.1), help="Look again so often, while it runs.")
@click.option("--json", "as_json", is_flag=True, help="For programs; with --watch, a line each time.")
def command(output: str, config: str | None, overrides: tuple[str, ...], watch: float | None, as_json: bool) -> None:
    """Say where the work on the catalog OUTPUT stands: songs, speed, failures, time and cost left.

    Reads a few small objects and changes nothing.

    \b
    acestep status s3://bucket/catalog --watch 10
    """
    start_logging()
    with exit_codes("status"):
        from pipelines.status import read_status

        storage, _ = open_output(output, config, overrides)
        while True:
            status = read_status(storage)
            if as_json:
                print(json.dumps(status.as_dict(), indent=None if watch else 2), flush=True)
            else:
                clear = _CLEAR if watch and sys.stdout.isatty() else ""
                print(clear + status.text(), flush=True)
            if not watch or not status.is_running:
                return
            time.sleep(watch)


if __name__ == "__main__":
    command()
