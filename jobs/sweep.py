"""`acestep sweep`: find objects that no row names, and delete them when told to."""

from __future__ import annotations

import sys

import click

from jobs.log import exit_codes, start_logging
from jobs.output_options import lease_for, open_output, output_options

EXAMPLES = 20


@click.command(context_settings={"max_content_width": 110})
@output_options
@click.option("--yes", is_flag=True, help="Delete them; no run may be at work on the output.")
@click.option("--list", "whole_list", is_flag=True, help="Print every key, and nothing else on stdout.")
def command(output: str, config: str | None, overrides: tuple[str, ...], yes: bool, whole_list: bool) -> None:
    """List what runs that died left behind in the catalog OUTPUT: sound without a row, unfinished files, old plans.

    Nothing is deleted without --yes.

    \b
    acestep sweep out
    acestep sweep out --yes
    """
    start_logging()
    with exit_codes("sweep"):
        from contextlib import nullcontext

        from tqdm import tqdm

        from pipelines.errors import OutputError
        from pipelines.lease import read_lease
        from pipelines.orphans import delete_orphans, find_orphans
        from pipelines.plan import PlanRecord
        from pipelines.quantities import size_text

        storage, settings = open_output(output, config, overrides)
        if PlanRecord.read(storage) is None:
            raise OutputError(f"output {storage.url}: there is no catalog")
        with lease_for("sweep", storage, settings) if yes else nullcontext() as lease:
            holder = None if yes else read_lease(storage)
            orphans = find_orphans(storage)
            said = sys.stderr if whole_list else sys.stdout
            leftovers = f", {orphans.leftovers:,} of them unfinished files or old plans" if orphans.leftovers else ""
            sound = f"{orphans.objects:,} objects of sound looked at"
            print(f"{len(orphans.keys):,} orphans, {size_text(orphans.bytes)}{leftovers}; {sound}", file=said)
            for key in orphans.keys if whole_list else orphans.keys[:EXAMPLES]:
                print(key if whole_list else f"  {key}")
            if len(orphans.keys) > EXAMPLES and not whole_list:
                print(f"  ... and {len(orphans.keys) - EXAMPLES:,} more (--list prints all)")
            if holder is not None and not holder.is_gone():
                print(f"{holder.name} may be at work: songs that it commits in a moment are listed too", file=said)
            if lease is not None:
                total = len(orphans.keys)
                with tqdm(total=total, disable=not sys.stderr.isatty(), leave=False) as bar:
                    delete_orphans(storage, orphans, check=lease.check, on_deleted=bar.update)
                print(f"{total:,} deleted", file=said)
            elif orphans.keys:
                print("--yes deletes them", file=said)


if __name__ == "__main__":
    command()
