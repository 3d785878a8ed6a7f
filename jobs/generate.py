"""`acestep generate`: a manifest in, a catalog of songs out.

Also as a job of a cluster: `ray job submit --working-dir . -- python -m jobs.generate --manifest ... --output s3://...`
"""

from __future__ import annotations

import sys

import click

from jobs.log import exit_codes, start_logging


@click.command(context_settings={"max_content_width": 110})
@click.option("--manifest", required=True, help="Parquet, JSONL or CSV with id and prompt: file, folder, glob or URL.")
@click.option("--output", required=True, help="Folder or URL of the catalog; what is there already is not made again.")
@click.option("--config", help="YAML file; see configs/.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="An option of the config; may be repeated.")
@click.option("--address", help="Ray cluster, such as auto or host:port. [default: RAY_ADDRESS, else this machine]")
@click.option("--dry-run", is_flag=True, help="Write the plan, say what it will take, and stop.")
@click.option("--prune", is_flag=True, help="In the end, remove songs that are not in the manifest any more.")
@click.option("--max-cost", type=float, help="Refuse a job estimated to cost more (with budget.price_per_gpu_hour).")
@click.option("--max-hours", type=float, help="Refuse a job estimated to run longer.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    manifest: str,
    output: str,
    config: str | None,
    overrides: tuple[str, ...],
    address: str | None,
    dry_run: bool,
    prune: bool,
    max_cost: float | None,
    max_hours: float | None,
    verbose: bool,
) -> None:
    """Make every song of a manifest that the output does not hold yet.

    Songs that fail are recorded and end nothing; `acestep retry` tries them again. Run the same command again to go on
    after a crash, or with a longer or edited manifest: only what is new or changed is made.

    Ends with 0 when all songs are there, 3 when some failed, 2 when manifest, config or output cannot be used, 4 when
    storage or Ray ended it early (start it again), 130 or 143 after Ctrl-C or SIGTERM; what was finished is committed.

    \b
    acestep generate --manifest songs.parquet --output out --config configs/tiny.yaml
    """
    start_logging(verbose)
    from pipelines.config import RunConfig
    from pipelines.run import run_job

    limits = {"ray.address": address, "budget.max_cost": max_cost, "budget.max_hours": max_hours}
    overrides += tuple(f"{name}={value}" for name, value in limits.items() if value is not None)
    with exit_codes("generate"):
        summary = run_job(RunConfig.load(config, overrides), manifest, output, dry_run=dry_run, prune_rest=prune)
    if not dry_run:
        print(summary.text())
        sys.exit(summary.exit_code)


if __name__ == "__main__":
    command()
